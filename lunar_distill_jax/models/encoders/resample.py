"""Resampling of maps as torch's `interpolate(align_corners=False)` does it, by two small matrices.

Half-pixel centres: output i of n_out lies at (i + 0.5) * scale - 0.5 of the n_in inputs. Sizes are
known when a program is traced, so the matrices are its constants, and their gradients are products.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' (1981) cubic convolution with the free parameter `a`."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def interpolation_matrix(
    n_in: int, n_out: int, method: str, *, antialias: bool = False, scale: float | None = None
) -> np.ndarray:
    """float32 [n_out, n_in]; the weights of an output sum to 1.

    method:    "linear" or "cubic". Torch's cubic has a = -0.75, and -0.5 with antialias.
    antialias: widens the kernel where the map shrinks, and leaves out what is beyond the border;
               without it the border's value is repeated.
    scale:     inputs an output step passes; n_in / n_out unless given. DINOv2 gives its own.
    """
    scale = n_in / n_out if scale is None else scale
    if antialias:
        centre = (np.arange(n_out) + 0.5) * scale  # in units where input j covers [j, j + 1]
        widen = max(scale, 1.0)
        x = (np.arange(n_in) + 0.5 - centre[:, None]) / widen
        weights = _linear(x) if method == "linear" else _cubic(x, -0.5)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    # In float32, as torch has it: the rounding of a position is ten times that of a weight.
    at = np.float32(scale) * (np.arange(n_out, dtype=np.float32) + np.float32(0.5))
    at -= np.float32(0.5)
    reach = 1 if method == "linear" else 2
    taps = np.floor(at)[:, None].astype(int) + np.arange(1 - reach, 1 + reach)
    x = taps - at[:, None].astype(np.float64)
    weights = _linear(x) if method == "linear" else _cubic(x, -0.75)
    out = np.zeros((n_out, n_in))
    np.add.at(out, (np.arange(n_out)[:, None], np.clip(taps, 0, n_in - 1)), weights)
    return out.astype(np.float32)


def resample(x, height: int, width: int, method: str = "linear", *, antialias: bool = False):
    """[B, H, W, C] -> [B, height, width, C]"""
    rows = interpolation_matrix(x.shape[1], height, method, antialias=antialias)
    columns = interpolation_matrix(x.shape[2], width, method, antialias=antialias)
    x = jnp.einsum("bhwc,yh->bywc", x, rows.astype(x.dtype))
    return jnp.einsum("bywc,xw->byxc", x, columns.astype(x.dtype))
