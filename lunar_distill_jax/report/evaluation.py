"""From an `Evaluation` to its page: metrics, intervals and pictures of a few pairs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from lunar_distill_jax.evaluation.metrics import METRICS
from lunar_distill_jax.evaluation.run import Evaluation, Predictor
from lunar_distill_jax.report.page import Shown, write_report
from lunar_distill_jax.types import StereoPair


def write_evaluation(
    path: str | os.PathLike,
    evaluation: Evaluation,
    predictors: Mapping[str, Predictor],
    pairs: Sequence[StereoPair],
    **text,
) -> None:
    """Writes the page of `evaluation`, with `pairs` as the `predictors` see them in pictures.

    text: what else `write_report` takes: title, lead, history, facts, command, pictures_dir

    Raises:
      InputError: the page or the pictures cannot be written.
    """
    summary = evaluation.summary
    seen = {name: predict(pairs) for name, predict in predictors.items()}
    shown = [
        Shown(
            pair,
            {name: maps[i] for name, maps in seen.items()},
            {row.model: row.values for row in evaluation.rows if row.pair == pair.name},
        )
        for i, pair in enumerate(pairs)
    ]
    trajectories = sorted({t for s in summary.values() for t in s["trajectory"]})
    write_report(
        path,
        metrics={model: _metrics(s) for model, s in summary.items()},
        intervals={model: s["interval95"] or {} for model, s in summary.items()},
        by_trajectory={
            t: {model: _metrics(s["trajectory"][t]) for model, s in summary.items()}
            for t in trajectories
        },
        shown=shown,
        **text,
    )


def _metrics(summary: Mapping) -> dict[str, float]:
    return {name: summary[name] for name in METRICS}
