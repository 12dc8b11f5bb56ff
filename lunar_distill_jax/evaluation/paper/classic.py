"""Point and depth metrics of the public code; lengths are in the unit of the points."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from lunar_distill_jax.evaluation.metrics import pearson

MOST_POINTS = (
    20_000  # a view, of each cloud apart: that is what gives a perfect prediction an error
)
MOST_POINTS_SCENE = 40_000
UNDER_M = (0.5, 1.0, 2.0)


def point_errors(pred: np.ndarray, gt: np.ndarray) -> dict[str, float]:
    """rmse over points and coordinates (so a third of the squared distance), mae_3d, pearson_z."""
    offset = pred - gt
    return {
        "rmse": float(np.sqrt((offset**2).mean())),
        "mae_3d": float(np.linalg.norm(offset, axis=1).mean()),
        "pearson_z": pearson(pred[:, 2], gt[:, 2]),
    }


def nearest_neighbours(pred: np.ndarray, gt: np.ndarray, most: int = MOST_POINTS) -> dict:
    """Accuracy, completeness and Chamfer distance of clouds [N, 3] subsampled independently."""
    draw = np.random.RandomState(42)
    pred, gt = (
        c[draw.choice(len(c), most, replace=False)] if len(c) > most else c for c in (pred, gt)
    )
    there, back = cKDTree(gt).query(pred)[0], cKDTree(pred).query(gt)[0]
    out = {
        "accuracy": there.mean(),
        "completeness": back.mean(),
        "chamfer": (there.mean() + back.mean()) / 2,
        "acc_median": np.median(there),
        "compl_median": np.median(back),
    }
    for t in UNDER_M:
        out[f"acc_pct_under_{t:g}"] = 100 * (there < t).mean()
        out[f"compl_pct_under_{t:g}"] = 100 * (back < t).mean()
    return {name: float(value) for name, value in out.items()}


def hausdorff(pred: np.ndarray, gt: np.ndarray) -> dict[str, float]:
    draw = np.random.RandomState(0)
    most = MOST_POINTS_SCENE
    pred, gt = (
        c[draw.choice(len(c), most, replace=False)] if len(c) > most else c for c in (pred, gt)
    )
    both = cKDTree(gt).query(pred)[0], cKDTree(pred).query(gt)[0]
    return {
        "hausdorff_p95": float(max(np.percentile(d, 95) for d in both)),
        "hausdorff_max": float(max(d.max() for d in both)),
    }


def overlap(cloud1: np.ndarray, cloud2: np.ndarray, span: float) -> dict[str, float]:
    """Distances between two clouds, both ways and pooled, where below 5 % of `span`."""
    both = cKDTree(cloud2).query(cloud1)[0], cKDTree(cloud1).query(cloud2)[0]
    near = [d[d < 0.05 * span] for d in both]
    pooled = np.concatenate(near)
    median, mean = (np.median(pooled), pooled.mean()) if len(pooled) else (np.nan, np.nan)
    return {
        "n1": float(len(near[0])),
        "n2": float(len(near[1])),
        "median": float(median),
        "mean": float(mean),
        "pct": float(100 * median / span),
    }


def depth_errors(pred: np.ndarray, gt: np.ndarray, ok: np.ndarray) -> dict[str, float]:
    """Of "depth" maps [H, W], which in the public code hold the world's z coordinate."""
    p, g = pred[ok], gt[ok]
    both = np.concatenate([p, g])
    out = {
        "mae": float(np.abs(p - g).mean()),
        "rmse": float(np.sqrt(((p - g) ** 2).mean())),
        "pearson": pearson(p, g),
        "ssim": ssim(gt, pred, float(np.ptp(both))),
    }
    positive = (p > 0) & (g > 0)
    if positive.sum() >= 10:
        d = np.log(p[positive] / g[positive])
        out["silog"] = float(np.sqrt(max((d**2).mean() - d.mean() ** 2, 0.0)))
        ratio = np.exp(np.abs(d))
        for k in (1, 2, 3):
            out[f"delta{k}"] = float(100 * (ratio < 1.25**k).mean())
    return out


def profile(pred: np.ndarray, gt: np.ndarray, ok: np.ndarray) -> dict[str, float]:
    """Mean absolute error and correlation along the middle row."""
    row = len(gt) // 2
    use = ok[row]
    if use.sum() < 10:
        return {}
    p, g = pred[row][use], gt[row][use]
    return {"mae": float(np.abs(p - g).mean()), "corr": pearson(p, g)}


def ssim(a: np.ndarray, b: np.ndarray, data_range: float, window: int = 7) -> float:
    """Mean structural similarity (Wang et al. 2004) over uniform windows, borders left out."""
    unbiased = window**2 / (window**2 - 1)
    a, b = a.astype(np.float64), b.astype(np.float64)

    def mean(x: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(x, window)

    ma, mb = mean(a), mean(b)
    va, vb = unbiased * (mean(a * a) - ma * ma), unbiased * (mean(b * b) - mb * mb)
    cov = unbiased * (mean(a * b) - ma * mb)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    s = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    pad = window // 2
    return float(s[pad:-pad, pad:-pad].mean())
