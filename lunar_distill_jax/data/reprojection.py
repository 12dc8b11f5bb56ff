"""Points of one view seen by the other: where they fall, and whether both depth maps agree."""

from __future__ import annotations

import dataclasses

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.types import StereoPair


def sample_depth(
    depth: np.ndarray, valid: np.ndarray, uv: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth [H, W] at real-valued pixels [N, 2]: bilinear in 1 / depth, which is exact on planes.

    -> depth [N], 1 where a neighbour is not valid or outside; whether it is known [N]; relative
    spread of the four neighbours [N], (farthest - nearest) / nearest
    """
    height, width = depth.shape
    u, v = np.where(np.isfinite(uv), uv, -1.0).T
    inside = (u >= 0) & (v >= 0) & (u <= width - 1) & (v <= height - 1)
    u, v = np.where(inside, u, 0.0), np.where(inside, v, 0.0)
    j = np.minimum(u.astype(int), width - 2)
    i = np.minimum(v.astype(int), height - 2)
    x, y = u - j, v - i
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(valid, 1.0 / depth.astype(np.float64), 0.0).ravel()
    a, b, c, d = (inverse.take(i * width + (j + k)) for k in (0, 1, width, width + 1))
    far, near = np.minimum(np.minimum(a, b), np.minimum(c, d)), np.maximum.reduce([a, b, c, d])
    known = inside & (far > 0)
    top = a + x * (b - a)
    mean = np.where(known, top + y * (c + x * (d - c) - top), 1.0)
    return 1.0 / mean, known, np.where(known, near / np.where(known, far, 1.0) - 1.0, 0.0)


def carry(pair: StereoPair, a: int, b: int, uv: np.ndarray, depth: np.ndarray):
    """Pixels [N, 2] of view a at z-depth [N] -> their pixels [N, 2] and z-depth [N] in view b.

    Pixels are nan behind the camera.
    """
    T_b_a = geometry.relative_pose(pair.T_world_cam[[b, a]])
    # w [u', v', 1] = z A [u, v, 1] + K t; by rows: a matrix product with [N, 3] is far slower.
    A = pair.K[b] @ T_b_a[:3, :3] @ np.linalg.inv(pair.K[a])
    t = pair.K[b] @ T_b_a[:3, 3]
    u, v = uv[:, 0], uv[:, 1]
    x, y, z = (depth * (row[0] * u + row[1] * v + row[2]) + t[k] for k, row in enumerate(A))
    scale = 1.0 / np.where(z > 0, z, np.nan)
    return np.stack([x * scale, y * scale], 1), z


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well view 2's depth map agrees with view 1's points.

    overlap:      fraction of view 1's valid pixels that fall on valid ground of view 2
    median_m:     median of |z of the points in camera 2 - depth of view 2 there|, metres; nan
                  where nothing overlaps
    median_px:    the same over the footprint of a pixel of view 2
    bias_m:       mean of the signed difference within 10 medians, metres
    """

    overlap: float
    median_m: float
    median_px: float
    bias_m: float


def agreement(pair: StereoPair, *, shift: float = 0.0, stride: int = 4) -> Agreement:
    """Carries every `stride`-th pixel of view 1 into view 2 and compares depths there.

    shift: added to both principal points, px; +0.5 is the error of a reader that takes K for pixel
           corners as one for pixel centres
    """
    K = pair.K.copy()
    K[:, :2, 2] += shift
    pair = dataclasses.replace(pair, K=K)
    v, u = np.mgrid[: pair.valid.shape[1] : stride, : pair.valid.shape[2] : stride]
    u, v = u.ravel(), v.ravel()
    there = pair.valid[0][v, u]
    u, v = u[there], v[there]
    uv, z = carry(
        pair, 0, 1, np.stack([u, v], 1).astype(float), pair.depth_m[0][v, u].astype(float)
    )
    depth, known, _ = sample_depth(pair.depth_m[1], pair.valid[1], uv)
    if not known.any():
        return Agreement(0.0, np.nan, np.nan, np.nan)
    dz = (depth - z)[known]
    median = float(np.median(np.abs(dz)))
    return Agreement(
        overlap=float(known.mean()),
        median_m=median,
        median_px=float(np.median(np.abs(dz) / z[known] * pair.K[1, 0, 0])),
        bias_m=float(dz[np.abs(dz) <= 10 * median].mean()),
    )
