"""ConvNeXt (Liu et al. 2022), as `transformers`' DINOv3ConvNextModel computes it at inference."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lunar_distill_jax.models.encoders.depthwise import DepthwiseConv
from lunar_distill_jax.models.encoders.dinov3_config import ConvNeXtConfig
from lunar_distill_jax.models.layers import LayerNorm, Mlp


class ConvNeXtBlock(nn.Module):
    """[B, H, W, C] -> [B, H, W, C]"""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        y = DepthwiseConv(7, use_bias=True, dtype=self.dtype, name="depthwise")(x)
        y = Mlp(4.0, self.dtype, name="mlp")(LayerNorm(self.dtype, name="norm")(y))
        # The paper's initial 1e-6: fresh blocks begin as the identity.
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), x.shape[-1:])
        return x + y * scale.astype(self.dtype)


class ConvNeXt(nn.Module):
    """image: [B, H, W, 3] -> (features [B, h, w, D], {"stage0": ..., ...})

    The image has ImageNet's mean and deviation taken out. The first stage has stride 4, each
    other halves the resolution; a last odd row or column is left out. The named features are the
    stages' maps, not normalised.
    """

    config: ConvNeXtConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image):
        c, named, x = self.config, {}, image.astype(self.dtype)
        for i, (width, depth) in enumerate(zip(c.widths, c.depths, strict=True)):
            if i == c.stages:
                break
            size = (2, 2) if i else (4, 4)
            conv = nn.Conv(width, size, size, "VALID", dtype=self.dtype, name=f"down{i}")
            norm = LayerNorm(self.dtype, name=f"down{i}_norm")
            x = conv(norm(x)) if i else norm(conv(x))
            for j in range(depth):
                x = ConvNeXtBlock(self.dtype, name=f"stage{i}_block{j}")(x)
            named[f"stage{i}"] = x
        if c.stages == len(c.widths):
            x = LayerNorm(self.dtype, name="norm")(x)
        return x, named
