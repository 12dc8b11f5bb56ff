"""Losses on the differences of neighbouring points: what the plain distance hardly notices.

Maps are [B, H, W, 3], already aligned; masks bool [B, H, W].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax.losses.reduce import Mean
from lunar_distill_jax.losses.scale import distance, length


def gradient_difference(points, target, valid, *, stride: int = 2, spans=(1, 2, 4, 8)) -> Mean:
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
    means = []
    for span in spans:
        down = distance(error[:, span:], error[:, :-span])
        right = distance(error[:, :, span:], error[:, :, :-span])
        means.append(Mean.over(down, valid[:, span:] & valid[:, :-span]))
        means.append(Mean.over(right, valid[:, :, span:] & valid[:, :, :-span]))
    return 1 / len(means) * sum(means[1:], means[0])


def sobel(x):
    """[B, H, W, C] -> (d/dx, d/dy), Sobel / 4 on borders that repeat."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")

    def smooth(x, axis):
        n = x.shape[axis]
        a, b, c = (jax.lax.slice_in_dim(x, i, n - 2 + i, axis=axis) for i in range(3))
        return (a + 2 * b + c) / 4

    def step(x, axis):
        n = x.shape[axis]
        return jax.lax.slice_in_dim(x, 2, n, axis=axis) - jax.lax.slice_in_dim(
            x, 0, n - 2, axis=axis
        )

    return smooth(step(x, 2), 1), smooth(step(x, 1), 2)


def sobel_mean(error, mask) -> Mean:
    """Mean over mask of |d/dx| + |d/dy| of error [B, H, W]."""
    dx, dy = sobel(error[..., None])
    return Mean.over((jnp.abs(dx) + jnp.abs(dy))[..., 0], mask)


def inner(valid):
    """Where a pixel and its eight neighbours are valid: bool [B, H, W]."""
    broken = jax.lax.reduce_window(
        ~valid, False, jnp.logical_or, (1, 3, 3), (1, 1, 1), [(0, 0), (1, 1), (1, 1)]
    )
    return ~broken


def sobel_difference(points, target, valid, *, across: float = 0.1) -> Mean:
    """Mean |Sobel of z - the target's|, plus `across` times those of x and of y.

    A pixel counts where its neighbours are valid too: elsewhere the difference is not one of two
    surfaces. (The released distillation code looks at the pixel alone, and for x and y at no mask.)
    """
    error, mask = jnp.where(valid[..., None], points - target, 0.0), inner(valid)
    across_means = sobel_mean(error[..., 0], mask) + sobel_mean(error[..., 1], mask)
    return sobel_mean(error[..., 2], mask) + across * across_means


def smooth_maps(height: int, width: int) -> np.ndarray:
    """Orthonormal polynomials of degree 2 or less over the frame: float32 [H * W, 6]."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    maps = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1).reshape(-1, 6)
    return np.linalg.qr(maps)[0].astype(np.float32)


def relief_difference(points, target, valid) -> Mean:
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
    return Mean.over(length(error), valid.reshape(b, -1))
