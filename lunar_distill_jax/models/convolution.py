"""Convolutions of 3 x 3 whose gradient a CPU computes as matrix products."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

LAYOUT = ("NHWC", "HWIO", "NHWC")
BLOCK = 2048  # pixels of `kernel_gradient` at a time, if a row has fewer


@jax.custom_vjp
def conv3x3(x, kernel):
    """[B, H, W, C_in] with [3, 3, C_in, C_out], borders of 0 -> [B, H, W, C_out]"""
    return _conv(x, kernel)


def _conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=LAYOUT
    )


def _forward(x, kernel):
    return _conv(x, kernel), (x, kernel)


def _backward(saved, gradient):
    x, kernel = saved
    # The transposed convolution written out: in a loop (micro-batches, trials) XLA:CPU makes of
    # lax's own one, whose kernel is turned round by a parameter, something 30 times slower.
    of_x = _conv(gradient, kernel[::-1, ::-1].swapaxes(2, 3))
    of_kernel = jax.lax.platform_dependent(
        x, kernel, gradient, cpu=kernel_gradient, default=_native_kernel_gradient
    )
    return of_x, of_kernel


def _native_kernel_gradient(x, kernel, gradient):
    return jax.linear_transpose(lambda k: _conv(x, k), kernel)(gradient)[0]


def kernel_gradient(x, kernel, gradient):
    """The gradient of `conv3x3`'s kernel as nine products, one for each shift of x.

    XLA:CPU makes of it a convolution with a kernel as large as the picture, four times slower at
    112 x 112 pixels and more beyond. It goes by blocks of rows, so that the nine shifted copies of
    a block stay in the cache: of whole maps they are nine times its memory.
    """
    (batch, height, width, channels), out = x.shape, gradient.shape[-1]
    most = max(1, min(height, BLOCK // (batch * width)))
    rows = next((r for r in range(most, most // 2, -1) if height % r == 0), most)
    count = -(-height // rows)
    below = count * rows - height  # rows of zeros complete the last block
    x = jnp.pad(x, ((0, 0), (1, 1 + below), (1, 1), (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (0, below), (0, 0), (0, 0)))

    def add_block(i, so_far):
        part = jax.lax.dynamic_slice_in_dim(x, i * rows, rows + 2, axis=1)
        flat = jax.lax.dynamic_slice_in_dim(gradient, i * rows, rows, axis=1).reshape(-1, out)
        shifts = (part[:, i : i + rows, j : j + width] for i in range(3) for j in range(3))
        products = [
            jnp.matmul(s.reshape(-1, channels).T, flat, preferred_element_type=jnp.float32)
            for s in shifts
        ]
        return so_far + jnp.stack(products)

    total = jnp.zeros((9, channels, out), jnp.float32)
    total = jax.lax.fori_loop(0, count, add_block, total)
    return total.reshape(kernel.shape).astype(kernel.dtype)


conv3x3.defvjp(_forward, _backward)


def halve3x3(x, kernel):
    """[B, 2 h, 2 w, C_in] with [3, 3, C_in, C_out], borders of 0 -> [B, h, w, C_out]: every other
    pixel of `conv3x3`, as one product. XLA:CPU's gradients of strided convolutions are slow.
    """
    (_, height, width, channels), out = x.shape, kernel.shape[-1]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
    return jnp.concatenate(taps, -1) @ kernel.reshape(9 * channels, out)


def convolution(x, kernel, window_strides, padding, *_, **options):
    """lax.conv_general_dilated for `nn.Conv`, by `conv3x3` or `halve3x3` where that is meant."""
    strides = tuple(window_strides)
    even = strides == (2, 2) and not (x.shape[1] % 2 or x.shape[2] % 2)
    plain = kernel.shape[:2] == (3, 3) and (strides == (1, 1) or even)
    whole = options.get("feature_group_count", 1) == 1
    dilated = any(d != 1 for k in ("lhs_dilation", "rhs_dilation") for d in options.get(k) or ())
    if plain and whole and not dilated and padding in ([(1, 1), (1, 1)], ((1, 1), (1, 1))):
        if options.get("precision") is None:
            return halve3x3(x, kernel) if even else conv3x3(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, window_strides, padding, *_, **options)


Conv = functools.partial(nn.Conv, conv_general_dilated=convolution)
