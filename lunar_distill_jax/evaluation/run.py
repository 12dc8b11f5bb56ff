"""Runs predictors over pairs and sums up: `metrics.json` and `pairs.csv`."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lunar_distill_jax import atomic
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.evaluation import hosts, statistics
from lunar_distill_jax.evaluation.catalogue import Metric
from lunar_distill_jax.evaluation.metrics import METRICS
from lunar_distill_jax.evaluation.protocol import CORE, Protocol
from lunar_distill_jax.types import PointMaps, StereoPair

Predictor = Callable[[Sequence[StereoPair]], Sequence[PointMaps]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One model on one pair.

    values:     by the names of the protocol's metrics; NaN where one does not apply
    conditions: {condition: bin}
    curves:     {name: [points]}
    numbers:    what the bins were chosen by
    """

    model: str
    pair: str
    geometry: str
    trajectory: str
    values: dict[str, float]
    conditions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All rows, and {model: `summarise` of its rows}, which is what `metrics.json` holds."""

    rows: tuple[Row, ...]
    summary: dict[str, dict]
    protocol: Protocol = CORE


def evaluate(
    predictors: Mapping[str, Predictor],
    pairs: Iterable[StereoPair],
    *,
    protocol: Protocol = CORE,
    chunk: int = 8,
    seed: int = 0,
    progress: Callable[[int], object] = lambda pairs_done: None,
) -> Evaluation:
    """Scores every predictor on the same pixels of the same pairs.

    On several hosts each gives its own share of the pairs (`hosts.own_share`) and gets the result
    of all.

    Args:
      predictors: name -> function from a list of pairs of one size to their point maps
      pairs: read as needed; a predictor is asked for at most `chunk` consecutive ones of one size
      seed: of the bootstrap
      progress: called with the number of pairs done since the last call, such as `tqdm.update`

    Raises:
      InputError: there is no pair, or a predictor returned points that cannot be scored.
      ValueError: a predictor returned too few point maps.
    """
    rows: list[Row] = []
    for batch in _chunks(pairs, chunk):
        prepared = [protocol.prepare(pair) for pair in batch]
        for model, predict in predictors.items():
            rows.extend(_score(model, predict(batch), batch, prepared, protocol))
        progress(len(batch))
    rows = [Row(**json.loads(text)) for text in hosts.gather([_as_text(row) for row in rows])]
    if not rows:
        raise InputError(
            "There is nothing to evaluate (found 0 pairs or predictors, expected at least 1 of "
            "each): give a folder that holds pairs."
        )
    summary = {model: summarise(rows, model, seed, protocol.metrics) for model in predictors}
    first, *others = predictors
    for model in others:
        summary[model]["versus"] = {first: compare(rows, model, first, seed, protocol.metrics)}
    return Evaluation(tuple(rows), summary, protocol)


def summarise(
    rows: Iterable[Row], model: str, seed: int = 0, metrics: Mapping[str, Metric] = METRICS
) -> dict:
    """Averages of one model, in all, per trajectory and under each condition.

    Returns:
      {metric: average, ..., "pairs": n, "geometries": n, "interval95": {metric: [low, high]} or
      None with fewer than two geometries, "trajectory": {name: the same}, "by": {condition: {bin:
      the same}}}; averages and intervals as `statistics.average` has them.
    """
    own = [row for row in rows if row.model == model]
    out = _averages(own, seed, metrics)
    out["trajectory"] = _split(own, lambda row: row.trajectory, seed, metrics)
    keys = dict.fromkeys(key for row in own for key in row.conditions if key != "trajectory")
    if keys:
        out["by"] = {
            key: _split(own, lambda row, key=key: row.conditions[key], seed, metrics)
            for key in keys
        }
    return out


def compare(
    rows: Sequence[Row],
    model: str,
    other: str,
    seed: int = 0,
    metrics: Mapping[str, Metric] = METRICS,
) -> dict[str, dict]:
    """{metric: {"difference": model - other, "interval95", "pairs"}} over the pairs of both."""
    geometry = {row.pair: row.geometry for row in rows}
    out = {}
    for name, metric in metrics.items():
        ours, theirs = (
            {row.pair: row.values[name] for row in rows if row.model == m} for m in (model, other)
        )
        centre, interval, pairs = statistics.difference(ours, theirs, geometry, metric, seed)
        if pairs:
            out[name] = {"difference": centre, "interval95": interval, "pairs": pairs}
    return out


def write_metrics(path: str | os.PathLike, evaluation: Evaluation, **extra: Mapping) -> None:
    """Writes `summary` as JSON, one key per model, six digits; null where there is no number.

    extra: {model: value} by key, such as costs; added to the models' own entries
    """
    summary = {
        model: {**values, **{key: of[model] for key, of in extra.items() if model in of}}
        for model, values in evaluation.summary.items()
    }
    text = json.dumps(rounded(summary), indent=2, allow_nan=False)
    atomic.write_text(path, text + "\n")


def write_pairs(path: str | os.PathLike, evaluation: Evaluation) -> None:
    """Writes `rows` as CSV: model, pair, geometry, conditions, their numbers, then all metrics."""
    names = list(evaluation.protocol.metrics)
    numbers = list(evaluation.rows[0].numbers)
    conditions = list(evaluation.rows[0].conditions)
    conditions = [key for key in conditions if key != "trajectory"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "pair", "geometry", "trajectory", *conditions,
                     *(f"{key}_value" for key in numbers), *names])  # fmt: skip
    for row in evaluation.rows:
        words = [row.model, row.pair, row.geometry, row.trajectory]
        words += [row.conditions[key] for key in conditions]
        words += [f"{row.numbers[key]:.6g}" for key in numbers]
        writer.writerow(words + [f"{row.values[name]:.6g}" for name in names])
    atomic.write_text(path, text.getvalue())


def _score(
    model: str,
    predictions: Sequence[PointMaps],
    batch: Sequence[StereoPair],
    prepared: Sequence[Any],
    protocol: Protocol,
) -> Iterator[Row]:
    if len(predictions) != len(batch):
        raise ValueError(f"{model} returned {len(predictions)} point maps for {len(batch)} pairs.")
    for pair, truth, prediction in zip(batch, prepared, predictions, strict=True):
        try:
            values, curves = protocol.score(prediction, truth)
        except ValueError as e:
            reason = str(e).rstrip(".")
            raise InputError(
                f"{model} on {pair.name}: {reason}; give another model, or leave the pair out."
            ) from e
        curves = {name: np.asarray(curve).tolist() for name, curve in curves.items()}
        names = model, pair.name, pair.geometry, pair.trajectory
        yield Row(*names, values, protocol.conditions(truth), curves, protocol.numbers(truth))


def _as_text(row: Row) -> str:
    return json.dumps(dataclasses.asdict(row))  # Python's JSON keeps NaN and every digit


def _chunks(pairs: Iterable[StereoPair], chunk: int) -> Iterator[list[StereoPair]]:
    batch: list[StereoPair] = []
    for pair in pairs:
        if batch and (len(batch) == chunk or pair.image.shape != batch[0].image.shape):
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch


def _split(rows: Sequence[Row], key: Callable[[Row], str], seed: int, metrics) -> dict[str, dict]:
    return {
        name: _averages([row for row in rows if key(row) == name], seed, metrics)
        for name in sorted({key(row) for row in rows})
    }


def _averages(rows: Sequence[Row], seed: int, metrics: Mapping[str, Metric]) -> dict:
    rows = sorted(rows, key=lambda row: row.pair)
    geometries = [row.geometry for row in rows]
    out, intervals = {}, {}
    for name, metric in metrics.items():
        values = [row.values[name] for row in rows]
        out[name], interval = statistics.average(values, geometries, metric, seed)
        if interval is not None:
            intervals[name] = list(interval)
    count = len(set(geometries))
    several = intervals if count > 1 else None
    return {**out, "pairs": len(rows), "geometries": count, "interval95": several}


def rounded(value):
    """Six digits, and None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
