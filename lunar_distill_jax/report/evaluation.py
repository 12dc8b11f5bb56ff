"""From an `Evaluation` to its page: metrics, intervals and pictures of a few pairs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from lunar_distill_jax.evaluation.run import Evaluation, Predictor
from lunar_distill_jax.report.page import NOTHING, Shown, write_report
from lunar_distill_jax.types import StereoPair


def write_evaluation(
    path: str | os.PathLike,
    evaluation: Evaluation,
    predictors: Mapping[str, Predictor],
    pairs: Sequence[StereoPair],
    others: Mapping[str, Evaluation] = NOTHING,
    **text,
) -> None:
    """Writes the page of `evaluation`, with `pairs` as the `predictors` see them in pictures.

    others: heading -> evaluation of other pairs, a table each
    text:   what else `write_report` takes: title, lead, only, history, right, facts, command,
            pictures_dir

    Raises:
      InputError: the page or the pictures cannot be written.
    """
    summary = evaluation.summary
    rows = [row for one in (evaluation, *others.values()) for row in one.rows]
    seen = {name: predict(pairs) for name, predict in predictors.items()}
    shown = [
        Shown(
            pair,
            {name: maps[i] for name, maps in seen.items()},
            {row.model: row.values for row in rows if row.pair == pair.name},
        )
        for i, pair in enumerate(pairs)
    ]
    trajectories = sorted({t for s in summary.values() for t in s["trajectory"]})
    write_report(
        path,
        metrics=_metrics(evaluation),
        intervals={model: s["interval95"] or {} for model, s in summary.items()},
        by_trajectory={
            t: {model: s["trajectory"][t] for model, s in summary.items()} for t in trajectories
        },
        others={heading: _metrics(one) for heading, one in others.items()},
        shown=shown,
        **text,
    )


def _metrics(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    keys = evaluation.protocol.metrics
    return {model: {k: s[k] for k in keys} for model, s in evaluation.summary.items()}
