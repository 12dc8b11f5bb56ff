"""What the student should say: the teacher's outputs or the truth, made once for a batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lunar_distill_jax.losses.correspondence import true_flow
from lunar_distill_jax.losses.matching import gather_pixels, pixels_of
from lunar_distill_jax.losses.points import surest
from lunar_distill_jax.losses.reciprocal import reciprocal_matches
from lunar_distill_jax.losses.settings import OF_THE_FLOW, LossSettings
from lunar_distill_jax.types import Prediction


@flax.struct.dataclass
class Targets:
    """Pairs (view 1, view 2) of arrays; None where no loss that is on needs them.

    points:    [B, H, W, 3] in camera 1, any unit
    valid:     bool [B, H, W]
    sky:       bool [B, H, W], or None where the data knows none
    is_metric: bool [B], or None
    conf:      [B, H, W] the teacher's confidence
    tokens:    [B, N, D] the teacher's encoder tokens
    decoder:   tuples of [B, N, D], the teacher's decoder layers that its dense head reads
    pixels:    int32 [B, M, 2] (x, y); entry i of one view belongs to entry i of the other where
    matched:   bool [B, M] (one array, no pair)
    desc:      [B, M, K] the teacher's descriptors at `pixels`
    flow:      `correspondence.Flow` of each view, by the true geometry
    """

    points: Any
    valid: Any
    sky: Any = None
    is_metric: Any = None
    conf: Any = None
    tokens: Any = None
    decoder: Any = None
    pixels: Any = None
    matched: Any = None
    desc: Any = None
    flow: Any = None


def pair(batch: Mapping[str, Any], key: str):
    return batch[f"{key}1"], batch[f"{key}2"]


def symmetrised(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The pairs (a, b) and (b, a), row by row in turns: [B, ...] -> [2 B, ...].

    Points are moved to the camera of the row's own view 1 by `T_cam2_cam1` [B, 4, 4].
    """

    def turns(one, two):
        return jnp.stack([one, two], 1).reshape(-1, *one.shape[1:])

    out = {}
    for key, value in batch.items():
        view = key[-1]
        if key == "T_cam2_cam1":
            out[key] = turns(value, _inverse(value))
        elif view not in "12":
            out[key] = turns(value, value)
        else:
            out[key] = turns(value, batch[key[:-1] + {"1": "2", "2": "1"}[view]])
    if "T_cam2_cam1" in batch and "points1" in batch:
        T = batch["T_cam2_cam1"]
        R, t = T[:, :3, :3], T[:, None, None, :3, 3]
        for key, other in (("points1", "points2"), ("points2", "points1")):
            moved = jnp.einsum("bij,bhwj->bhwi", R, batch[other], precision="highest") + t
            out[key] = turns(batch[key], moved)
    return out


def truth_targets(
    batch: Mapping[str, Any], on: Collection[str], settings: LossSettings, *, matches: int, key
) -> Targets:
    """The control experiment, and how a first teacher is trained."""
    by_flow = settings.matching.source == "flow" and "matching" in on
    fields = _from_data(batch, on, by_flow)
    if "matching" in on:
        fields |= _flow_matches(fields["flow"], key, matches) if by_flow else _true_matches(batch)
    return Targets(points=pair(batch, "points"), valid=pair(batch, "valid"), **fields)


def teacher_targets(
    predictions: tuple[Prediction, Prediction],
    batch: Mapping[str, Any],
    on: Collection[str],
    settings: LossSettings,
    *,
    hooks: tuple[int, ...],
    matches: int,
    key,
) -> Targets:
    """The teacher's points where the data is valid and the teacher sure enough.

    hooks:   which of the teacher's decoder layers to keep for "hooks"
    matches: how many pixels of view 1 to match where the teacher's descriptors are asked
    """
    conf = tuple(p.conf for p in predictions)
    valid = tuple(
        surest(c, v, quantile=settings.least_sure, threshold=settings.least_confidence)
        for c, v in zip(conf, pair(batch, "valid"), strict=True)
    )
    by_flow = settings.matching.source == "flow" and {"matching", "descriptors"} & set(on)
    fields = _from_data(batch, on, bool(by_flow))
    if "confidence" in on or settings.points.weighting == "teacher":
        fields["conf"] = conf
    if {"features", "relational"} & set(on):
        fields["tokens"] = tuple(p.features["encoder"] for p in predictions)
    if "hooks" in on:
        fields["decoder"] = tuple(
            tuple(p.features["decoder"][i - 1] for i in hooks if i) for p in predictions
        )
    if {"matching", "descriptors"} & set(on):
        desc = tuple(p.desc for p in predictions)
        if settings.matching.source == "teacher":
            *pixels, matched = reciprocal_matches(desc[0], desc[1], key, matches)
            fields |= {"pixels": tuple(pixels), "matched": matched}
        elif by_flow:
            fields |= _flow_matches(fields["flow"], key, matches)
        else:
            fields |= _true_matches(batch)
        if "descriptors" in on:
            fields["desc"] = tuple(
                gather_pixels(d, p) for d, p in zip(desc, fields["pixels"], strict=True)
            )
    targets = Targets(points=tuple(p.pts3d for p in predictions), valid=valid, **fields)
    return jax.lax.stop_gradient(targets)


def _inverse(T):
    """Of rigid motions [B, 4, 4]."""
    R = T[:, :3, :3].swapaxes(1, 2)
    t = -jnp.einsum("bij,bj->bi", R, T[:, :3, 3], precision="highest")
    return T.at[:, :3, :3].set(R).at[:, :3, 3].set(t)


def _from_data(batch, on: Collection[str], by_flow: bool) -> dict[str, Any]:
    fields = {"is_metric": batch["is_metric"]} if "is_metric" in batch else {}
    if by_flow or set(OF_THE_FLOW) & set(on):
        fields["flow"] = true_flow(batch)
    return fields | ({"sky": pair(batch, "sky")} if "sky1" in batch else {})


def _true_matches(batch) -> dict[str, Any]:
    return {"pixels": pair(batch, "pixels"), "matched": batch["pixels_valid"]}


def _flow_matches(flow, key, count: int) -> dict[str, Any]:
    """`count` random pixels of view 1, and the nearest ones to where view 2 shows their ground."""
    batch, height, width, _ = flow[0].pixels.shape
    index = jax.random.randint(key, (batch, count), 0, height * width)
    one = pixels_of(index, width)
    there = jnp.rint(gather_pixels(flow[0].pixels, one))
    seen = gather_pixels(flow[0].seen[..., None], one)[..., 0]
    two = jnp.clip(there, 0, jnp.array([width - 1, height - 1])).astype(jnp.int32)
    return {"pixels": (one, two), "matched": seen}
