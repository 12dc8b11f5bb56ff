"""Does confidence predict error? Sparsification: the error of what remains as the least sure leave.

Ilg et al., "Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow" (ECCV 2018), 4.1.
All models are scored on the same pixels; one without an opinion gets a flat curve, not a lucky one.
"""

from __future__ import annotations

import numpy as np

from lunar_distill_jax.evaluate.catalogue import Metric

KEPT = np.linspace(1.0, 0.05, 20)  # fractions of the pixels that remain
NO_ERROR_PCT = 1e-4  # % of depth: what float32 points are worth; there is nothing to predict below

METRICS = {
    "ause": Metric(
        "AUSE",
        "",
        -1,
        ".3f",
        "confidence",
        "area between its sparsification curve and the best one, mean error = 1",
    ),
    "error_surest_half": Metric(
        "Error of the surest half",
        "of the mean",
        -1,
        ".2f",
        "confidence",
        "mean error of the most confident half of the pixels over the mean of all",
    ),
}


def sparsification(error: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Mean error of the fractions `KEPT` with the largest `order`, over the mean of all: [20].

    error, order: [N]. Equal `order` gives the mean of all ways to break the tie.
    """
    rank = np.argsort(-order, kind="stable")
    ordered, by_rank = error[rank].astype(np.float64), order[rank]
    starts = np.flatnonzero(np.concatenate([[True], by_rank[1:] != by_rank[:-1]]))
    sizes = np.diff(np.append(starts, len(ordered)))
    spread = np.repeat(np.add.reduceat(ordered, starts) / sizes, sizes)
    count = np.maximum(np.rint(KEPT * len(ordered)).astype(int), 1)
    kept = np.cumsum(spread)[count - 1] / count
    mean = ordered.mean()
    return kept / mean if mean > 0 else np.ones(len(KEPT))


def calibration(error: np.ndarray, conf: np.ndarray) -> tuple[dict[str, float], dict]:
    """`METRICS`, and the curves {"sparsification", "oracle"} they come from.

    error: [N] in % of depth; conf: [N]
    """
    if error.mean() < NO_ERROR_PCT:
        error = np.zeros_like(error)
    curve, oracle = sparsification(error, conf), sparsification(error, -error)
    removed = 1 - KEPT
    values = {
        "ause": float(np.trapezoid(curve - oracle, removed)),
        "error_surest_half": float(curve[np.argmin(np.abs(KEPT - 0.5))]),
    }
    return values, {"sparsification": curve, "oracle": oracle}
