"""The teacher from a cache: what is kept of its outputs, and targets made from that."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp

from lunar_distill_jax.losses.settings import LossSettings
from lunar_distill_jax.losses.targets import Targets, symmetrised, teacher_targets
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.heads import LocalFeatures, unit_descriptors
from lunar_distill_jax.train.forward import TargetFn
from lunar_distill_jax.types import Prediction

CACHED = "cached/"  # begins the names of what a batch brings of the teacher's outputs


def kept_fields(on: Collection[str], settings: LossSettings) -> set[str]:
    """What a cache must hold of a teacher for these losses; see `kept_outputs`."""
    kept = {"points"}
    if "confidence" in on or (settings.points.weighting == "teacher" and "points" in on):
        kept.add("conf")
    if settings.least_sure or settings.least_confidence:
        kept.add("conf")
    if {"features", "relational"} & set(on):
        kept.add("tokens")
    if "hooks" in on:
        kept.add("decoder")
    if "descriptors" in on or ("matching" in on and settings.matching.source == "teacher"):
        kept |= {"tokens", "last"}
    return kept


def kept_outputs(
    predictions: tuple[Prediction, Prediction],
    fields: Collection[str],
    hooks: tuple[int, ...],
    *,
    symmetric: bool,
) -> dict[str, Any]:
    """What a cache keeps of a teacher's outputs: {name: [B, ...]}, `cached_teacher`'s input.

    "points" and "conf" [B, R, 2, H, W, 3 or 1]: of R rows a pair, 2 if symmetric, else 1, and of
    both views; "tokens" [B, 2, N, D] of the encoder, the same in both rows; "decoder_K" and "last"
    [B, R, 2, N, D], the hooked decoder layers and the last one, that descriptors come from
    """
    rows = 2 if symmetric else 1

    def both(of):
        x = jnp.stack([of(p) for p in predictions], 1)
        return x.reshape(-1, rows, *x.shape[1:])

    found = {"points": lambda: both(lambda p: p.pts3d), "conf": lambda: both(lambda p: p.conf)}
    found["tokens"] = lambda: both(lambda p: p.features["encoder"])[:, 0]
    found["last"] = lambda: both(lambda p: p.features["decoder"][-1])
    out = {name: found[name]() for name in fields if name in found}
    out |= {"conf": out["conf"][..., None]} if "conf" in out else {}
    if "decoder" in fields:
        for i in filter(None, hooks):
            out[f"decoder_{i}"] = both(lambda p, i=i: p.features["decoder"][i - 1])
    return {k: v.astype(jnp.float32) for k, v in out.items()}


def cached_teacher(
    config: StereoConfig,
    on: Collection[str],
    settings: LossSettings,
    *,
    symmetric: bool = False,
    matches: int = 0,
) -> TargetFn:
    """As `live_teacher`, from outputs that the batch brings under `CACHED` names (`kept_outputs`).

    The variables are those of `descriptor_variables`.
    """
    fields = kept_fields(on, settings)
    depth = config.decoder.depth

    def targets(variables, batch, key) -> Targets:
        kept = {k.removeprefix(CACHED): v for k, v in batch.items() if k.startswith(CACHED)}
        batch = {k: v for k, v in batch.items() if not k.startswith(CACHED)}
        images = tokens = batch["image1"], batch["image2"]
        if "tokens" in kept:
            tokens = kept["tokens"][:, 0], kept["tokens"][:, 1]
        pair = {f"tokens{v + 1}": tokens[v] for v in (0, 1)} | batch
        pair = symmetrised(pair) if symmetric else pair
        height, width = images[0].shape[1:3]
        size = (height // config.encoder.patch, width // config.encoder.patch)

        def view(index: int) -> Prediction:
            def of(name):  # [B, R, 2, ...] -> [B R, ...]
                x = kept[name][:, :, index].astype(jnp.float32)
                return x.reshape(-1, *x.shape[2:])

            points = of("points")
            ones = jnp.ones(points.shape[:3], jnp.float32)
            conf = of("conf")[..., 0] if "conf" in fields else ones
            features: dict[str, Any] = {"encoder": pair[f"tokens{index + 1}"], "decoder": ()}
            if "decoder" in fields:
                layers = {i: of(f"decoder_{i}") for i in config.hooks if i}
                features["decoder"] = tuple(layers.get(i + 1) for i in range(depth))
            desc = None
            if "last" in fields:
                head = "head" if config.head.shared else f"head{index + 1}"
                x = jnp.concatenate([features["encoder"].astype(jnp.float32), of("last")], -1)
                channels = config.head.desc + config.head.two_confs
                local = LocalFeatures(config.head.desc_ratio, channels, config.encoder.patch)
                desc: Any = local.apply({"params": variables[head]}, x, size)
                desc = unit_descriptors(desc[..., : config.head.desc])
            return Prediction(points, conf, desc, ones, features)

        rest = {k: v for k, v in pair.items() if not k.startswith("tokens")}
        return teacher_targets(
            (view(0), view(1)), rest, on, settings, hooks=config.hooks, matches=matches, key=key
        )

    return targets


def descriptor_variables(
    config: StereoConfig, params: Any, on: Collection[str], settings: LossSettings
) -> dict[str, Any]:
    """The part of a teacher's parameters that `cached_teacher` computes descriptors with, or {}."""
    if "last" not in kept_fields(on, settings):
        return {}
    heads = ("head",) if config.head.shared else ("head1", "head2")
    return {head: params[head]["local_features"] for head in heads}
