"""The whole network: two images in, two predictions in the camera of view 1 out."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.decoder import Decoder
from lunar_distill_jax.models.encoder import Encoded, Encoder, encode_views
from lunar_distill_jax.models.encoders.adapted import AdaptedEncoder
from lunar_distill_jax.models.encoders.config import AdaptedEncoderConfig
from lunar_distill_jax.models.heads import Head, prediction_from_raw
from lunar_distill_jax.models.unused import hold_unused
from lunar_distill_jax.types import Prediction


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


def encoder_of(config: StereoConfig, compute: Compute, train: bool) -> nn.Module:
    if isinstance(config.encoder, AdaptedEncoderConfig):
        return AdaptedEncoder(config.encoder, compute, train, name="encoder")
    return Encoder(config.encoder, config.rope_base, compute, name="encoder")


def in_turns(one: Encoded, two: Encoded) -> Encoded:
    """Rows of `one` and `two` in turns: [B, ...] -> [2 B, ...]. Both are of one size, upright."""

    def turns(a, b):
        return jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])

    tokens, stem, named = (
        jax.tree.map(turns, getattr(one, key), getattr(two, key))
        for key in ("tokens", "stem", "named")
    )
    return one._replace(tokens=tokens, stem=stem, named=named)


class StereoNet(nn.Module):
    """MASt3R (Leroy et al. 2024): images [B, H, W, 3] in [-1, 1] -> (Prediction, Prediction).

    portrait1, portrait2: which samples are portrait images stored transposed in landscape arrays,
                          as `Encoder` takes it; maps keep the stored orientation, tokens run
                          through the upright picture
    symmetric:            also predict the pair with its views swapped: 2 B rows, (a, b) and (b, a)
                          in turns; each image is encoded once
    train:                batch norms of the encoder (MobileNetV3 has them) use the batch's own
                          moments, and update the collection "batch_stats"
    """

    config: StereoConfig
    compute: Compute = Compute()
    train: bool = False

    @nn.compact
    def __call__(
        self, image1, image2, portrait1=False, portrait2=False, symmetric: bool = False
    ) -> tuple[Prediction, Prediction]:
        c = self.config
        if c.keep_unused:
            hold_unused(c)
        encoder = encoder_of(c, self.compute, self.train)
        one, two = encode_views(encoder, image1, image2, portrait1, portrait2)
        if symmetric:
            one, two = in_turns(one, two), in_turns(two, one)
        decoder = Decoder(c.decoder, c.rope_base, self.compute, name="decoder")
        layers1, layers2 = decoder(one.tokens, two.tokens, one.positions, two.positions)
        names = ("head", "head") if c.head.shared else ("head1", "head2")
        heads = {name: Head(c, name=name) for name in dict.fromkeys(names)}

        def view(head, image, layers, encoded, portrait):
            size = (image.shape[1] // c.encoder.patch, image.shape[2] // c.encoder.patch)
            raw = oriented_raw(head, layers, size, encoded.stem, portrait)
            prediction = prediction_from_raw(raw, two_confs=c.head.two_confs)
            features = {
                "encoder": layers[0],
                "positions": encoded.positions,
                "decoder": tuple(layers[1:]),
                "raw": raw,
                "backbone": encoded.named,
            }
            return dataclasses.replace(prediction, features=features)

        return (
            view(heads[names[0]], image1, layers1, one, portrait1),
            view(heads[names[1]], image2, layers2, two, portrait2),
        )
