"""Point-map regression. All maps [B, H, W, 3] are in the camera of view 1, masks [B, H, W] bool."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from lunar_distill_jax.losses.reduce import masked_mean


def distance(a, b):
    """Euclidean distance over the last axis; its gradient at 0 is 0, not nan."""
    square = jnp.sum((a - b) ** 2, -1)
    nonzero = square != 0  # nan is not 0: it must be seen, not counted as a perfect match
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def normalise(points1, points2, valid1, valid2):
    """Divides both clouds by their mean distance from camera 1 ("avg_dis", Wang et al. 2024).

    The scale is one number a sample, over the valid points of both views, and gradients pass
    through it. Points that are not valid come back as 0.
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
    distance is dominated by (multi-scale gradient matching, Li & Snavely 2018, eq. 5). Every
    `stride`-th pixel is used; spans are counted in these.
    """
    valid = valid[:, ::stride, ::stride]
    # Masked values are replaced first: a difference with a garbage pixel is garbage in its
    # gradient.
    error = (points - target)[:, ::stride, ::stride]
    error = jnp.where(valid[..., None], error, 0.0)
    total = 0.0
    for span in spans:
        down = distance(error[:, span:], error[:, :-span])
        right = distance(error[:, :, span:], error[:, :, :-span])
        total += masked_mean(down, valid[:, span:] & valid[:, :-span])
        total += masked_mean(right, valid[:, :, span:] & valid[:, :, :-span])
    return total / (2 * len(spans))


def smooth_maps(height: int, width: int) -> np.ndarray:
    """Orthonormal polynomials of degree 2 or less over the frame: float32 [H * W, 6]."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    maps = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1).reshape(-1, 6)
    return np.linalg.qr(maps)[0].astype(np.float32)


def relief_difference(points, target, valid):
    """Mean length of (points - target) without what varies slowly over the frame.

    Tilt, scale and pose errors are nearly quadratic in the pixel; what is left is relief, some 3 %
    of the depth, which the plain distance hardly notices. Masked pixels count as error 0 in the
    fit.
    """
    b, height, width, _ = points.shape
    error = jnp.where(valid[..., None], points - target, 0.0).reshape(b, -1, 3)
    maps = smooth_maps(height, width)
    coefficients = jnp.einsum("npk,pq->nqk", error, maps)
    error = error - jnp.einsum("nqk,pq->npk", coefficients, maps)
    return masked_mean(distance(error, jnp.zeros_like(error)), valid.reshape(b, -1))
