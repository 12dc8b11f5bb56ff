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
from lunar_distill_jax.init.activations import Block, Grid, decoder_block
from lunar_distill_jax.init.pictures import Pictures
from lunar_distill_jax.init.store import Store
from lunar_distill_jax.init.tree import Flat, below
from lunar_distill_jax.models.config import EncoderConfig, StereoConfig

HELD = 5  # every fifth pair is held out: ridges are chosen and R2 is told on these
BATCH = 8  # pairs, at most
LARGEST = 1_200_000  # pairs times squared tokens: bounds the attention maps of a batch
VIEWS = (1, 2)


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

    def batches(self) -> Iterator[tuple[np.ndarray, bool]]:
        """(rows, whether they are held out) of all pairs."""
        return batches(*self.tokens[1].shape[:2])

    def start(self, kernel: np.ndarray, bias: np.ndarray, store: Store, name: str) -> None:
        """Puts the stream before the first block, by the layer that follows the encoder; `name` is
        that of its arrays in the store."""
        kernel, bias = kernel.astype(np.float32), bias.astype(np.float32)
        for view, tokens in self.tokens.items():
            shape = (*tokens.shape[:2], len(bias))
            self.stream[view] = store.empty(f"{name}/{view}", shape)
            for rows, _ in self.batches():
                self.stream[view][rows] = tokens[rows] @ kernel + bias


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
        run = _jitted(network.heads, network.grid.crosses)
        return run(tensors, x, y, network.grid.cos, network.grid.sin)

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
def _jitted(heads: int, crosses: bool):
    def run(tensors, x, y, cos, sin):
        return decoder_block(jnp, tensors, x, y, Grid(cos, sin, crosses), heads)

    return jax.jit(run)


def batches(count: int, tokens: int) -> Iterator[tuple[np.ndarray, bool]]:
    """(rows, whether they are held out) of all `count` pairs of `tokens` a view; a batch is of one
    kind."""
    size = max(1, min(BATCH, LARGEST // tokens**2))
    held = np.arange(count) % HELD == HELD - 1
    for kind in (False, True):
        rows = np.flatnonzero(held == kind)
        for start in range(0, len(rows), size):
            yield rows[start : start + size], kind


def token_pixels(config: StereoConfig) -> int:
    """Pixels along the side of a token; other encoders than MASt3R's have MASt3R's 16."""
    return config.encoder.patch if isinstance(config.encoder, EncoderConfig) else 16


def read_tokens(
    both: Sequence[api.Stereo], pictures: Pictures, store: Store, on_batch: Callable[[int], object]
) -> tuple[list[dict[int, np.ndarray]], tuple[int, int]]:
    """-> (each network's encoder tokens {view: [P, N, E]}, the grid's rows and columns). Goes on
    where an earlier run has stopped.

    on_batch: called with the number of pairs that both networks have read
    """
    names = [[f"tokens/{i}/{view}" for view in VIEWS] for i in range(len(both))]
    patch = token_pixels(both[0].config)
    found = store.load("tokens")
    done, grid = (found[1]["pairs"], tuple(found[1]["grid"])) if found else (0, (0, 0))
    arrays = [[store.open(n) for n in group] for group in names] if done else []
    on_batch(done)
    while done < pictures.count:
        size = min(BATCH, pictures.count - done)
        rows = np.minimum(np.arange(done, done + BATCH), pictures.count - 1)  # one shape
        images = pictures.read(rows)
        tokens = [[np.asarray(t) for t in _encode(one, *images)] for one in both]
        if not arrays:
            arrays = [
                [
                    store.empty(n, (pictures.count, *t.shape[1:]))
                    for n, t in zip(group, views, strict=True)
                ]
                for group, views in zip(names, tokens, strict=True)
            ]
        for group, views in zip(arrays, tokens, strict=True):
            for array, t in zip(group, views, strict=True):
                array[done : done + size] = t[:size]
        done += size
        grid = tuple(side // patch for side in images[0].shape[1:3])
        store.save("tokens", {}, {"pairs": done, "grid": grid})
        on_batch(size)
    return [dict(zip(VIEWS, group, strict=True)) for group in arrays], grid


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
    head_size = c.decoder.width // c.decoder.heads
    grid = Grid.of(positions, head_size, c.rope_base, c.decoder.rotary_cross)
    return Network(c, made, grid, tokens, {})


def float32(tensors: Flat) -> Flat:
    return {k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}
