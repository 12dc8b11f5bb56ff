"""Averages, intervals and differences over pairs, of which the suns of one geometry are no
independent evidence: means are taken over geometries, and intervals resample geometries.

A value may be missing (NaN: it does not apply, or there was no answer) or infinite (a failure).
Means are over what there is; medians count failures as infinite. Values are summed exactly rounded
(`math.fsum`), so that neither the order of pairs nor uneven batches nor hosts change a digit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lunar_distill_jax.evaluation.catalogue import Metric

RESAMPLES = 1000


@functools.lru_cache(maxsize=64)
def draws(count: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each of `count` geometries is in each resample: int [resamples, count]."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)


def average(
    values: Sequence[float], geometries: Sequence[str], metric: Metric, seed: int = 0
) -> tuple[float, tuple[float, float] | None]:
    """-> (average, 95 % percentile-bootstrap interval over geometries or None below two of them).

    values: [P] of the pairs; geometries: [P] their names
    """
    array = np.asarray(values, np.float64)
    names, index = np.unique(np.asarray(geometries), return_inverse=True)
    weights = draws(len(names), seed) if len(names) > 1 else None
    if metric.average == "median":
        return _median(array, index, weights)
    return _mean(array, index, len(names), weights)


def _mean(values, index, count, weights):
    groups = [values[(index == g) & np.isfinite(values)] for g in range(count)]
    means = np.array([math.fsum(g) / len(g) if len(g) else np.nan for g in groups])
    known = np.isfinite(means)
    if not known.any():
        return math.nan, None
    centre = math.fsum(means[known]) / int(known.sum())
    if weights is None or known.sum() < 2:
        return centre, None
    total = weights[:, known].sum(1)
    sums = weights[:, known] @ means[known]
    return centre, _interval(sums[total > 0] / total[total > 0])


def _median(values, index, weights):
    known = ~np.isnan(values)
    if not known.any():
        return math.nan, None
    order = np.argsort(values[known], kind="stable")
    values, index = values[known][order], index[known][order]
    centre = float(weighted_median(values, np.ones((1, len(values))))[0])
    if weights is None or len(np.unique(index)) < 2:
        return centre, None
    drawn = weights[:, index]
    drawn = drawn[drawn.sum(1) > 0]
    return centre, _interval(weighted_median(values, drawn))


def weighted_median(ordered: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Medians of rising values [P] under each row of weights [R, P]: [R]."""
    total = np.cumsum(weights, axis=1)
    half = total[:, -1:] / 2
    low = ordered[(total >= half).argmax(1)]
    high = ordered[(total > half).argmax(1)]
    return np.where(low == high, low, low / 2 + high / 2)


def _interval(resampled: np.ndarray) -> tuple[float, float]:
    ordered = np.sort(resampled)  # by rank: percentiles would interpolate infinities to NaN
    last = len(ordered) - 1
    low, high = ordered[round(0.025 * last)], ordered[round(0.975 * last)]
    return float(low), float(high)


def difference(
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    geometry: Mapping[str, str],
    metric: Metric,
    seed: int = 0,
) -> tuple[float, tuple[float, float] | None, int]:
    """ours - theirs over the pairs both have a value of -> (average, interval, number of pairs).

    ours, theirs: pair -> value; geometry: pair -> its geometry. Paired: what makes a pair hard for
    both does not widen the interval.
    """
    both = [p for p in ours if p in theirs and math.isfinite(ours[p]) and math.isfinite(theirs[p])]
    if not both:
        return math.nan, None, 0
    values = [ours[p] - theirs[p] for p in both]
    centre, interval = average(values, [geometry[p] for p in both], metric, seed)
    return centre, interval, len(both)
