"""Parameters as {name: array}, and the decoder's heads and norms as one can compute with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

Flat = dict[str, np.ndarray]


def flatten(params: Any) -> Flat:
    """{name: array}, names joined by "/"."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {str(name): np.asarray(array) for name, array in flat.items()}


def unflatten(flat: Mapping[str, np.ndarray]) -> Any:
    """Inverse of `flatten`, in float32."""
    arrays = {k: np.ascontiguousarray(v, np.float32) for k, v in flat.items()}
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def below(flat: Mapping[str, np.ndarray], prefix: str) -> Flat:
    """The arrays whose names begin with `prefix`, without it, in float64."""
    n = len(prefix)
    return {k[n:]: np.asarray(v, np.float64) for k, v in flat.items() if k.startswith(prefix)}


@dataclasses.dataclass(frozen=True)
class Affine:
    """x -> x @ kernel + bias. kernel: [in, out], bias: [out]."""

    kernel: np.ndarray
    bias: np.ndarray

    def after(self, inner: Affine) -> Affine:
        """This one of what `inner` gives."""
        return Affine(inner.kernel @ self.kernel, inner.bias @ self.kernel + self.bias)


@dataclasses.dataclass(frozen=True)
class AttentionHead:
    """One head of an attention as it reads normalised tokens: the norms' scale and bias are folded
    in. query, key, value: [d, h]; output: [h, d], without the bias that all heads share."""

    block: int
    index: int
    query: Affine
    key: Affine
    value: Affine
    output: np.ndarray


def layer_of(flat: Mapping[str, np.ndarray], name: str) -> Affine:
    """A linear layer of a whole network, in float64; nothing else of it is converted."""
    return Affine(**below(flat, f"{name}/"))


def norm_of(block: Mapping[str, np.ndarray], name: str) -> Affine:
    """A norm's scale and bias as a map of tokens normalised to mean 0 and variance 1."""
    scale, bias = (np.asarray(block[f"{name}/{k}"], np.float64) for k in ("scale", "bias"))
    return Affine(np.diag(scale), bias)


def dense(block: Mapping[str, np.ndarray], name: str, norm: str | None = None) -> Affine:
    """A linear layer; with `norm`, of the tokens before that norm's scale and bias."""
    layer = Affine(block[f"{name}/kernel"], block[f"{name}/bias"])
    if norm is None:
        return layer
    scale, shift = block[f"{norm}/scale"], block[f"{norm}/bias"]
    return Affine(scale[:, None] * layer.kernel, shift @ layer.kernel + layer.bias)


def attention_heads(
    block: Mapping[str, np.ndarray], kind: str, count: int, number: int = 0
) -> list[AttentionHead]:
    """The `count` heads of one attention of a decoder block.

    kind: "attn", which reads norm1, or "cross_attn", which reads norm2 and the other view's norm_y
    number: of the block, for the record
    """
    if kind == "attn":
        joint = dense(block, "attn/qkv", "norm1")
        kernels, biases = np.split(joint.kernel, 3, 1), np.split(joint.bias, 3)
        q, k, v = (Affine(a, b) for a, b in zip(kernels, biases, strict=True))
    else:
        q = dense(block, "cross_attn/q", "norm2")
        k, v = (dense(block, f"cross_attn/{n}", "norm_y") for n in "kv")
    output, size = block[f"{kind}/proj/kernel"], q.kernel.shape[1] // count

    def part(layer: Affine, i: int) -> Affine:
        at = slice(i * size, (i + 1) * size)
        return Affine(layer.kernel[:, at], layer.bias[at])

    return [
        AttentionHead(
            number, i, part(q, i), part(k, i), part(v, i), output[i * size : (i + 1) * size]
        )
        for i in range(count)
    ]
