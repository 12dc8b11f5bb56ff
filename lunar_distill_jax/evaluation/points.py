"""Errors of points at the same pixel: under each alignment, in % of depth and in ground samples.

A ground sample is what one pixel covers, depth / focal length, of the frame that is evaluated.
"""

from __future__ import annotations

import numpy as np

from lunar_distill_jax.evaluation.catalogue import Metric
from lunar_distill_jax.evaluation.flow import Flow, sample
from lunar_distill_jax.evaluation.metrics import Aligned, GroundTruth, distance_pct, own_depths

WITHIN_GSD = {"half": 0.5, "1": 1.0, "2": 2.0, "4": 4.0}
METRIC = 10.0  # a prediction off by a larger factor is not in metres: it has no error of scale
UNSCALED = f"none where s is off by more than {METRIC:.0f} times: no metres"
DELTAS = (1.01, 1.02, 1.05)  # 1.25, the usual one, is met by any plane under a lunar orbiter

METRICS = {
    "point_rmse_pct": Metric(
        "Point error, RMS", "% of depth", -1, ".2f", about="root mean square distance", detail=True
    ),
    "point_error_gsd": Metric(
        "Point error", "ground samples", -1, ".2f", about="mean distance in units of depth / focal"
    ),
    "point_error_median_gsd": Metric(
        "Point error, median", "ground samples", -1, ".2f", detail=True
    ),
    **{
        f"within_{name}_gsd_pct": Metric(
            f"Within {limit:g} ground samples", "% of pixels", +1, ".1f", detail=True
        )
        for name, limit in WITHIN_GSD.items()
    },
    "silog": Metric(
        "SILog", "100 ln", -1, ".2f", about="sd of ln(z / z_gt), each view apart", detail=True
    ),
    **{
        f"delta_{round(100 * d)}_pct": Metric(
            f"δ < {d:g}", "% of pixels", +1, ".1f", about="max(z / z_gt, z_gt / z)", detail=True
        )
        for d in DELTAS
    },
    "point_error_metric_pct": Metric(
        "Point error, as predicted",
        "% of depth",
        -1,
        ".2f",
        "scale",
        f"taken as metres; {UNSCALED}",
    ),
    "scale_error_pct": Metric(
        "Scale error",
        "%",
        -1,
        ".2f",
        "scale",
        f"|1 - s|, s the scale from the ground truth; {UNSCALED}",
        "median",
    ),
    "point_error_baseline_pct": Metric(
        "Point error, known baseline",
        "% of depth",
        -1,
        ".2f",
        "scale",
        "its own translation brought to the true length, no depth used",
        "median",
    ),
    "point_error_sim3_gsd": Metric(
        "Point error, Sim(3)", "ground samples", -1, ".2f", "similarity", detail=True
    ),
    "cross_view_pct": Metric(
        "Cross-view gap",
        "% of depth",
        -1,
        ".2f",
        "consistency",
        "distance between both views' error vectors at the same point of the ground",
    ),
    "cross_view_gsd": Metric("Cross-view gap", "ground samples", -1, ".2f", "consistency"),
}


def in_metres(scale: float) -> bool:
    """Whether a prediction can have meant metres. scale: metres by the truth for one unit of it."""
    return 1 / METRIC < scale < METRIC


def ground_samples(truth: GroundTruth, K: np.ndarray) -> np.ndarray:
    """Metres that a pixel covers across the line of sight: [2, H, W]. K: [2, 3, 3]."""
    return truth.depth / np.sqrt(K[:, 0, 0] * K[:, 1, 1])[:, None, None]


def point_metrics(
    prediction: Aligned,
    truth: GroundTruth,
    gsd_m: np.ndarray,
    flow: Flow,
    baseline_scale: float | None,
) -> dict[str, float]:
    """All `METRICS`. gsd_m: [2, H, W]; baseline_scale: metres per unit of the prediction."""
    valid = truth.valid
    X, X_gt, z_gt, gsd = (
        a[valid] for a in (prediction.points, truth.points_cam1, truth.depth, gsd_m)
    )
    scale = prediction.scale
    metric = in_metres(scale)
    distance = _norm(scale * X - X_gt)
    samples = distance / gsd
    own = own_depths(scale * prediction.points, truth)
    values = {
        "point_rmse_pct": 100 * np.sqrt(((distance / z_gt) ** 2).mean()),
        "point_error_gsd": samples.mean(),
        "point_error_median_gsd": np.median(samples),
        **{
            f"within_{name}_gsd_pct": 100 * (samples < limit).mean()
            for name, limit in WITHIN_GSD.items()
        },
        **_depth_ratios(own, truth),
        "point_error_metric_pct": distance_pct(X, X_gt, z_gt).mean() if metric else np.nan,
        "scale_error_pct": 100 * abs(1 - scale) if metric else np.nan,
        "point_error_baseline_pct": np.nan
        if baseline_scale is None
        else distance_pct(baseline_scale * X, X_gt, z_gt).mean(),
        "point_error_sim3_gsd": (_norm(prediction.similarity(X) - X_gt) / gsd).mean(),
        **_cross_view(scale * prediction.points - truth.points_cam1, truth, gsd_m, flow),
    }
    return {name: float(values[name]) for name in METRICS}


def _norm(offset: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("...c,...c->...", offset, offset))


def _depth_ratios(own: np.ndarray, truth: GroundTruth) -> dict[str, float]:
    """SILog and deltas, means of both views; a depth behind the camera counts as a wrong ratio."""
    silog, within = [], []
    for z, z_gt, valid in zip(own, truth.depth, truth.valid, strict=True):
        ratio = np.maximum(z[valid] / z_gt[valid], 1e-6)
        log = np.log(ratio)
        silog.append(100 * log.std())
        within.append([100 * (np.exp(np.abs(log)) < d).mean() for d in DELTAS])
    deltas = np.mean(within, axis=0)
    names = [f"delta_{round(100 * d)}_pct" for d in DELTAS]
    return {"silog": float(np.mean(silog)), **dict(zip(names, deltas, strict=True))}


def _cross_view(
    error: np.ndarray, truth: GroundTruth, gsd_m: np.ndarray, flow: Flow
) -> dict[str, float]:
    """|e1(p) - e2(q)| over pixels p of view 1 that view 2 sees at q; NaN where it sees none.

    Differences of errors rather than of points: the ground truth itself is then exactly zero,
    whatever its relief between the pixels of view 2.
    """
    seen = flow.seen
    if not seen.any():
        return {"cross_view_pct": np.nan, "cross_view_gsd": np.nan}
    gap = _norm(error[0][seen] - sample(error[1], flow.uv[seen]))
    return {
        "cross_view_pct": float((100 * gap / truth.depth[0][seen]).mean()),
        "cross_view_gsd": float((gap / gsd_m[0][seen]).mean()),
    }
