"""A cheap dense head: concatenated token maps, convolved as they are and four times as fine."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from lunar_distill_jax.models.config import HeadConfig
from lunar_distill_jax.models.convolution import Conv
from lunar_distill_jax.models.dpt import ResidualUnit, conv1x1
from lunar_distill_jax.models.resize import double


def depth_to_space(x, block: int):
    """[B, h, w, block * block * C] -> [B, block * h, block * w, C]; C is the fastest channel."""
    b, h, w, c = x.shape
    c //= block * block
    x = x.reshape(b, h, w, block, block, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * block, w * block, c)


class Ladder(nn.Module):
    """Up the maps of a convolutional stem: shading says slopes, which convolutions sum to heights.

    x: [B, h, w, C], stem: its maps of h x w pixels and of each doubled size, fine to coarse
    -> [B, 2^n h, 2^n w, C / 2^n], n + 1 maps
    """

    @nn.compact
    def __call__(self, x, stem):
        for i in reversed(range(len(stem))):
            units = 1
            if stem[i].shape[1] > x.shape[1]:
                x = double(conv1x1(x.shape[-1] // 2, name=f"up{i}")(x))
                units = 2
            x = x + conv1x1(x.shape[-1], name=f"skip{i}")(stem[i])
            for j in range(units):
                x = ResidualUnit(name=f"unit{i}{j}")(x)
        return x


class CatConv(nn.Module):
    """Four token maps -> one output for each pixel, without a pyramid: pixels are channels.

    tokens: four of [B, h * w, D_i], size: (h, w), stem: [] or the encoder's stem maps, of which the
            one with 4 h x 4 w pixels is added where the map is as fine
    -> [B, patch * h, patch * w, channels] in float32, and the finest map
       [B, 4 h, 4 w, last] that it was read from

    Where DPT spends most of its work on maps at 1/2 and 1/1, this one has its last convolution with
    a neighbourhood at 4 / patch; what is finer comes from its channels (Shi et al. 2016).
    """

    config: HeadConfig
    channels: int
    patch: int = 16

    @nn.compact
    def __call__(self, tokens, size: tuple[int, int], stem=()):
        c = self.config
        x = jnp.concatenate([t.astype(jnp.float32) for t in tokens], axis=-1)
        x = x.reshape(x.shape[0], *size, x.shape[-1])
        x = conv1x1(c.width, name="project")(x)
        coarse = ResidualUnit(name="unit0")(x)
        x = depth_to_space(conv1x1(4 * c.width, name="expand")(coarse), 4)
        stem = [m for m in stem if m.shape[1] <= x.shape[1]]
        if stem and stem[0].shape[1] == x.shape[1]:
            x = x + conv1x1(x.shape[-1], name="skip")(stem[0])
            slopes = Ladder(name="ladder")(coarse, stem)
            x = x + conv1x1(x.shape[-1], name="add")(slopes)
        x = ResidualUnit(name="unit1")(x)  # [B, 4 h, 4 w, width / 4]
        fine = nn.relu(Conv(c.last, (3, 3), padding=1, name="head1")(x))
        more = self.patch // 4
        x = conv1x1(more * more * self.channels, name="head2")(fine)
        return depth_to_space(x, more), fine
