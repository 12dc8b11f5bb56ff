"""A student's heads: what reads tokens is brought to the student's, the rest is taken over."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lunar_distill_jax.init import basis
from lunar_distill_jax.init.assemble import plain_norms
from lunar_distill_jax.init.decoder import refit_units
from lunar_distill_jax.init.moments import Moments
from lunar_distill_jax.init.planes import take
from lunar_distill_jax.init.slim import slim
from lunar_distill_jax.init.tree import Affine, Flat, below, dense, norm_of


@dataclasses.dataclass(frozen=True)
class TokenMaps:
    """The teacher's tokens of one view from the student's, as the heads read them.

    hooks: for each of the dense head's four inputs
    joint: [encoder | last] tokens of the teacher from those of the student
    last:  the last tokens, after the norm's scale and bias
    unknown: inputs of which nothing but the mean is known, by their number
    """

    hooks: tuple[Affine, ...]
    joint: Affine
    last: Affine
    unknown: tuple[int, ...] = ()


def dense_head(
    head: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray], maps: TokenMaps
) -> tuple[Flat, dict[str, str], dict[str, Any]]:
    """-> (tensors, {name: how}, notes) of one view's dense head.

    head, own: the teacher's and the student's, {name: array}
    """
    kinds = [k for k in ("dpt", "catconv") if below(head, f"{k}/") and below(own, f"{k}/")]
    if not kinds:
        return {}, {}, {"fresh": "the teacher has no head of this kind"}
    tensors, chosen = slim(head, own)
    how = {
        name: "copied" if array.shape == head[name].shape else "channels selected"
        for name, array in tensors.items()
    }
    # The one head projects each map by itself, the other all four as one.
    joint = kinds == ["catconv"]
    layers = _joint_projection(head, maps) if joint else _projections(head, maps)
    for name, (layer, group, known) in layers.items():
        kernel, bias = layer.kernel, layer.bias
        if group in chosen:
            kernel, bias = (take(a, chosen[group]) for a in (kernel, bias))
        tensors |= {f"{name}/kernel": kernel[None, None], f"{name}/bias": bias}
        how |= {f"{name}/{k}": "projected" if known else "mean only" for k in ("kernel", "bias")}
    return tensors, how, {"channels": {group: c.tolist() for group, c in chosen.items()}}


def _projections(head: Mapping[str, np.ndarray], maps: TokenMaps) -> dict[str, tuple]:
    """{name: (layer from the student's tokens, group that it writes, whether they are known)}"""
    out = {}
    for i, known in enumerate(maps.hooks):
        name = f"dpt/project{i}"
        layer = Affine(head[f"{name}/kernel"][0, 0], head[f"{name}/bias"]).after(known)
        out[name] = layer, f"P{i}", i not in maps.unknown
    return out


def _joint_projection(head: Mapping[str, np.ndarray], maps: TokenMaps) -> dict[str, tuple]:
    """As `_projections`, of the layer that reads all four maps side by side."""
    kernel, bias = head["catconv/project/kernel"][0, 0], head["catconv/project/bias"]
    ends = np.cumsum([known.kernel.shape[1] for known in maps.hooks])
    parts = [
        Affine(rows, np.zeros(len(bias))).after(known)
        for rows, known in zip(np.split(kernel, ends[:-1]), maps.hooks, strict=True)
    ]
    layer = Affine(np.concatenate([p.kernel for p in parts]), bias + sum(p.bias for p in parts))
    return {"catconv/project": (layer, "T", len(maps.unknown) < len(maps.hooks))}


def local_features(
    head: Mapping[str, np.ndarray],
    norm: Affine,
    joint: Affine,
    tokens: tuple[Moments, Moments],
    seen: tuple[bool, np.ndarray],
    fresh: Mapping[str, np.ndarray],
) -> tuple[Flat, dict[str, Any]]:
    """-> (fc1 and fc2 of the local features, notes), for Gaussian tokens.

    norm: scale and bias of the teacher's last norm; joint: as in `TokenMaps`
    tokens: moments of the teacher's encoder tokens, and of its last before that scale and bias
    seen: whether the student sees the encoder's tokens, and E [s, d] of the stream
    fresh: the student's own head
    """
    read, write = dense(head, "local_features/fc1"), dense(head, "local_features/fc2")
    count, outputs = fresh["local_features/fc2/kernel"].shape
    if outputs != write.kernel.shape[1]:
        return {}, {"fresh": f"{outputs} outputs, the teacher's has {write.kernel.shape[1]}"}
    encoder, last = tokens
    e, d = len(encoder.mean), len(last.mean)
    # The teacher's units read its tokens before the last norm's scale and bias.
    upper = Affine(read.kernel[e:], read.bias).after(norm)
    full = Affine(np.concatenate([read.kernel[:e], upper.kernel]), upper.bias)
    z = Moments(np.concatenate([encoder.mean, last.mean]), np.zeros((e + d, e + d)))
    z.cov[:e, :e], z.cov[e:, e:] = encoder.cov, last.cov
    P = np.zeros_like(z.cov)
    P[:e, :e] = np.eye(e) * seen[0]
    P[e:, e:] = seen[1].T @ seen[1]
    kept, kernel, bias, condition = refit_units(full, write.kernel, write.bias, z, P, count)
    tensors = feature_tensors(read.after(joint), kept, Affine(kernel, bias), fresh)
    return tensors, {"units": kept.tolist(), "condition": condition}


def feature_tensors(
    read: Affine, kept: np.ndarray, write: Affine, fresh: Mapping[str, np.ndarray]
) -> Flat:
    """The local features' layers; units beyond the teacher's keep their own and write nothing."""
    own = fresh["local_features/fc1/kernel"]
    spare = own.shape[1] - len(kept)
    return {
        "local_features/fc1/kernel": np.concatenate(
            [read.kernel[:, kept], own[:, own.shape[1] - spare :]], 1
        ),
        "local_features/fc1/bias": np.pad(read.bias[kept], (0, spare)),
        "local_features/fc2/kernel": np.pad(write.kernel, ((0, spare), (0, 0))),
        "local_features/fc2/bias": write.bias,
    }


def plane_reader(head: Mapping[str, np.ndarray], tokens: Moments, last: Affine) -> Flat:
    """The plane's own norm and first layer, for a student whose last norm has no scale and bias.

    tokens: moments of the teacher's, after its last norm's scale and bias, which the plane
    normalises once more; their length is taken as constant. last: as in `TokenMaps`.
    """
    s, d = last.kernel.shape
    length = np.sqrt(np.trace(basis.centred(tokens.second)) / d)
    away = np.eye(d) - 1 / d  # takes a token's mean away
    inner = Affine(last.kernel @ away / length, last.bias @ away / length)
    layer = dense(head, "plane/fc1").after(norm_of(head, "plane/norm").after(inner))
    return plane_tensors(layer, s)


def plane_tensors(layer: Affine, width: int) -> Flat:
    """A plain norm and the plane's first layer."""
    return plain_norms(["plane/norm"], width) | {
        "plane/fc1/kernel": layer.kernel,
        "plane/fc1/bias": layer.bias,
    }


def plane_names(head: Mapping[str, np.ndarray]) -> list[str]:
    """What a head has of the plane's tensors."""
    return [name for name in head if re.match("plane/", name)]
