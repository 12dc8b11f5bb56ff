"""Matching of local features between the views, at lists of pixels (Leroy et al. 2024, MASt3R).

desc: pair of [B, H, W, K] of unit norm; pixels: pair of int32 [B, M, 2] (x, y), entry i of one
belongs to entry i of the other where valid [B, M]; the others are negatives of all.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.losses import infonce
from lunar_distill_jax.losses.reduce import Mean

CHOICES = {
    "mode": ("proper", "dual", "all"),
    "confidence": ("none", "mean", "product"),
    "source": ("truth", "flow", "teacher"),
}


@dataclasses.dataclass(frozen=True)
class MatchingSettings:
    """How descriptors are compared; `mode`, `temperature`, `block` and `floor` as `info_nce` says.

    groups:     entries are shuffled into this many groups that do not see each other (1: no groups)
    padding:    further negatives of view 2: its first pixels, row by row, that are in no list
    confidence: weighs entries by the descriptors' confidences of both views, their mean or product
    alpha:      reward of log-confidence
    negatives:  with a confidence: entries without a partner learn theirs against this quantile of
                the losses; 0: they do not
    source:     partners are the true ones, to half a pixel both ways ("truth", drawn with the
                batch); the pixels nearest to where the true flow leads ("flow", drawn in the step,
                which costs nothing); or those the teacher's descriptors choose each other
    """

    mode: str = "proper"
    temperature: float = 0.05
    block: int = 1024
    floor: float = 0.0
    groups: int = 1
    padding: int = 0
    confidence: str = "none"
    alpha: float = 10.0
    negatives: float = 0.0
    source: str = "truth"

    def __post_init__(self):
        for key, known in CHOICES.items():
            if (value := getattr(self, key)) not in known:
                raise InputError(f"matching.{key} is {value!r}: choose from {', '.join(known)}.")


def gather_pixels(maps, pixels):
    """maps [B, H, W, K] at pixels [B, M, 2] (x, y) -> [B, M, K]"""
    flat = maps.reshape(maps.shape[0], -1, maps.shape[-1])
    index = pixels[..., 1] * maps.shape[2] + pixels[..., 0]
    return jnp.take_along_axis(flat, index[..., None], axis=1)


def pixels_of(index, width: int):
    """Flat indices [...] -> (x, y) [..., 2]"""
    return jnp.stack([index % width, index // width], -1).astype(jnp.int32)


def unlisted(pixels, height: int, width: int, count: int):
    """The first `count` pixels of each frame, row by row, that are not in its list."""

    def one(pixels):
        listed = jnp.zeros(height * width, jnp.int32).at[pixels[:, 1] * width + pixels[:, 0]].set(1)
        return pixels_of(jnp.argsort(listed, stable=True)[:count], width)

    return jax.vmap(one)(pixels)


def losses(desc, pixels, settings: MatchingSettings, order: Any = None):
    """The matching loss of every entry: [B, M]. `order`: int [B, M], the shuffle into groups."""
    s = settings
    a, b = (gather_pixels(d, p) for d, p in zip(desc, pixels, strict=True))
    entry = functools.partial(
        infonce.info_nce,
        mode=s.mode,
        temperature=s.temperature,
        block=s.block,
        floor=s.floor,
        kind="unit" if s.temperature >= infonce.WARM else "cosine",
    )
    if s.padding:
        more = unlisted(pixels[1], desc[1].shape[1], desc[1].shape[2], s.padding)
        b = jnp.concatenate([b, gather_pixels(desc[1], more)], 1)
    if s.groups == 1:
        return jax.vmap(entry)(a, b)
    batch, count = order.shape
    shuffled = (
        jnp.take_along_axis(x, order[..., None], 1).reshape(-1, count // s.groups, x.shape[-1])
        for x in (a, b)
    )
    grouped = jax.vmap(entry)(*shuffled).reshape(batch, count)
    return jnp.take_along_axis(grouped, jnp.argsort(order, axis=1), 1)


def bad_loss(loss, valid, quantile: float):
    """A quantile of the valid entries' losses, between two of them where it falls so: [].

    loss: [...]; valid: bool [...]. Infinite where none is valid. No gradient.
    """
    ordered = jnp.sort(jnp.where(valid, loss, jnp.inf).ravel())
    last = jnp.maximum(valid.sum() - 1, 0)
    at = quantile * last
    low = jnp.floor(at).astype(jnp.int32)
    high = jnp.minimum(low + 1, last)
    bad = ordered[low] + (at - low) * (ordered[high] - ordered[low])
    return jax.lax.stop_gradient(jnp.where(valid.any(), bad, jnp.inf))


def matching(
    desc, desc_conf, pixels, valid, settings: MatchingSettings, order=None, bad: Any = None
) -> Mean:
    """Mean over the valid entries of the batch; with confidences, of l c - alpha log c.

    bad: `bad_loss` of the whole batch, where this is a part of it

    Raises:
      AssertionError: the shapes are not those at the head of this module.
    """
    s = settings
    chex.assert_equal_shape(desc)
    chex.assert_equal_shape([*desc_conf, desc[0][..., 0]])
    for listed in pixels:
        chex.assert_shape(listed, (*valid.shape, 2))
    loss = losses(desc, pixels, s, order)
    if s.confidence == "none":
        return Mean.over(loss, valid)
    one, two = (
        gather_pixels(c[..., None], p)[..., 0] for c, p in zip(desc_conf, pixels, strict=True)
    )
    conf = (one + two) / 2 if s.confidence == "mean" else one * two
    mean = Mean.over(loss * conf - s.alpha * jnp.log(conf), valid)
    if s.negatives:
        # Entries without a partner have no loss of their own: they stand for a bad one, if there
        # is any.
        bad = bad_loss(loss, valid, s.negatives) if bad is None else bad
        some = jnp.isfinite(bad)
        bad = jnp.where(some, bad, 0.0)
        both, alone = jnp.stack([one, two]), jnp.stack([~valid, ~valid])
        mean = mean + Mean.over(bad * both - s.alpha * jnp.log(both), alone & some)
    return mean


def precision(desc, pixels, valid) -> Mean:
    """Mean over valid entries of 1 / rank of the partner. A metric; no gradient."""
    a, b = (gather_pixels(d, p) for d, p in zip(desc, pixels, strict=True))
    return Mean.over(jax.vmap(infonce.average_precision)(a, b), valid)


def divergence(desc, teacher_desc, pixels, *, temperature: float, block: int) -> Mean:
    """KL(teacher || student) between softmaxes of descriptor similarities, both directions.

    teacher_desc: pair of [B, M, K_t], already at `pixels`. Entries need no partner.
    """
    one, two = (gather_pixels(d, p) for d, p in zip(desc, pixels, strict=True))
    t1, t2 = (jax.lax.stop_gradient(t) for t in teacher_desc)
    kl = jax.vmap(
        functools.partial(infonce.similarity_divergence, temperature=temperature, block=block)
    )
    return Mean.of(kl(one, two, t1, t2)) + Mean.of(kl(two, one, t2, t1))
