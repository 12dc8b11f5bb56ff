"""Depthwise convolution as a sum of shifted products."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

SHIFTED = "shifted_products"  # the scope in which products are a convolution's


class DepthwiseConv(nn.Module):
    """One k x k kernel for each channel, padded by half of it: [B, H, W, C] -> [B, H', W', C].

    H' = ceil(H / stride) for odd kernels. XLA fuses the k * k shifted products into one loop; its
    own grouped convolution took 8 to 40 times as long on a CPU (tools/bench_students.py).
    """

    kernel: int
    stride: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        k, s, (b, h, w, c) = self.kernel, self.stride, x.shape
        # [k, k, 1, C], as a grouped nn.Conv has it.
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (k, k, 1, c))
        p = k // 2
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (p, p), (p, p), (0, 0)))
        rows, columns = (h + 2 * p - k) // s + 1, (w + 2 * p - k) // s + 1
        out = jnp.zeros((), self.dtype)
        for i in range(k):
            for j in range(k):
                end = (b, i + (rows - 1) * s + 1, j + (columns - 1) * s + 1, c)
                window = lax.slice(x, (0, i, j, 0), end, (1, s, s, 1))
                with jax.named_scope(SHIFTED):
                    product = window * kernel[i, j, 0].astype(self.dtype)
                out = out + product
        if self.use_bias:
            out = out + self.param("bias", nn.initializers.zeros, (c,)).astype(self.dtype)
        return out
