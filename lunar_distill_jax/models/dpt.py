"""The dense prediction transformer head (Ranftl et al. 2021) as MASt3R uses it: no batch norm."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp

from lunar_distill_jax.models.config import HeadConfig
from lunar_distill_jax.models.convolution import Conv
from lunar_distill_jax.models.layers import LayerNorm
from lunar_distill_jax.models.resize import double


def pointwise(x, kernel, *_, **__):
    """A 1x1 convolution as a matrix product: on a CPU up to 10 times faster.

    x: [B, H, W, C_in], kernel: [1, 1, C_in, C_out]; the other arguments are those of a convolution
    """
    return x @ kernel[0, 0]


conv1x1 = functools.partial(nn.Conv, kernel_size=(1, 1), conv_general_dilated=pointwise)


class Unpatch(nn.Module):
    """Transposed convolution whose kernel equals its stride, as a product and a reshape.

    [B, h, w, C] -> [B, s h, s w, C]; kernel [s, s, C_in, C_out], not flipped
    """

    stride: int

    @nn.compact
    def __call__(self, x):
        s, (b, h, w, c) = self.stride, x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=2), (s, s, c, c))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        x = jnp.einsum("bhwi,yxio->bhywxo", x, kernel.astype(x.dtype))
        return x.reshape(b, s * h, s * w, c) + bias.astype(x.dtype)


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), both 3x3 of the same width."""

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(Conv, x.shape[-1], (3, 3), padding=1)
        return x + conv(name="conv2")(nn.relu(conv(name="conv1")(nn.relu(x))))


class Fusion(nn.Module):
    """Adds the next finer map to the coarse path, refines, doubles the size."""

    @nn.compact
    def __call__(self, coarse, fine=None):
        x = coarse
        if fine is not None:
            x = x + ResidualUnit(name="unit1")(fine)
        x = ResidualUnit(name="unit2")(x)
        # The 1x1 convolution commutes with the interpolation, whose weights sum to 1: a quarter of
        # the work.
        return double(conv1x1(x.shape[-1], name="out")(x))


class DensePrediction(nn.Module):
    """Four token maps -> one output for each pixel.

    tokens: four of [B, h * w, D_i] (fine to coarse use), size: (h, w), stem: [] or the encoder's
            stem maps
    -> [B, 16 h, 16 w, channels] in float32
    """

    config: HeadConfig
    channels: int

    @nn.compact
    def __call__(self, tokens, size: tuple[int, int], stem=()):
        c = self.config
        maps = [t.astype(jnp.float32).reshape(t.shape[0], *size, t.shape[-1]) for t in tokens]
        maps = [
            conv1x1(n, name=f"project{i}")(m)
            for i, (n, m) in enumerate(zip(c.layers, maps, strict=True))
        ]
        maps[0] = Unpatch(4, name="resize0")(maps[0])
        maps[1] = Unpatch(2, name="resize1")(maps[1])
        maps[3] = Conv(c.layers[3], (3, 3), (2, 2), padding=1, name="resize3")(maps[3])
        maps = [
            Conv(c.width, (3, 3), padding=1, use_bias=False, name=f"layer{i}")(m)
            for i, m in enumerate(maps)
        ]
        # Level i of the pyramid and level i + 1 of the stem both have stride 4 * 2^i.
        for i, m in enumerate(stem[1:]):
            maps[i] = maps[i] + Conv(c.width, (3, 3), padding=1, name=f"skip{i}")(m)

        x = Fusion(name="fusion3")(maps[3])
        # An odd grid comes back one row or column too large from its halved map.
        x = x[:, : maps[2].shape[1], : maps[2].shape[2]]
        for i in (2, 1, 0):
            x = Fusion(name=f"fusion{i}")(x, maps[i])

        x = Conv(c.width // 2, (3, 3), padding=1, name="head0")(x)
        x = x if c.late_double else double(x)
        x = nn.relu(Conv(c.last, (3, 3), padding=1, name="head1")(x))
        if c.last_norm:
            x = LayerNorm(name="norm")(x)
        x = conv1x1(self.channels, name="head2")(x)
        return double(x) if c.late_double else x
