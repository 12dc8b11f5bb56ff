"""The image encoder: patches (or a convolutional stem), rotary blocks, a final norm."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.config import EncoderConfig
from lunar_distill_jax.models.convolution import Conv
from lunar_distill_jax.models.layers import Dense, EncoderBlock, LayerNorm, Rope
from lunar_distill_jax.models.rope import grid_positions, rotary_table


class Encoded(NamedTuple):
    """What an encoder says of a batch of images.

    tokens:    [B, N, D], row by row
    positions: int32 (row, column) of the tokens, [N, 2], or [B, N, 2]
    stem:      maps of a convolutional stem [B, H / 2^i, W / 2^i, C], fine to coarse, or []
    named:     {name: feature} of the encoder's inside, each with the batch first; may be empty
    """

    tokens: Any
    positions: Any
    stem: Any
    named: Any


def by_orientation(portrait, upright, stored):
    """`upright` [B, N, C] for portrait samples, else `stored`; `portrait` is a bool or [B] bool."""
    if isinstance(portrait, bool):
        return upright if portrait else stored
    return jnp.where(portrait[:, None, None], upright, stored)


class PatchEmbed(nn.Module):
    """Patch convolution as one matrix product. image: [B, H, W, 3] -> tokens [B, h * w, D].

    A `portrait` image is stored transposed: its patches and their order are transposed back, so its
    tokens run row by row through the upright picture.
    """

    width: int
    patch: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image, portrait=False):
        p, (b, height, width, c) = self.patch, image.shape
        # Same distribution as nn.Conv's: fan-in is p * p * c.
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (p, p, c, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        patches = image.reshape(b, height // p, p, width // p, p, c)
        tokens = patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * c)  # [B, N, p*p*3]
        upright = patches.transpose(0, 3, 1, 4, 2, 5).reshape(tokens.shape)
        tokens = by_orientation(portrait, upright, tokens)
        kernel = kernel.reshape(-1, self.width).astype(self.dtype)
        return tokens.astype(self.dtype) @ kernel + bias.astype(self.dtype)


class ConvStem(nn.Module):
    """Convolutions that halve the resolution, each but the first followed by a residual one.

    image: [B, H, W, 3] -> list of maps [B, H / 2^i, W / 2^i, widths[i - 1]], fine to coarse
    """

    widths: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image):
        x, maps = image.astype(self.dtype), []
        for i, width in enumerate(self.widths):
            x = Conv(width, (3, 3), (2, 2), padding=1, dtype=self.dtype, name=f"down{i}")(x)
            y = nn.gelu(nn.GroupNorm(8, dtype=self.dtype, name=f"norm{i}")(x))
            # The first level has most pixels and least to say: no second convolution there.
            x = x + Conv(width, (3, 3), padding=1, dtype=self.dtype, name=f"conv{i}")(y) if i else y
            maps.append(x)
        return maps


def grid_embedding(h: int, w: int, width: int) -> np.ndarray:
    """Sine-cosine embedding of patch centres scaled to [-1, 1]: float32 [h * w, width]."""
    y, x = np.meshgrid(*((np.arange(n) + 0.5) / n * 2 - 1 for n in (h, w)), indexing="ij")
    frequency = np.pi / 2 * 2.0 ** np.linspace(0, 4, width // 4)
    angle = np.stack([y, x], -1).reshape(-1, 2, 1) * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], -1).reshape(h * w, -1).astype(np.float32)


class Encoder(nn.Module):
    """image: [B, H, W, 3] in [-1, 1] -> `Encoded`

    portrait: which samples are portrait images stored transposed: a bool for all, or [B] bool;
              positions are [B, N, 2] where it is an array
    """

    config: EncoderConfig
    rope_base: float = 100.0
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, image, portrait=False):
        c, dtype = self.config, self.compute.dtype
        h, w = image.shape[1] // c.patch, image.shape[2] // c.patch
        positions, maps = grid_positions(*((w, h) if portrait is True else (h, w))), []
        if not isinstance(portrait, bool):
            positions = by_orientation(portrait, grid_positions(w, h)[None], positions[None])
        if c.stem:
            maps = ConvStem(c.stem, dtype, name="stem")(image)
            x = Dense(c.width, dtype=dtype, name="embed")(maps[-1])
            x = x.reshape(x.shape[0], h * w, c.width)
        else:
            x = PatchEmbed(c.width, c.patch, dtype, name="patch_embed")(image, portrait)
        if c.grid:
            x = x + grid_embedding(h, w, c.width).astype(dtype)[None]
        rope = Rope(*rotary_table(positions, c.width // c.heads, self.rope_base))
        block = self.compute.block(EncoderBlock)
        for i in range(c.depth):
            x = block(c.heads, c.mlp_ratio, self.compute, name=f"block{i}")(x, rope)
        return Encoded(LayerNorm(dtype=dtype, name="norm")(x), positions, maps, {})


def encode_views(
    encoder, image1, image2, portrait1=False, portrait2=False
) -> tuple[Encoded, Encoded]:
    """Both views through one encoder: as one batch where their sizes agree, else one by one."""
    if image1.shape != image2.shape:
        return encoder(image1, portrait1), encoder(image2, portrait2)
    b, portrait = image1.shape[0], portrait1
    if not (isinstance(portrait1, bool) and portrait1 is portrait2):
        portrait = jnp.concatenate([jnp.broadcast_to(p, (b,)) for p in (portrait1, portrait2)])
    both = encoder(jnp.concatenate([image1, image2]), portrait)

    def half(rows):
        tokens, stem, named = jax.tree.map(lambda x: x[rows], (both.tokens, both.stem, both.named))
        positions = both.positions if both.positions.ndim == 2 else both.positions[rows]
        return Encoded(tokens, positions, stem, named)

    return half(slice(b)), half(slice(b, None))
