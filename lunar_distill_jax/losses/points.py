"""Point-map regression. All maps [B, H, W, 3] are in the camera of view 1, masks [B, H, W] bool."""

from __future__ import annotations

import jax.numpy as jnp

from lunar_distill_jax.losses.reduce import masked_mean


def distance(a, b):
    """Euclidean distance over the last axis; its gradient at 0 is 0, not nan."""
    square = jnp.sum((a - b) ** 2, -1)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def normalise(points1, points2, valid1, valid2):
    """Divides both clouds by their mean distance from camera 1 ("avg_dis" of DUSt3R, Wang et al. 2024).

    The scale is one number a sample, over the valid points of both views, and gradients pass through it.
    Points that are not valid come back as 0.
    """
    # Before any arithmetic: the zero gradient of a masked pixel times its nan is nan.
    points1 = jnp.where(valid1[..., None], points1, 0.0)
    points2 = jnp.where(valid2[..., None], points2, 0.0)

    def total(points):
        return distance(points, jnp.zeros_like(points)).sum((1, 2))

    count = valid1.sum((1, 2)) + valid2.sum((1, 2))
    scale = (total(points1) + total(points2)) / (count + 1e-8)
    scale = jnp.maximum(scale, 1e-8)[:, None, None, None]
    return points1 / scale, points2 / scale


def confidence_weighted(error, conf, valid, *, alpha: float = 0.2):
    """Mean of error * conf - alpha * log conf over valid pixels (DUSt3R, eq. 4)."""
    error, conf = jnp.where(valid, error, 0.0), jnp.where(valid, conf, 1.0)
    return masked_mean(error * conf - alpha * jnp.log(conf), valid)


def gradient_difference(points, target, valid, *, stride: int = 2, spans=(1, 2, 4, 8)):
    """Mean length of the finite differences of (points - target) over several spans.

    Differences over a span see relief of that size and are blind to a common shift, which the plain
    distance is dominated by (multi-scale gradient matching, Li & Snavely 2018, eq. 5). Every `stride`-th
    pixel is used; spans are counted in these.
    """
    valid = valid[:, ::stride, ::stride]
    # Masked values are replaced first: a difference with a garbage pixel is garbage in its gradient.
    error = (points - target)[:, ::stride, ::stride]
    error = jnp.where(valid[..., None], error, 0.0)
    total = 0.0
    for span in spans:
        down = distance(error[:, span:], error[:, :-span])
        right = distance(error[:, :, span:], error[:, :, :-span])
        total += masked_mean(down, valid[:, span:] & valid[:, :-span])
        total += masked_mean(right, valid[:, :, span:] & valid[:, :, :-span])
    return total / (2 * len(spans))
