"""Plain vision transformers (Dosovitskiy et al. 2021): timm's ViT at any size, DINOv2, DUNE."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.encoder import PatchEmbed
from lunar_distill_jax.models.encoders.config import ViTConfig
from lunar_distill_jax.models.encoders.resample import interpolation_matrix
from lunar_distill_jax.models.layers import LayerNorm, Mlp, SelfAttention


def resample_positions(table, h: int, w: int, offset: float = 0.0):
    """Learned positions for another grid, as `ViTConfig.offset` says.

    table: [1, 1 + g * g, D], the class token's first -> [1, 1 + h * w, D]
    """
    g = int((table.shape[1] - 1) ** 0.5)
    if (h, w) == (g, g):
        return table

    def matrix(n):
        if offset:
            return interpolation_matrix(g, n, "cubic", scale=g / (n + offset))
        return interpolation_matrix(g, n, "cubic", antialias=True)

    patches = table[0, 1:].reshape(g, g, -1)
    patches = jnp.einsum("uvd,yu->yvd", patches, matrix(h))
    patches = jnp.einsum("yvd,xv->yxd", patches, matrix(w)).reshape(1, h * w, -1)
    return jnp.concatenate([table[:, :1], patches], axis=1)


def no_rotation(heads):
    """In place of rotary positions: here they are learned and added to the tokens."""
    return heads


class ViTBlock(nn.Module):
    """x: [B, N, D] -> [B, N, D]"""

    config: ViTConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x):
        c, dtype = self.config, self.compute.dtype

        def scaled(name, y):
            if not c.layer_scale:
                return y
            return y * self.param(name, nn.initializers.ones, (c.width,)).astype(dtype)

        y = LayerNorm(dtype, name="norm1")(x)
        attend = SelfAttention(c.heads, dtype, self.compute.attention, name="attn")
        x = x + scaled("scale1", attend(y, no_rotation))
        y = LayerNorm(dtype, name="norm2")(x)
        return x + scaled("scale2", Mlp(c.mlp_ratio, dtype, name="mlp")(y))


class ViT(nn.Module):
    """image: [B, H, W, 3] -> (features [B, h, w, D], {name: feature})

    The image is padded with its last row and column to a multiple of the patch. Named features:
    "block0" ... after each block, [B, h, w, D], and "class", the normalised class token [B, D].
    """

    config: ViTConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, image):
        c, dtype, (b, height, width, _) = self.config, self.compute.dtype, image.shape
        h, w = -(-height // c.patch), -(-width // c.patch)
        padding = ((0, 0), (0, h * c.patch - height), (0, w * c.patch - width), (0, 0))
        image = jnp.pad(image, padding, mode="edge")
        normal = nn.initializers.normal(0.02)
        first = self.param("cls_token", normal, (1, 1, c.width))
        table = self.param("pos_embed", normal, (1, 1 + c.grid * c.grid, c.width))
        positions = resample_positions(table, h, w, c.offset).astype(dtype)

        x = PatchEmbed(c.width, c.patch, dtype, name="patch_embed")(image)
        first = jnp.broadcast_to(first.astype(dtype), (b, 1, c.width))
        x = jnp.concatenate([first, x], axis=1) + positions
        if c.registers:
            tokens = self.param("register_tokens", normal, (1, c.registers, c.width))
            tokens = jnp.broadcast_to(tokens.astype(dtype), (b, c.registers, c.width))
            x = jnp.concatenate([x[:, :1], tokens, x[:, 1:]], axis=1)

        def patches(x):
            return x[:, 1 + c.registers :].reshape(b, h, w, c.width)

        named = {}
        for i in range(c.depth):
            x = self.compute.block(ViTBlock)(c, self.compute, name=f"block{i}")(x)
            named[f"block{i}"] = patches(x)
        x = LayerNorm(dtype, name="norm")(x)
        return patches(x), {**named, "class": x[:, 0]}
