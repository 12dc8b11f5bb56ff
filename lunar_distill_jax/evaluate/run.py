"""Runs predictors over pairs and sums up: `metrics.json` and `pairs.csv`.

The suns of one geometry are no independent evidence, so every mean is taken first over the pairs of
a geometry, then over geometries, and intervals resample geometries.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from lunar_distill_jax import atomic
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.evaluate import metrics
from lunar_distill_jax.types import PointMaps, StereoPair

Predictor = Callable[[Sequence[StereoPair]], Sequence[PointMaps]]

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Row:
    """One model on one pair; `values` has the keys of `metrics.METRICS`."""

    model: str
    pair: str
    geometry: str
    trajectory: str
    values: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All rows, and {model: `summarise` of its rows}, which is what `metrics.json` holds."""

    rows: tuple[Row, ...]
    summary: dict[str, dict]


def evaluate(
    predictors: Mapping[str, Predictor],
    pairs: Iterable[StereoPair],
    *,
    chunk: int = 8,
    seed: int = 0,
    progress: Callable[[int], object] = lambda pairs_done: None,
) -> Evaluation:
    """Scores every predictor on the same pixels of the same pairs.

    Args:
      predictors: name -> function from a list of pairs of one size to their point maps
      pairs: read as needed; a predictor is asked for at most `chunk` consecutive ones of one size
      seed: of the bootstrap
      progress: called with the number of pairs done since the last call, such as `tqdm.update`

    Raises:
      InputError: there is no pair.
      ValueError: a predictor returned too few point maps, or unusable ones.
    """
    rows = []
    for batch in _chunks(pairs, chunk):
        truths = [metrics.ground_truth(pair) for pair in batch]
        for model, predict in predictors.items():
            rows.extend(_score(model, predict(batch), batch, truths))
        progress(len(batch))
    if not rows:
        raise InputError(
            "There is nothing to evaluate (found 0 pairs or predictors, expected at least 1 of "
            "each): give a folder that holds pairs."
        )
    return Evaluation(tuple(rows), {model: summarise(rows, model, seed) for model in predictors})


def summarise(rows: Iterable[Row], model: str, seed: int = 0) -> dict:
    """Means of one model over geometries, in all and per trajectory.

    Returns:
      {metric: mean, ..., "pairs": n, "geometries": n, "interval95": {metric: [low, high]} or None,
      "trajectory": {name: the same without "trajectory"}}. The interval is a percentile bootstrap
      over geometries, None with fewer than two; one seed resamples all models alike.
    """
    own = [row for row in rows if row.model == model]
    out = _means(own, seed)
    out["trajectory"] = {
        name: _means([row for row in own if row.trajectory == name], seed)
        for name in sorted({row.trajectory for row in own})
    }
    return out


def write_metrics(path: str | os.PathLike, evaluation: Evaluation) -> None:
    """Writes `summary` as JSON, one key per model, six digits."""
    text = json.dumps(_rounded(evaluation.summary), indent=2, allow_nan=False)
    atomic.write_text(path, text + "\n")


def write_pairs(path: str | os.PathLike, evaluation: Evaluation) -> None:
    """Writes `rows` as CSV: model, pair, geometry, trajectory, then `metrics.METRICS`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "pair", "geometry", "trajectory", *metrics.METRICS])
    for row in evaluation.rows:
        names = [row.model, row.pair, row.geometry, row.trajectory]
        writer.writerow(names + [f"{row.values[name]:.6g}" for name in metrics.METRICS])
    atomic.write_text(path, text.getvalue())


def _score(
    model: str,
    predictions: Sequence[PointMaps],
    batch: Sequence[StereoPair],
    truths: Sequence[metrics.GroundTruth],
) -> Iterator[Row]:
    if len(predictions) != len(batch):
        raise ValueError(f"{model} returned {len(predictions)} point maps for {len(batch)} pairs.")
    for pair, truth, prediction in zip(batch, truths, predictions, strict=True):
        try:
            values = metrics.pair_metrics(prediction, truth)
        except ValueError as e:
            raise ValueError(f"{model} on {pair.name}: {e}") from e
        yield Row(model, pair.name, pair.geometry, pair.trajectory, values)


def _chunks(pairs: Iterable[StereoPair], chunk: int) -> Iterator[list[StereoPair]]:
    batch: list[StereoPair] = []
    for pair in pairs:
        if batch and (len(batch) == chunk or pair.image.shape != batch[0].image.shape):
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch


def _means(rows: Sequence[Row], seed: int) -> dict:
    names = sorted({row.geometry for row in rows})
    table = np.array(
        [
            np.mean([list(row.values.values()) for row in rows if row.geometry == name], axis=0)
            for name in names
        ]
    )  # [geometries, metrics]
    out = dict(zip(metrics.METRICS, table.mean(0).tolist(), strict=True))
    return {
        **out,
        "pairs": len(rows),
        "geometries": len(names),
        "interval95": _intervals(table, seed) if len(names) > 1 else None,
    }


def _intervals(table: np.ndarray, seed: int) -> dict[str, list[float]]:
    count = len(table)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    low, high = np.percentile(draws @ table / count, [2.5, 97.5], axis=0).tolist()
    return {name: list(pair) for name, *pair in zip(metrics.METRICS, low, high, strict=True)}


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
