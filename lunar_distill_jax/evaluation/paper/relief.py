"""Terrain metrics of the public code: on the image grid, a pixel one metre wide by default."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from lunar_distill_jax.evaluation.metrics import pearson
from lunar_distill_jax.evaluation.paper.classic import ssim

HAZARD_DEG = (5, 10, 15, 20)
FEWEST = 50


def eroded(ok: np.ndarray) -> np.ndarray:
    """`ok` [H, W] without a rim of four pixels; `ok` itself if too little were left."""
    inner = ndimage.binary_erosion(ok, np.ones((9, 9), bool))
    return inner if inner.sum() >= FEWEST else ok


def slope_aspect(z: np.ndarray, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """Degrees, both [H, W], from Sobel gradients of a map and the size of its pixels."""
    gx, gy = (ndimage.sobel(z, axis) / (8 * pixel) for axis in (1, 0))
    slope = np.degrees(np.arctan(np.hypot(gx, gy)))
    return slope, (np.degrees(np.arctan2(-gy, gx)) + 360) % 360


def slope_errors(pred: np.ndarray, gt: np.ndarray, mask: np.ndarray, pixel: float = 1.0) -> dict:
    """Of heights [H, W]: errors of slope, and hazard classes at each threshold."""
    p, g = (slope_aspect(z, pixel)[0][mask] for z in (pred, gt))
    out = {
        "slope_mae": np.abs(p - g).mean(),
        "slope_rmse": np.sqrt(((p - g) ** 2).mean()),
        "slope_corr": pearson(p, g),
        "slope_gt_mean": g.mean(),
        "slope_pred_mean": p.mean(),
    }
    for t in HAZARD_DEG:
        safe, called = g < t, p < t
        out[f"agree_{t}"] = 100 * (safe == called).mean()
        if safe.any():
            out[f"false_alarm_{t}"] = 100 * (~called[safe]).mean()
        if (~safe).any():
            out[f"miss_{t}"] = 100 * called[~safe].mean()
    return {name: float(value) for name, value in out.items()}


def roughness(z: np.ndarray) -> np.ndarray:
    """Standard deviation in a box of 5 x 5 pixels, [H, W]."""
    mean, square = (ndimage.uniform_filter(x, 5) for x in (z, z * z))
    return np.sqrt(np.maximum(square - mean**2, 0))


def curvature(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and Gaussian curvature [H, W] of a map with pixels of size 1."""
    q, p = np.gradient(z)
    s, r = np.gradient(p)
    t = np.gradient(q)[0]
    mean = -((1 + q**2) * r - 2 * p * q * s + (1 + p**2) * t)
    mean /= 2 * (1 + p**2 + q**2) ** 1.5 + 1e-12
    return mean, (r * t - s**2) / ((1 + p**2 + q**2) ** 2 + 1e-12)


def relief_errors(pred: np.ndarray, gt: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Roughness, curvature, "craters", relief, slopes as pictures, aspects, peaks."""
    rough_p, rough_g = roughness(pred)[mask], roughness(gt)[mask]
    out = {
        "roughness_corr": pearson(rough_p, rough_g),
        "roughness_mae": float(np.abs(rough_p - rough_g).mean()),
        **_curvatures(pred, gt, mask),
        "relief_corr": _relief_corr(pred, gt, mask),
        **_slope_pictures(pred, gt, mask),
        **_extrema(pred, gt, mask),
    }
    return {name: float(value) for name, value in out.items()}


def _curvatures(pred, gt, mask) -> dict[str, float]:
    p, g = curvature(pred)[0][mask], curvature(gt)[0][mask]
    low, high = np.percentile(g, [1, 99])
    usual = (g >= low) & (g <= high)
    limit = max(float(np.percentile(np.abs(g), 80)), 0.005)

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        return (a & b).sum() / (a | b).sum() if (a | b).any() else np.nan

    return {
        "curvature_corr": pearson(p[usual], g[usual]),
        "curvature_mae": np.abs(p - g)[usual].mean(),
        "crater_rim_iou": iou(p > limit, g > limit),
        "crater_interior_iou": iou(p < -limit, g < -limit),
        "crater_combined_iou": iou(np.abs(p) > limit, np.abs(g) > limit),
    }


def _relief_corr(pred, gt, mask) -> float:
    y, x = np.nonzero(mask)
    A = np.stack([x, y, np.ones_like(x)], 1).astype(np.float64)
    plane = A @ np.linalg.lstsq(A, gt[mask], rcond=None)[0]
    return pearson(pred[mask] - plane, gt[mask] - plane)


def _slope_pictures(pred, gt, mask) -> dict[str, float]:
    (slope_p, aspect_p), (slope_g, aspect_g) = slope_aspect(pred, 1.0), slope_aspect(gt, 1.0)
    top = np.percentile(slope_g[mask], 99)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    pictures = [np.clip(s[box] / top, 0, 1) for s in (slope_g, slope_p)]
    out = {"slope_ssim": ssim(pictures[0], pictures[1], 1.0)}
    steep = mask & (slope_p > 2) & (slope_g > 2)
    if steep.sum() >= 100:
        h = [np.histogram(a[steep], 16, (0, 360))[0].astype(float) for a in (aspect_p, aspect_g)]
        out["aspect_hist_corr"] = pearson(h[0], h[1])
    return out


def _extrema(pred, gt, mask) -> dict[str, float]:
    out = {}
    for name, sign in (("peaks", 1), ("valleys", -1)):
        p, g = (peaks(sign * _filled(z, mask)) for z in (pred, gt))
        out[f"{name}_pred"], out[f"{name}_gt"] = len(p), len(g)
        if len(g):
            distance = (
                np.linalg.norm(g[:, None] - p[None], axis=-1)
                if len(p)
                else np.full((len(g), 1), np.inf)
            )
            out[f"{name}_recall"] = 100 * (distance.min(1) < 10).mean()
    return out


def _filled(z: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Masked pixels take the mean of their column, or of all."""
    known = np.where(mask, z, 0.0)
    count = mask.sum(0)
    mean = np.where(count > 0, known.sum(0) / np.maximum(count, 1), z[mask].mean())
    return np.where(mask, z, mean[None])


def peaks(z: np.ndarray, apart: int = 8) -> np.ndarray:
    """Local maxima (row, column) [N, 2], the highest first, none within `apart` of a higher one."""
    top = ndimage.maximum_filter(z, 2 * apart + 1, mode="nearest")
    found = np.argwhere((z == top) & (z > z.min()))
    found = found[np.argsort(-z[tuple(found.T)], kind="stable")]
    kept: list[np.ndarray] = []
    for at in found:
        if all(np.abs(at - other).max() > apart for other in kept):
            kept.append(at)
    return np.array(kept).reshape(-1, 2)
