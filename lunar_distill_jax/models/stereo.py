"""The whole network: two images in, two predictions in the camera of view 1 out."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.decoder import Decoder
from lunar_distill_jax.models.encoder import Encoder, encode_views
from lunar_distill_jax.models.heads import Head, prediction_from_raw
from lunar_distill_jax.types import Prediction


class UnusedConv(nn.Module):
    """The parameters of a 3x3 convolution between `width` channels, without the convolution."""

    width: int

    @nn.compact
    def __call__(self):
        self.param("kernel", nn.initializers.lecun_normal(), (3, 3, self.width, self.width))
        self.param("bias", nn.initializers.zeros, (self.width,))


class Unused(nn.Module):
    """Tensors of the released files that no computation reads: 2,361,088 numbers of the teacher.

    The mask of the pre-training, and in each head the first unit of the coarsest fusion, which has
    one input and so nothing to add.
    """

    config: StereoConfig

    @nn.compact
    def __call__(self):
        self.param("mask_token", nn.initializers.zeros, (1, 1, self.config.decoder.width))
        for name in ("head1_conv1", "head1_conv2", "head2_conv1", "head2_conv2"):
            UnusedConv(self.config.head.width, name=name)()


def oriented_raw(head: Head, layers, size: tuple[int, int], stem, portrait):
    """Raw channels [B, H, W, C] in the orientation of the stored arrays.

    A portrait sample's head runs on the upright grid and its result is transposed. Where the batch
    is known to be of one kind (`portrait` is a bool), or turns out to be so on the device
    ([B] bool), the head runs once.
    """
    h, w = size

    def stored(head, layers):
        return head(layers, (h, w), stem)

    def upright(head, layers):
        return head(layers, (w, h), stem).swapaxes(1, 2)

    if isinstance(portrait, bool):
        return (upright if portrait else stored)(head, layers)

    def nothing(head, layers):
        p, c = head.config.encoder.patch, head.config.head
        return jnp.zeros((len(portrait), h * p, w * p, 4 + c.desc + c.two_confs), jnp.float32)

    return jnp.where(
        portrait[:, None, None, None],
        nn.cond(jnp.any(portrait), upright, nothing, head, layers),
        nn.cond(jnp.all(portrait), nothing, stored, head, layers),
    )


class StereoNet(nn.Module):
    """MASt3R (Leroy et al. 2024): images [B, H, W, 3] in [-1, 1] -> (Prediction, Prediction).

    portrait1, portrait2: which samples are portrait images stored transposed in landscape arrays,
                          as `Encoder` takes it; maps keep the stored orientation, tokens run
                          through the upright picture
    """

    config: StereoConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image1, image2, portrait1=False, portrait2=False
    ) -> tuple[Prediction, Prediction]:
        c = self.config
        if c.keep_unused:
            Unused(c, name="unused")()
        encoder = Encoder(c.encoder, c.rope_base, self.dtype, name="encoder")
        (t1, p1, stem1), (t2, p2, stem2) = encode_views(
            encoder, image1, image2, portrait1, portrait2
        )
        decoder = Decoder(c.decoder, c.rope_base, self.dtype, name="decoder")
        layers1, layers2 = decoder(t1, t2, p1, p2)

        def view(name, image, layers, positions, stem, portrait):
            size = (image.shape[1] // c.encoder.patch, image.shape[2] // c.encoder.patch)
            raw = oriented_raw(Head(c, self.dtype, name=name), layers, size, stem, portrait)
            prediction = prediction_from_raw(raw, two_confs=c.head.two_confs)
            features = {
                "encoder": layers[0],
                "positions": positions,
                "decoder": tuple(layers[1:]),
                "raw": raw,
            }
            return prediction.replace(features=features)

        return (
            view("head1", image1, layers1, p1, stem1, portrait1),
            view("head2", image2, layers2, p2, stem2, portrait2),
        )
