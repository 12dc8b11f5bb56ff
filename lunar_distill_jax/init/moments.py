"""What tokens of the decoder look like, told from the weights alone.

A mean-field pass: encoder tokens are Gaussian as their norm leaves them, every value reaches its
reader as if attention chose one token, GELU units see Gaussian input. Crude, but it has the exact
span of the stream, does not read queries or keys, and follows the teacher through any relabelling
of its channels, heads and units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from lunar_distill_jax.init.gaussian import covariance, gelu_units
from lunar_distill_jax.init.tree import Affine, attention_heads, below, dense, layer_of, norm_of


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean [d] and covariance [d, d] of tokens."""

    mean: np.ndarray
    cov: np.ndarray

    def normalised(self) -> Moments:
        """Of the tokens after a LayerNorm, before its scale and bias."""
        mean = self.mean - self.mean.mean()
        cov = self.cov - self.cov.mean(0, keepdims=True)
        cov = cov - cov.mean(1, keepdims=True)
        scale = len(mean) / max(mean @ mean + np.trace(cov), 1e-300)
        return Moments(np.sqrt(scale) * mean, scale * cov)

    def through(self, layer: Affine) -> Moments:
        return Moments(
            self.mean @ layer.kernel + layer.bias, layer.kernel.T @ self.cov @ layer.kernel
        )

    @property
    def second(self) -> np.ndarray:
        return self.cov + np.outer(self.mean, self.mean)


@dataclasses.dataclass(frozen=True)
class DecoderMoments:
    """norms: {(view, block, norm name): moments of what that norm's scale and bias get}; the last
    norm is (view, depth, "norm"). stream: {(view, block): of the stream after `block` blocks}."""

    norms: dict[tuple[int, int, str], Moments]
    stream: dict[tuple[int, int], Moments]


def encoder_moments(flat: Mapping[str, np.ndarray], width: int) -> Moments:
    """Of the encoder's tokens: independent channels as its last norm leaves them, if it has one."""
    if "encoder/norm/scale" not in flat or flat["encoder/norm/scale"].shape != (width,):
        return Moments(np.zeros(width), np.eye(width))
    white = Moments(np.zeros(width), np.eye(width) - 1 / width)
    return white.through(norm_of(flat, "encoder/norm"))


def decoder_moments(
    flat: Mapping[str, np.ndarray], depth: int, heads: int, width_in: int
) -> DecoderMoments:
    """The pass through both stacks of a decoder: {name: array}, its depth, heads, encoder width."""
    start = encoder_moments(flat, width_in).through(layer_of(flat, "decoder/embed"))
    norms, stream = {}, {(view, 0): start for view in (1, 2)}
    for i in range(depth):
        for view in (1, 2):
            block = below(flat, f"decoder/view{view}_block{i}/")
            x, y = stream[view, i], stream[3 - view, i]
            norms[view, i, "norm1"] = x.normalised()
            norms[view, i, "norm_y"] = y.normalised()
            x = _add_attention(x, norms[view, i, "norm1"], block, "attn", heads)
            norms[view, i, "norm2"] = x.normalised()
            x = _add_attention(x, norms[view, i, "norm_y"], block, "cross_attn", heads)
            norms[view, i, "norm3"] = x.normalised()
            stream[view, i + 1] = _add_mlp(x, norms[view, i, "norm3"], block)
    for view in (1, 2):
        norms[view, depth, "norm"] = stream[view, depth].normalised()
    return DecoderMoments(norms, stream)


def _add_attention(x: Moments, z: Moments, block, kind: str, count: int) -> Moments:
    parts = attention_heads(block, kind, count)
    values = Affine(
        np.concatenate([h.value.kernel for h in parts], 1),
        np.concatenate([h.value.bias for h in parts]),
    )
    update = z.through(dense(block, f"{kind}/proj").after(values))
    return Moments(x.mean + update.mean, x.cov + update.cov)


def _add_mlp(x: Moments, z: Moments, block) -> Moments:
    read, write = dense(block, "mlp/fc1", "norm3"), dense(block, "mlp/fc2")
    units = gelu_units(read.kernel, read.bias, z.mean, z.cov)
    hidden = covariance(units, units, z.cov, same=True)
    # Of x and a unit's value, to first order: x is z but for a factor.
    scale = np.sqrt(max(np.trace(x.cov), 1e-300) / max(np.trace(z.cov), 1e-300))
    slopes = units.coefficients[:, 1] / units.deviation
    cross = scale * (z.cov @ (read.kernel * slopes)) @ write.kernel
    wide = write.kernel.astype(np.float32)
    added = (wide.T @ (hidden @ wide)).astype(np.float64)
    return Moments(x.mean + units.mean @ write.kernel + write.bias, x.cov + cross + cross.T + added)
