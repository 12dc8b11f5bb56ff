"""Transformer layers of MASt3R: pre-norm blocks with rotary self- and cross-attention.

Every LayerNorm of MASt3R has epsilon 1e-6 and every GELU is the exact one: both are visible in the
outputs.
`dtype` is the compute dtype; parameters, norms and softmax are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax.models.attention import attention
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.rope import rotate


class Rope(NamedTuple):
    """Rotary tables of one view's tokens: cos, sin, each [N, d] or [B, N, d]."""

    cos: Any
    sin: Any

    def __call__(self, heads):  # [B, heads, N, d]
        return rotate(heads, *(t[:, None] if t.ndim == 3 else t for t in self))


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, float32 -> `dtype`.

    nn.LayerNorm drifts twice as far from the reference in deep decoders: there XLA sums in sequence
    and takes its reciprocal root to 2.5 units in the last place. So here moments are products with
    a column of 1 / D, the mean is taken out twice (the first one's rounding error is common to all
    channels), and a Newton step ends the root.
    """

    dtype: Any = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (d,))
        bias = self.param("bias", nn.initializers.zeros, (d,))

        def mean(t):
            return jnp.matmul(t, np.full((d, 1), 1 / d, np.float32), precision="highest")

        x = x.astype(jnp.float32)
        x = x - mean(x)
        x = x - mean(x)
        variance = mean(x * x) + self.epsilon
        root = jax.lax.rsqrt(variance)
        root = root * (1.5 - 0.5 * variance * root * root)
        return (x * root * scale + bias).astype(self.dtype)


def dot_float32(x, kernel, dimensions, precision=None):
    """A matrix product that sums in float32 and rounds once, to the type of x.

    For XLA on a CPU this is more than the definition: only if it may return float32 does it use the
    instructions that multiply bfloat16.
    """
    out = jax.lax.dot_general(
        x, kernel, dimensions, precision=precision, preferred_element_type=jnp.float32
    )
    return out.astype(x.dtype)


Dense = functools.partial(nn.Dense, dot_general=dot_float32)


def gelu(x):
    """x Phi(x) by the error function, as torch has it, in float32 -> the type of x.

    nn.gelu takes the complementary one, which XLA writes out as 60 operations: 3 times as long on a
    CPU, for tails that no float32 sum behind them can see.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * np.float32(0.5**0.5)))).astype(x.dtype)


def split_heads(x, heads: int):
    """[B, N, D] -> [B, heads, N, D / heads]"""
    b, n, d = x.shape
    return x.reshape(b, n, heads, d // heads).transpose(0, 2, 1, 3)


def merge_heads(x):
    """[B, heads, N, d] -> [B, N, heads * d]"""
    b, h, n, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, n, h * d)


class SelfAttention(nn.Module):
    """x: [B, N, D] -> [B, N, D]; `qkv` columns are [q of all heads | k | v].

    `rope` is `Rope`, or any function of [B, heads, N, d] that places tokens in another way.
    """

    heads: int
    dtype: Any = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x, rope: Callable):
        dim = x.shape[-1]
        q, k, v = jnp.split(Dense(3 * dim, dtype=self.dtype, name="qkv")(x), 3, axis=-1)
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))
        x = merge_heads(attention(rope(q), rope(k), v, self.attention))
        return Dense(dim, dtype=self.dtype, name="proj")(x)


class CrossAttention(nn.Module):
    """x: [B, N, D] asks, memory: [B, M, D] answers; each is rotated with its own positions.

    The collection "cross", where it is mutable, gets "queries" [B, heads, N, d] and "keys" as they
    are compared.
    """

    heads: int
    dtype: Any = jnp.float32
    key_bias: bool = True
    attention: str = "auto"

    @nn.compact
    def __call__(self, x, memory, rope: Callable, memory_rope: Callable):
        dense = functools.partial(Dense, x.shape[-1], dtype=self.dtype)
        q = split_heads(dense(name="q")(x), self.heads)
        k = split_heads(dense(use_bias=self.key_bias, name="k")(memory), self.heads)
        v = split_heads(dense(name="v")(memory), self.heads)
        q, k = rope(q), memory_rope(k)
        if not self.is_initializing():  # `init` returns parameters, not what was computed
            self.sow("cross", "queries", q)
            self.sow("cross", "keys", k)
        x = merge_heads(attention(q, k, v, self.attention))
        return dense(name="proj")(x)


class Mlp(nn.Module):
    """[..., D] -> [..., D] through a hidden layer of ratio * D."""

    ratio: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        dim = x.shape[-1]
        x = Dense(int(dim * self.ratio), dtype=self.dtype, name="fc1")(x)
        return Dense(dim, dtype=self.dtype, name="fc2")(gelu(x))


class EncoderBlock(nn.Module):
    """x: [B, N, D] -> [B, N, D]"""

    heads: int
    mlp_ratio: float
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x, rope: Rope):
        dtype, attention = self.compute.dtype, self.compute.attention
        norm = functools.partial(LayerNorm, dtype)
        attend = SelfAttention(self.heads, dtype, attention, name="attn")
        x = x + attend(norm(name="norm1")(x), rope)
        return x + Mlp(self.mlp_ratio, dtype, name="mlp")(norm(name="norm2")(x))


class DecoderBlock(nn.Module):
    """x: [B, N, D] of this view looks at y: [B, M, D] of the other -> [B, N, D]

    rotary_cross: see `DecoderConfig`
    """

    heads: int
    mlp_ratio: float
    compute: Compute = Compute()
    rotary_cross: bool = True

    @nn.compact
    def __call__(self, x, y, rope: Rope, other_rope: Rope):
        dtype, attention = self.compute.dtype, self.compute.attention
        norm = functools.partial(LayerNorm, dtype)
        attend = SelfAttention(self.heads, dtype, attention, name="attn")
        x = x + attend(norm(name="norm1")(x), rope)
        memory = norm(name="norm_y")(y)
        cross = CrossAttention(self.heads, dtype, attention=attention, name="cross_attn")
        turns = (rope, other_rope) if self.rotary_cross else (lambda heads: heads,) * 2
        x = x + cross(norm(name="norm2")(x), memory, *turns)
        return x + Mlp(self.mlp_ratio, dtype, name="mlp")(norm(name="norm3")(x))
