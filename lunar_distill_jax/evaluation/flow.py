"""Where the pixels of view 1 truly lie in view 2."""

from __future__ import annotations

import dataclasses

import numpy as np

from lunar_distill_jax.data import reprojection
from lunar_distill_jax.types import StereoPair

SAME_SURFACE = 0.02  # relative difference of depths above which something else hides the point


@dataclasses.dataclass(frozen=True)
class Flow:
    """uv: [H, W, 2] pixel (x, y) of view 2, NaN where not seen; seen: bool [H, W], by view 2."""

    uv: np.ndarray
    seen: np.ndarray


def true_flow(pair: StereoPair) -> Flow:
    """The flow of all pixels of view 1, by the true depth and poses."""
    height, width = pair.valid.shape[1:]
    v, u = np.indices((height, width))
    uv, seen = carry(pair, np.stack([u.ravel(), v.ravel()], 1).astype(np.float64))
    return Flow(uv.reshape(height, width, 2), seen.reshape(height, width))


def carry(pair: StereoPair, pixels1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Real-valued pixels [N, 2] of view 1 -> of view 2 [N, 2], and which it sees: bool [N]."""
    depth, known, spread = reprojection.sample_depth(pair.depth_m[0], pair.valid[0], pixels1)
    whole = np.rint(pixels1).astype(int)
    exact = (whole == pixels1).all(1)  # a whole pixel needs no neighbours
    if exact.any():
        x, y = whole[exact].T
        inside = (x >= 0) & (y >= 0) & (x < pair.valid.shape[2]) & (y < pair.valid.shape[1])
        x, y = np.where(inside, x, 0), np.where(inside, y, 0)
        known[exact] = inside & pair.valid[0, y, x]
        depth[exact] = np.where(known[exact], pair.depth_m[0, y, x], 1.0)
        spread[exact] = 0.0
    known &= spread < SAME_SURFACE * 5
    uv, z = reprojection.carry(pair, 0, 1, pixels1, depth)
    there, known2, _ = reprojection.sample_depth(pair.depth_m[1], pair.valid[1], uv)
    seen = known & known2 & (z > 0) & (np.abs(there - z) < SAME_SURFACE * np.abs(z))
    return np.where(seen[:, None], uv, np.nan), seen


def sample(values: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """values [H, W, C] at real-valued pixels [N, 2] inside the frame, bilinear: [N, C]."""
    height, width = values.shape[:2]
    j = np.clip(uv[:, 0].astype(int), 0, width - 2)
    i = np.clip(uv[:, 1].astype(int), 0, height - 2)
    x, y = (uv[:, 0] - j)[:, None], (uv[:, 1] - i)[:, None]
    top = (1 - x) * values[i, j] + x * values[i, j + 1]
    bottom = (1 - x) * values[i + 1, j] + x * values[i + 1, j + 1]
    return (1 - y) * top + y * bottom
