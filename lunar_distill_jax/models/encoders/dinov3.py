"""DINOv3's vision transformer, as `transformers`' DINOv3ViTModel computes it at inference.

Its rotary positions are not MASt3R's: coordinates are those of patch centres, scaled to [-1, 1]
along each side whatever the size, and a pair of channels is half a head apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax.models.encoder import PatchEmbed
from lunar_distill_jax.models.encoders.dinov3_config import DINOv3Config
from lunar_distill_jax.models.layers import CrossAttention, LayerNorm, Mlp

EPSILON = 1e-5  # of every LayerNorm


def rotary_table(
    h: int, w: int, head_size: int, base: float = 100.0, first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """For `rotate`: cosines and sines, float32 [first + h * w, d], in quarters [y, x, y, x].

    The `first` rows turn nothing: class and register tokens have no place. Training also shifts,
    stretches and jitters the coordinates; inference does not, and neither does this.
    """
    y, x = np.meshgrid(*((np.arange(n) + 0.5) / n * 2 - 1 for n in (h, w)), indexing="ij")
    quarter = head_size // 4
    frequency = 2 * np.pi * base ** (-np.arange(quarter) / quarter)
    angle = (np.stack([y, x], -1).reshape(-1, 2, 1) * frequency).reshape(h * w, 2 * quarter)
    angle = np.pad(np.tile(angle, 2), ((first, 0), (0, 0)))
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate(x, cos, sin):
    """Turns the channels (k, k + d/2) of x: [..., N, d] by the angles of `rotary_table`."""
    a, b = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-b, a], axis=-1)
    return x * cos.astype(x.dtype) + turned * sin.astype(x.dtype)


class GatedMlp(nn.Module):
    """SwiGLU: [..., D] -> [..., D]; a hidden layer of ratio * D is gated by another of its size."""

    ratio: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        hidden = int(x.shape[-1] * self.ratio)
        gate = nn.silu(nn.Dense(hidden, dtype=self.dtype, name="gate")(x))
        y = gate * nn.Dense(hidden, dtype=self.dtype, name="fc1")(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


class DINOv3Block(nn.Module):
    """x: [B, N, D] -> [B, N, D]; `rope` turns the heads [B, heads, N, d] of queries and keys."""

    config: DINOv3Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, rope: Callable):
        c = self.config
        norm = functools.partial(LayerNorm, self.dtype, EPSILON)

        def scaled(name, y):  # LayerScale (Touvron et al. 2021)
            return y * self.param(name, nn.initializers.ones, (c.width,)).astype(self.dtype)

        y = norm(name="norm1")(x)
        attend = CrossAttention(c.heads, self.dtype, key_bias=False, name="attn")
        x = x + scaled("scale1", attend(y, y, rope, rope))
        mlp = (GatedMlp if c.gated else Mlp)(c.mlp_ratio, self.dtype, name="mlp")
        return x + scaled("scale2", mlp(norm(name="norm2")(x)))


class DINOv3(nn.Module):
    """image: [B, H, W, 3] -> (features [B, h, w, D], {name: feature})

    The image has ImageNet's mean and deviation taken out. h = H // patch: rows and columns that
    fill no patch are left out. Named features: "block0" ... after each block, [B, h, w, D], and
    "class", the normalised class token [B, D].
    """

    config: DINOv3Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image):
        c, b = self.config, image.shape[0]
        h, w = image.shape[1] // c.patch, image.shape[2] // c.patch
        image = image[:, : h * c.patch, : w * c.patch]
        normal = nn.initializers.normal(0.02)
        first = [self.param("cls_token", normal, (1, 1, c.width))]
        if c.registers:
            first.append(self.param("register_tokens", normal, (1, c.registers, c.width)))
        first = jnp.concatenate(first, axis=1).astype(self.dtype)
        n = first.shape[1]
        x = PatchEmbed(c.width, c.patch, self.dtype, name="patch_embed")(image)
        x = jnp.concatenate([jnp.broadcast_to(first, (b, n, c.width)), x], axis=1)

        def patches(x):
            return x[:, n:].reshape(b, h, w, c.width)

        cos, sin = rotary_table(h, w, c.width // c.heads, c.rope_base, n)
        rope, named = functools.partial(rotate, cos=cos, sin=sin), {}
        for i in range(c.depth):
            x = DINOv3Block(c, self.dtype, name=f"block{i}")(x, rope)
            named[f"block{i}"] = patches(x)
        x = LayerNorm(self.dtype, EPSILON, name="norm")(x)
        return patches(x), {**named, "class": x[:, 0]}
