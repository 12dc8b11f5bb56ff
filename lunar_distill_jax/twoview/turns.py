"""Rolled views: view 2 is tried at its four quarter turns, and the one that matches best is kept.

A network that knows rolls of up to 45 degrees then answers any. The result is turned back exactly:
points are in the camera of view 1 whatever was done to view 2, and maps of pixels turn with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lunar_distill_jax.types import Prediction

TURNS = 4
FIELDS = ("pts3d", "conf", "desc", "desc_conf")
SIDE = 32  # about as many descriptors along a side are compared
TEMPERATURE = 0.05  # of the losses that train descriptors
Predict = Callable[[Any, Any], tuple[Prediction, Prediction]]


def turned(image, quarters: int):
    """[B, H, W, ...] turned counter-clockwise by quarters."""
    return jnp.rot90(image, quarters, axes=(1, 2))


def likeness(desc1, desc2):
    """How well two views' descriptors [B, H, W, K] (unit norm) find each other: [B] in 0 to 1.

    The mean over a grid of view 1 of the largest dual-softmax probability.
    """

    def grid(desc):
        step = max(1, round((desc.shape[1] * desc.shape[2]) ** 0.5 / SIDE))
        some = desc[:, step // 2 :: step, step // 2 :: step]
        return some.reshape(len(desc), -1, desc.shape[-1])

    logits = jnp.einsum("bnk,bmk->bnm", grid(desc1), grid(desc2)) / TEMPERATURE
    both = jax.nn.log_softmax(logits, 1) + jax.nn.log_softmax(logits, 2)
    return jnp.exp(both.max(2)).mean(1)


def predict_turned(predict: Predict, image1, image2) -> tuple[Prediction, Prediction, Any]:
    """`predict` of the best of view 2's quarter turns -> (view 1, view 2, quarters int32 [B]).

    predict: (image1, image2) [B, H, W, 3] -> predictions; their features are not kept
    """
    # Turns of one shape are one batch: the network is then compiled once, or twice, not four times.
    square = image2.shape[1] == image2.shape[2]
    found: dict[int, tuple[Prediction, Prediction]] = {}
    for group in ([0, 1, 2, 3],) if square else ([0, 2], [1, 3]):
        pictures = jnp.concatenate([turned(image2, quarters) for quarters in group])
        both = predict(jnp.concatenate([image1] * len(group)), pictures)
        both = [{f: jnp.split(getattr(p, f), len(group)) for f in FIELDS} for p in both]
        for i, quarters in enumerate(group):
            one, two = ({f: parts[f][i] for f in FIELDS} for parts in both)
            back = {f: turned(two[f], -quarters) for f in FIELDS}
            found[quarters] = Prediction(**one), Prediction(**back)
    each = [found[quarters] for quarters in range(TURNS)]
    scores = jnp.stack([likeness(one.desc, two.desc) for one, two in each])
    best = jnp.argmax(scores, 0)

    def choose(*arrays):
        stacked = jnp.stack(arrays)
        at = best.reshape(1, -1, *(1,) * (stacked.ndim - 2))
        return jnp.take_along_axis(stacked, at, axis=0)[0]

    one, two = jax.tree.map(choose, *each)
    return one, two, best.astype(jnp.int32)
