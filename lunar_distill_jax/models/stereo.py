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


class StereoNet(nn.Module):
    """MASt3R (Leroy et al. 2024): images [B, H, W, 3] in [-1, 1] -> (Prediction, Prediction)."""

    config: StereoConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image1, image2) -> tuple[Prediction, Prediction]:
        c = self.config
        encoder = Encoder(c.encoder, c.rope_base, self.dtype, name="encoder")
        (t1, p1, stem1), (t2, p2, stem2) = encode_views(encoder, image1, image2)
        decoder = Decoder(c.decoder, c.rope_base, self.dtype, name="decoder")
        layers1, layers2 = decoder(t1, t2, p1, p2)

        def view(name, image, layers, positions, stem):
            size = (image.shape[1] // c.encoder.patch, image.shape[2] // c.encoder.patch)
            raw = Head(c, self.dtype, name=name)(layers, size, stem)
            prediction = prediction_from_raw(raw, two_confs=c.head.two_confs)
            features = {
                "encoder": layers[0],
                "positions": positions,
                "decoder": tuple(layers[1:]),
                "raw": raw,
            }
            return prediction.replace(features=features)

        return view("head1", image1, layers1, p1, stem1), view("head2", image2, layers2, p2, stem2)
