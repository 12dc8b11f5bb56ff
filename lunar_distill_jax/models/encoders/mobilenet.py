"""MobileNetV3-Large (Howard et al. 2019) as timm's `mobilenetv3_large_100` computes it."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lunar_distill_jax.models.dpt import conv1x1
from lunar_distill_jax.models.encoders.config import MobileNetV3Config
from lunar_distill_jax.models.encoders.depthwise import DepthwiseConv


class Block(NamedTuple):
    """One inverted residual: kernel size, stride, hidden and output channels, gate channels.

    hidden 0: no expansion (the first block); gate 0: no squeeze-and-excitation
    """

    kernel: int
    stride: int
    hidden: int
    out: int
    gate: int


# Table 1 of the paper. Stages 0 to 2 use ReLU, the later ones hard-swish.
STAGES: tuple[tuple[Block, ...], ...] = (
    (Block(3, 1, 0, 16, 0),),
    (Block(3, 2, 64, 24, 0), Block(3, 1, 72, 24, 0)),
    (Block(5, 2, 72, 40, 24), Block(5, 1, 120, 40, 32), Block(5, 1, 120, 40, 32)),
    (
        *(Block(3, 2, 240, 80, 0), Block(3, 1, 200, 80, 0)),
        *(Block(3, 1, 184, 80, 0), Block(3, 1, 184, 80, 0)),
    ),
    (Block(3, 1, 480, 112, 120), Block(3, 1, 672, 112, 168)),
    (Block(5, 2, 672, 160, 168), Block(5, 1, 960, 160, 240), Block(5, 1, 960, 160, 240)),
)
LAST = 960  # channels of stage 6, one 1x1 convolution


class BatchNorm(nn.Module):
    """torch's BatchNorm2d: over all but the last axis, epsilon 1e-5, momentum 0.1.

    With `train` it normalises with the batch's own moments and updates the running ones, which are
    in the collection "batch_stats": the variance there is the unbiased one, the one applied is not.
    """

    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, c)
        bias = self.param("bias", nn.initializers.zeros, c)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, c)
        running_var = self.variable("batch_stats", "var", jnp.ones, c)
        mean, var = running_mean.value, running_var.value
        if self.train:
            x32 = x.astype(jnp.float32)
            mean = jnp.mean(x32, (0, 1, 2))
            var = jnp.mean(jnp.square(x32 - mean), (0, 1, 2))
            if not self.is_initializing():
                n = x.size // x.shape[-1]
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                running_var.value = 0.9 * running_var.value + 0.1 * var * (n / (n - 1))
        scale = scale / jnp.sqrt(var + 1e-5)
        return x * scale.astype(self.dtype) + (bias - mean * scale).astype(self.dtype)


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, activation; padded by half the kernel on all sides."""

    features: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    activation: Any = None
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        k, s = self.kernel, self.stride
        if self.depthwise:
            x = DepthwiseConv(k, s, dtype=self.dtype, name="conv")(x)
        else:
            options = {"use_bias": False, "dtype": self.dtype, "name": "conv"}
            if k == 1:
                x = conv1x1(self.features, **options)(x)
            else:
                x = nn.Conv(self.features, (k, k), (s, s), padding=k // 2, **options)(x)
        x = BatchNorm(self.train, self.dtype, name="norm")(x)
        return x if self.activation is None else self.activation(x)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that sees the mean of all channels."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        y = jnp.mean(x, (1, 2), keepdims=True)
        y = nn.relu(conv1x1(self.hidden, dtype=self.dtype, name="reduce")(y))
        y = conv1x1(x.shape[-1], dtype=self.dtype, name="expand")(y)
        return x * jax.nn.hard_sigmoid(y)


class InvertedResidual(nn.Module):
    """[B, H, W, C] -> [B, H / stride, W / stride, out]"""

    block: Block
    activation: Any
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, kwargs = self.block, {"train": self.train, "dtype": self.dtype}
        y = x
        if b.hidden:
            y = ConvNorm(b.hidden, activation=self.activation, **kwargs, name="expand")(y)
        depthwise = {"depthwise": True, "activation": self.activation, "name": "depthwise"}
        y = ConvNorm(y.shape[-1], b.kernel, b.stride, **depthwise, **kwargs)(y)
        if b.gate:
            y = SqueezeExcite(b.gate, self.dtype, name="gate")(y)
        y = ConvNorm(b.out, **kwargs, name="project")(y)
        return x + y if b.stride == 1 and x.shape[-1] == b.out else y


class MobileNetV3(nn.Module):
    """image: [B, H, W, 3] -> (features [B, H / stride, W / stride, D], {"stage0": ..., ...})

    Sizes that the stride does not divide are rounded up. `train`: see `BatchNorm`.
    """

    config: MobileNetV3Config
    dtype: Any = jnp.float32
    train: bool = False

    @nn.compact
    def __call__(self, image):
        kwargs, named = {"train": self.train, "dtype": self.dtype}, {}
        x = ConvNorm(16, 3, 2, activation=jax.nn.hard_swish, **kwargs, name="stem")(image)
        for i, blocks in enumerate(STAGES[: self.config.stages]):
            activation = nn.relu if i < 3 else jax.nn.hard_swish
            for j, block in enumerate(blocks):
                name = f"stage{i}_block{j}"
                x = InvertedResidual(block, activation, **kwargs, name=name)(x)
            named[f"stage{i}"] = x
        if self.config.stages > len(STAGES):
            x = ConvNorm(LAST, activation=jax.nn.hard_swish, **kwargs, name="last")(x)
            named[f"stage{len(STAGES)}"] = x
        return x, named
