"""What makes two pairs of point maps comparable: their unit of length, shift and scale.

A pair of maps (view 1, view 2) is a tuple of [B, H, W, 3] in the camera of view 1; its masks are a
tuple of bool [B, H, W]. Formulas: Wang et al. 2024 (DUSt3R), Leroy et al. 2024 (MASt3R).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lunar_distill_jax.losses.reduce import masked_median
from lunar_distill_jax.models.heads import raw_from_points

NORMS = ("none", "avg_dis", "median_dis", "sqrt_dis", "avg_log1p", "avg_warp-log1p")


def distance(a, b):
    """Euclidean distance over the last axis; its gradient at 0 is 0, not nan."""
    square = jnp.sum((a - b) ** 2, -1)
    nonzero = square != 0  # nan is not 0: it must be seen, not counted as a perfect match
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def length(points):
    """[..., 3] -> [...]"""
    return distance(points, jnp.zeros_like(points))


def keep_valid(points, valid):
    """The pair with 0 where it is not valid."""
    # Before any arithmetic: the zero gradient of a masked pixel times its nan is nan.
    return tuple(jnp.where(v[..., None], p, 0.0) for p, v in zip(points, valid, strict=True))


def joint(pair):
    """Two of [B, H, W, ...] -> [B, 2 * H * W, ...]: the pixels of both views."""
    return jnp.concatenate([x.reshape(x.shape[0], -1, *x.shape[3:]) for x in pair], 1)


def per_sample(x):
    """[B] -> [B, 1, 1, 1]"""
    return x[:, None, None, None]


def normalise(points, valid, norm: str = "avg_dis"):
    """-> (the pair over its unit of length, 0 where not valid; the unit [B]).

    norm: STATISTIC_LENGTH. The statistic is over the valid pixels of both views: "avg", "median"
          (no gradient passes), or "sqrt", the squared mean root. The length of a point is its
          distance from camera 1 ("dis") or the log1p of it; "warp-log1p" also moves the points to
          that length first. "none" leaves the points as they are.
    """
    points = keep_valid(points, valid)
    if norm == "none":
        return points, jnp.ones(points[0].shape[0], points[0].dtype)
    statistic, kind = norm.split("_")
    if kind == "warp-log1p":
        points = tuple(raw_from_points(p) for p in points)
    lengths, mask = joint(tuple(length(p) for p in points)), joint(valid)
    if kind == "log1p":
        lengths = jnp.log1p(lengths)
    if statistic == "median":
        unit = masked_median(lengths, mask)
    else:
        count = mask.sum(-1) + 1e-8
        if statistic == "sqrt":
            nonzero = lengths > 0
            roots = jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, lengths, 1.0)), 0.0)
            unit = (roots.sum(-1) / count) ** 2
        else:
            unit = lengths.sum(-1) / count  # not valid points have length 0
    unit = jnp.maximum(unit, 1e-8)
    return tuple(p / per_sample(unit) for p in points), unit


def without_shift(points, valid):
    """The pair without the median depth of its valid pixels; no gradient passes the median."""
    z = masked_median(joint(points)[..., 2], joint(valid))
    shift = jnp.stack([jnp.zeros_like(z), jnp.zeros_like(z), z], -1)
    return tuple(p - shift[:, None, None] for p in points)


def spread(points, valid):
    """Median distance of the valid pixels from their median point: [B], without a gradient."""
    cloud, mask = jax.lax.stop_gradient(joint(points)), joint(valid)
    centre = jnp.stack([masked_median(cloud[..., i], mask) for i in range(3)], -1)
    return masked_median(distance(cloud, centre[:, None]), mask)
