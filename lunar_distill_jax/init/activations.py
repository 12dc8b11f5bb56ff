"""A decoder block's inner values, for teacher and student alike.

The same arithmetic as `models.layers.DecoderBlock`, taken apart. `xp` is numpy, so that a CPU has
nothing to compile, or jax.numpy, whose arrays may lie on an accelerator, split over its devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import numpy as np
import scipy.special

from lunar_distill_jax.models.rope import rotary_table

Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The tokens' rotary tables: cos, sin, each [N, h] for heads of h channels; and whether they
    turn cross-attention, too (`DecoderConfig.rotary_cross`)."""

    cos: np.ndarray
    sin: np.ndarray
    crosses: bool = True

    @classmethod
    def of(cls, positions: np.ndarray, head_size: int, base: float, crosses: bool = True) -> Grid:
        return cls(*(np.asarray(t) for t in rotary_table(positions, head_size, base)), crosses)


def normalise(xp, x):
    """A LayerNorm without scale and bias, over the last axis."""
    x = x - x.mean(-1, keepdims=True)
    return x / xp.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-6))


def gelu(xp, x):
    """The exact GELU."""
    if xp is np:
        return x * scipy.special.ndtr(x)
    return jax.nn.gelu(x, approximate=False)


def split(x, heads: int):
    """[B, N, D] -> [B, heads, N, D / heads]"""
    b, n, d = x.shape
    return x.reshape(b, n, heads, d // heads).transpose(0, 2, 1, 3)


def merge(x):
    """[B, heads, N, h] -> [B, N, heads * h]"""
    b, h, n, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, n, h * d)


def turn(xp, x, grid: Grid):
    """Rotary positions of x: [B, heads, N, h], as `models.rope.rotate`."""
    y1, y2, x1, x2 = xp.split(x, 4, -1)
    return x * grid.cos + xp.concatenate([-y2, y1, -x2, x1], -1) * grid.sin


def attention_weights(xp, q, k, grid: Grid | None):
    """Softmax of the logits: [B, heads, N, N]; q, k: [B, heads, N, h]; grid: None turns nothing."""
    if grid is not None:
        q, k = turn(xp, q, grid), turn(xp, k, grid)
    logits = q @ k.swapaxes(-1, -2)
    logits = logits * np.float32(q.shape[-1] ** -0.5)
    weights = xp.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _scaled(block: Arrays, norm: str, z):
    return z * block[f"{norm}/scale"] + block[f"{norm}/bias"]


def _dense(block: Arrays, name: str, x):
    return x @ block[f"{name}/kernel"] + block[f"{name}/bias"]


@flax.struct.dataclass
class Attention:
    """asks, answers: [B, N, d] normalised tokens; weights: [B, heads, N, N]; context: [B, heads, N,
    h] values after attention; update: [B, N, d] what is added to the stream"""

    asks: Any
    answers: Any
    weights: Any
    context: Any
    update: Any


def self_attention(xp, block: Arrays, x, grid: Grid, heads: int) -> Attention:
    z = normalise(xp, x)
    qkv = _dense(block, "attn/qkv", _scaled(block, "norm1", z))
    q, k, v = (split(t, heads) for t in xp.split(qkv, 3, -1))
    weights = attention_weights(xp, q, k, grid)
    context = weights @ v
    return Attention(z, z, weights, context, _dense(block, "attn/proj", merge(context)))


def cross_attention(xp, block: Arrays, x, y, grid: Grid, heads: int) -> Attention:
    """x asks, y: [B, N, d] of the other view answers."""
    z, memory = normalise(xp, x), normalise(xp, y)
    answers = _scaled(block, "norm_y", memory)
    q = split(_dense(block, "cross_attn/q", _scaled(block, "norm2", z)), heads)
    k, v = (split(_dense(block, f"cross_attn/{n}", answers), heads) for n in "kv")
    weights = attention_weights(xp, q, k, grid if grid.crosses else None)
    context = weights @ v
    return Attention(z, memory, weights, context, _dense(block, "cross_attn/proj", merge(context)))


@flax.struct.dataclass
class Mlp:
    """asks: [B, N, d] normalised tokens, hidden: [B, N, m] unit values, update: [B, N, d]"""

    asks: Any
    hidden: Any
    update: Any


def mlp(xp, block: Arrays, x) -> Mlp:
    z = normalise(xp, x)
    hidden = gelu(xp, _dense(block, "mlp/fc1", _scaled(block, "norm3", z)))
    return Mlp(z, hidden, _dense(block, "mlp/fc2", hidden))


@flax.struct.dataclass
class Block:
    """All of a block: its three parts and the stream [B, N, d] that it leaves."""

    attn: Attention
    cross_attn: Attention
    mlp: Mlp
    out: Any


def decoder_block(xp, block: Arrays, x, y, grid: Grid, heads: int) -> Block:
    """x: [B, N, d] of this view, y: of the other, both as the previous blocks left them."""
    one = self_attention(xp, block, x, grid, heads)
    x = x + one.update
    two = cross_attention(xp, block, x, y, grid, heads)
    x = x + two.update
    three = mlp(xp, block, x)
    return Block(one, two, three, x + three.update)
