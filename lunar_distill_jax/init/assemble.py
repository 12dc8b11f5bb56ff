"""A student's decoder tensors from the pieces that a method has chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lunar_distill_jax.init.planes import channel_sources, logit_scale, take
from lunar_distill_jax.init.tree import Affine, Flat


@dataclasses.dataclass(frozen=True)
class StudentHead:
    """One attention head as it reads the student's normalised tokens.

    query, key: [s, h] with h the teacher's head size; value: [s, h'], output: [h', s] with the
    student's
    """

    query: Affine
    key: Affine
    value: Affine
    output: np.ndarray


def attention_tensors(
    kind: str,
    heads: Sequence[StudentHead],
    bias: np.ndarray,
    fresh: Mapping[str, np.ndarray],
    count: int,
) -> Flat:
    """The tensors of an attention of `count` heads; those beyond the given write nothing.

    kind: "attn" or "cross_attn"; bias: [s] of the projection; fresh: the block's own tensors, which
    keys and values without a source keep, so that gradients find them
    """
    width = len(bias)
    size = width // count
    kernel, shift, made = np.zeros((3, width, width)), np.zeros((3, width)), np.zeros((width,) * 2)
    if kind == "attn":
        kernel[1:] = np.split(fresh["attn/qkv/kernel"], 3, 1)[1:]
    else:
        kernel[1:] = fresh["cross_attn/k/kernel"], fresh["cross_attn/v/kernel"]
    for i, head in enumerate(heads):
        at = slice(i * size, (i + 1) * size)
        theirs = head.query.kernel.shape[1]
        sources = channel_sources(theirs, size)
        scale = logit_scale(theirs, size)
        kernel[0][:, at] = scale * take(head.query.kernel, sources)
        shift[0][at] = scale * take(head.query.bias, sources)
        keys = scale * take(head.key.kernel, sources)
        kernel[1][:, at] = np.where(sources >= 0, keys, kernel[1][:, at])
        shift[1][at] = scale * take(head.key.bias, sources)
        used = head.output.any(1)
        kernel[2][:, at] = np.where(used, head.value.kernel, kernel[2][:, at])
        shift[2][at] = np.where(used, head.value.bias, 0)
        made[at] = head.output
    out = {f"{kind}/proj/kernel": made, f"{kind}/proj/bias": bias}
    if kind == "attn":
        joint = {"kernel": np.concatenate(list(kernel), 1), "bias": shift.reshape(-1)}
        return out | {f"attn/qkv/{k}": v for k, v in joint.items()}
    for i, name in enumerate("qkv"):
        out |= {f"cross_attn/{name}/kernel": kernel[i], f"cross_attn/{name}/bias": shift[i]}
    return out


def mlp_tensors(read: Affine, write: Affine) -> Flat:
    """fc1 [s, m] and fc2 [m, s]."""
    return {
        "mlp/fc1/kernel": read.kernel,
        "mlp/fc1/bias": read.bias,
        "mlp/fc2/kernel": write.kernel,
        "mlp/fc2/bias": write.bias,
    }


def plain_norms(names: Sequence[str], width: int) -> Flat:
    """Norms without scale and bias: the teacher's are in what reads them."""
    out = {}
    for name in names:
        out |= {f"{name}/scale": np.ones(width), f"{name}/bias": np.zeros(width)}
    return out


def silent_block(fresh: Mapping[str, np.ndarray]) -> Flat:
    """A block that writes nothing yet: one with no counterpart in the teacher."""
    writers = ("attn/proj/", "cross_attn/proj/", "mlp/fc2/")
    return {k: np.zeros_like(v) if k.startswith(writers) else v for k, v in fresh.items()}
