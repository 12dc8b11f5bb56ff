"""Any image encoder as the encoder of a student: normalisation, grid alignment, 1x1 adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.dpt import conv1x1
from lunar_distill_jax.models.encoder import Encoded
from lunar_distill_jax.models.encoders.config import (
    AdaptedEncoderConfig,
    CustomConfig,
    MobileNetV3Config,
    ModelConfig,
    ViTConfig,
)
from lunar_distill_jax.models.encoders.convnext import ConvNeXt
from lunar_distill_jax.models.encoders.dinov3 import DINOv3
from lunar_distill_jax.models.encoders.dinov3_config import ConvNeXtConfig, DINOv3Config
from lunar_distill_jax.models.encoders.mobilenet import MobileNetV3
from lunar_distill_jax.models.encoders.resample import resample
from lunar_distill_jax.models.encoders.vit import ViT
from lunar_distill_jax.models.rope import grid_positions

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of RGB in [0, 1]
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


class FromFunction(nn.Module):
    """A function as a module: the flax modules that it calls become parts of this one."""

    function: Callable[[Any], Any]

    @nn.compact
    def __call__(self, image):
        function = self.function
        if isinstance(function, nn.Module):  # built outside: a copy takes its place in this tree
            function = function.clone(parent=self, name="module")
        return function(image)


def backbone(config: ModelConfig, compute: Compute, train: bool) -> nn.Module:
    """The encoder itself: image -> features [B, h, w, D], or (features, {name: feature})."""
    name = "backbone"
    if isinstance(config, MobileNetV3Config):
        return MobileNetV3(config, compute.dtype, train, name=name)
    if isinstance(config, ViTConfig):
        return ViT(config, compute, name=name)
    if isinstance(config, DINOv3Config):
        return DINOv3(config, compute.dtype, name=name)
    if isinstance(config, ConvNeXtConfig):
        return ConvNeXt(config, compute.dtype, name=name)
    assert isinstance(config, CustomConfig) and config.function, config
    return FromFunction(config.function, name=name)


class AdaptedEncoder(nn.Module):
    """image: [B, H, W, 3] in [-1, 1], H and W multiples of 16 -> `Encoded`, H / 16 * W / 16 tokens

    `named` are the encoder's own features, on its own grid.

    train: batch norms use the batch's moments, and update the running ones in "batch_stats"
    """

    config: AdaptedEncoderConfig
    compute: Compute = Compute()
    train: bool = False

    @nn.compact
    def __call__(self, image, portrait=False):
        assert portrait is False, "refused by StereoConfig.check"
        c, b = self.config, image.shape[0]
        h, w = image.shape[1] // c.patch, image.shape[2] // c.patch
        if c.pixels == "imagenet":
            image = (image * 0.5 + (0.5 - IMAGENET_MEAN)) / IMAGENET_STD
        stride = c.model.stride
        if c.align == "image" and stride != c.patch:
            image = resample(image, h * stride, w * stride)
        features, named = self.encode(image)

        # GroupNorm of one group sees the whole map, as the paper's adapter does.
        dtype = self.compute.dtype
        x = conv1x1(c.width, use_bias=False, dtype=dtype, name="adapter")(features)
        options = {"epsilon": 1e-5, "use_fast_variance": False, "dtype": dtype}
        x = nn.GroupNorm(1, **options, name="adapter_norm")(x)
        if c.align == "features":
            x = resample(x, h, w)
        elif x.shape[1:3] != (h, w):
            raise InputError(
                f"The encoder gives {x.shape[1]} x {x.shape[2]} features for an image of "
                f"{image.shape[1]} x {image.shape[2]} pixels, expected {h} x {w}: set its stride, "
                "or align='features'."
            )
        return Encoded(x.reshape(b, h * w, c.width), grid_positions(h, w), [], named)

    def encode(self, image):
        """-> (features [B, h, w, D], {name: feature}) of the encoder itself, its output checked."""
        out = backbone(self.config.model, self.compute, self.train)(image)
        features, named = out if isinstance(out, tuple) else (out, {})
        if features.ndim != 4 or len(features) != len(image):
            raise InputError(
                f"The encoder gives features of shape {features.shape} for an image of "
                f"{image.shape}: expected [B, h, w, D]."
            )
        return features, named
