"""Calibration pairs as both networks' tokens, and passes over them in batches of bounded size."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.init.activations import Block, Grid, decoder_block
from lunar_distill_jax.init.tree import Flat, below
from lunar_distill_jax.models.config import StereoConfig

HELD = 5  # every fifth pair is held out: ridges are chosen and R2 is told on these
BATCH = 8  # pairs


@dataclasses.dataclass
class Network:
    """One network's decoder on the calibration pairs.

    blocks: {(view, block): {name: float32 array}}; stream: {view: [P, N, D] float32} at the
    boundary between blocks that the walk has reached; tokens: {view: [P, N, E]} of the encoder
    """

    config: StereoConfig
    blocks: dict[tuple[int, int], Flat]
    grid: Grid
    tokens: dict[int, np.ndarray]
    stream: dict[int, np.ndarray]

    @property
    def heads(self) -> int:
        return self.config.decoder.heads

    def start(self, kernel: np.ndarray, bias: np.ndarray) -> None:
        """Puts the stream before the first block, by the layer that follows the encoder."""
        kernel, bias = kernel.astype(np.float32), bias.astype(np.float32)
        self.stream = {view: tokens @ kernel + bias for view, tokens in self.tokens.items()}


@dataclasses.dataclass(frozen=True)
class Backend:
    """Where activations are computed: numpy on a CPU, which has nothing to compile, else jax, the
    pairs of a batch split over all devices."""

    xp: Any
    devices: tuple = ()

    @classmethod
    def default(cls) -> Backend:
        if jax.default_backend() == "cpu":
            return cls(np)
        return cls(jnp, tuple(jax.devices()))

    def put(self, array: np.ndarray) -> Any:
        if self.xp is np:
            return array
        if len(self.devices) > 1 and len(array) % len(self.devices) == 0:
            mesh = jax.sharding.Mesh(np.array(self.devices), ("data",))
            spec = jax.sharding.PartitionSpec("data")
            return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))
        return jnp.asarray(array)

    def block(self, network: Network, view: int, block: int, x, y) -> Block:
        """One block of a network on a batch."""
        tensors = network.blocks[view, block]
        if self.xp is np:
            return decoder_block(np, tensors, x, y, network.grid, network.heads)
        return _jitted(network.heads)(tensors, x, y, network.grid.cos, network.grid.sin)

    def run(
        self, network: Network, blocks: Sequence[int], rows: np.ndarray
    ) -> list[dict[int, Block]]:
        """Consecutive blocks of both views on some pairs, from where the stream is."""
        x = {view: self.put(network.stream[view][rows]) for view in (1, 2)}
        out = []
        for i in blocks:
            both = {v: self.block(network, v, i, x[v], x[3 - v]) for v in (1, 2)}
            out.append(both)
            x = {v: both[v].out for v in (1, 2)}
        return out


@functools.lru_cache(maxsize=8)
def _jitted(heads: int):
    return jax.jit(
        lambda tensors, x, y, cos, sin: decoder_block(jnp, tensors, x, y, Grid(cos, sin), heads)
    )


def batches(count: int, size: int = BATCH) -> Iterator[tuple[np.ndarray, bool]]:
    """(rows, whether they are held out) of all `count` pairs; a batch is of one kind."""
    held = np.arange(count) % HELD == HELD - 1
    for kind in (False, True):
        rows = np.flatnonzero(held == kind)
        for start in range(0, len(rows), size):
            yield rows[start : start + size], kind


def encoder_tokens(
    stereo: api.Stereo, images: Sequence[np.ndarray], on_batch: Callable[[int], object]
) -> dict[int, np.ndarray]:
    """Both views' encoder tokens: {view: [P, N, E]}; images: two of [P, H, W, 3]."""
    out: dict[int, list] = {1: [], 2: []}
    count = len(images[0])
    for start in range(0, count, BATCH):
        rows = np.minimum(np.arange(start, start + BATCH), count - 1)  # one shape, one program
        for view, tokens in enumerate(_encode(stereo, *(v[rows] for v in images)), 1):
            out[view].append(np.asarray(tokens)[: count - start])
        on_batch(min(BATCH, count - start))
    return {view: np.concatenate(parts) for view, parts in out.items()}


@jax.jit
def _encode(stereo: api.Stereo, image1, image2):
    """The compiler drops what these two outputs do not need: decoder and heads."""
    views = api.predict(stereo, image1, image2, features=True)
    return tuple(view.features["encoder"] for view in views)


def network(
    stereo_config: StereoConfig,
    flat: Flat,
    tokens: dict[int, np.ndarray],
    positions: np.ndarray,
    blocks: int,
) -> Network:
    """A network at the start of its walk, with its first `blocks` decoder blocks."""
    c = stereo_config
    made = {
        (view, i): float32(below(flat, f"decoder/view{view}_block{i}/"))
        for view in (1, 2)
        for i in range(blocks)
    }
    grid = Grid.of(positions, c.decoder.width // c.decoder.heads, c.rope_base)
    return Network(c, made, grid, tokens, {})


def float32(tensors: Flat) -> Flat:
    return {k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}


def check_images(images: Sequence[np.ndarray]) -> None:
    """Raises InputError unless there are enough pairs of images of one size to calibrate on."""
    if len(images[0]) < 2:
        raise InputError(
            f"There is {len(images[0])} calibration pair: give at least 2, better some hundreds."
        )
