"""Synthetic pairs rendered ahead: kept in files of whole terrains, held in memory in 8 and 16 bits.

Terrain is the dearest part of a scene, so each is seen by several pairs of cameras and under
several suns, and any two of its suns make a pair: a geometry under one sun, or under crossed ones.
A shard's file is a pure function of its seed and settings, so it may be made at any time, by any
process, and again after it was lost.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import zlib
from collections.abc import Sequence

import numpy as np

from lunar_distill_jax import atomic
from lunar_distill_jax.data.synthetic import TRAJECTORIES
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.moon import FIRST, Moon, cameras
from lunar_distill_jax.moon.pairs import make_lightings
from lunar_distill_jax.progress import Progress
from lunar_distill_jax.types import StereoPair

SHARD = 100  # terrains in a file
SUNS = 3
# (sun of view 1, sun of view 2): three pairs under one sun, three under crossed suns.
LIGHTINGS = ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 0))
DEPTH_STEPS = 65535


@dataclasses.dataclass(frozen=True)
class Rendering:
    """What fills a folder: `terrains` seeds from `seed` on, each seen by up to `cameras` pairs of
    cameras, frames of `size` pixels; the trajectories take turns."""

    seed: int
    terrains: int
    size: int
    cameras: int = 4
    trajectories: tuple[str, ...] = TRAJECTORIES
    moon: Moon = FIRST


def render_shard(path: pathlib.Path, rendering: Rendering, shard: int) -> None:
    """Writes the scenes of one shard."""
    r, arrays = rendering, []
    first = shard * SHARD
    for terrain in range(first, min(first + SHARD, r.terrains)):
        trajectory = r.trajectories[terrain % len(r.trajectories)]
        pairs = make_lightings(
            r.seed + terrain,
            trajectory,
            r.size,
            tuple(range(SUNS)),
            moon=r.moon,
            geometries=r.cameras,
        )
        for i in range(0, len(pairs), SUNS):
            arrays.append(_packed(pairs[i : i + SUNS]))
    packed = {key: np.stack([a[key] for a in arrays]) for key in arrays[0]}
    with atomic.atomic_file(path) as part, open(part, "wb") as file:
        np.savez(file, allow_pickle=False, **packed)


def _packed(pairs: Sequence[StereoPair]) -> dict[str, np.ndarray]:
    """One geometry under its suns; depths as 16-bit steps between a view's nearest and farthest."""
    one = pairs[0]
    seen = np.where(one.valid, one.depth_m, np.nan)
    near, far = np.nanmin(seen, (1, 2)), np.nanmax(seen, (1, 2))
    steps = (one.depth_m - near[:, None, None]) / (far - near)[:, None, None] * DEPTH_STEPS
    return {
        "image": np.stack([p.image[..., 0] for p in pairs]),
        "depth": np.rint(np.where(one.valid, steps, 0)).astype(np.uint16),
        "range": np.stack([near, far], -1).astype(np.float64),
        "valid": np.packbits(one.valid, axis=-1),
        "T": one.T_world_cam,
        "geometry": np.array(one.geometry, "U40"),
        "trajectory": np.array(one.trajectory, "U16"),
    }


class RenderedPairs(Sequence[StereoPair]):
    """The pairs of a folder by number; what is missing in it is rendered first.

    Pair i shows geometry i // 6 under `LIGHTINGS[i % 6]`.
    """

    def __init__(self, folder: str | os.PathLike, rendering: Rendering):
        folder = atomic.make_folder(folder)
        wanted = range(-(-rendering.terrains // SHARD))
        missing = [i for i in wanted if not self._path(folder, rendering, i).is_file()]
        if missing:
            with Progress(len(missing), "render shards") as progress:
                for i in missing:
                    render_shard(self._path(folder, rendering, i), rendering, i)
                    progress.update(1)
        self.rendering = rendering
        self._shards = []
        for i in wanted:
            with np.load(self._path(folder, rendering, i)) as file:
                self._shards.append({key: file[key] for key in file.files})
        self._ends = np.cumsum([len(s["geometry"]) for s in self._shards])
        if not len(self._ends):
            raise InputError(f"The rendering has {rendering.terrains} terrains: give 1 or more.")

    @staticmethod
    def _path(folder: pathlib.Path, rendering: Rendering, shard: int) -> pathlib.Path:
        # Of other settings are other files: none is taken for what it is not.
        settings = zlib.crc32(repr(rendering).encode())
        return folder / f"{rendering.seed}-{rendering.size}-{settings:08x}-{shard:04d}.npz"

    def __len__(self) -> int:
        return int(self._ends[-1]) * len(LIGHTINGS)

    def __getitem__(self, index):  # type: ignore[override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(index)
        geometry, lighting = divmod(int(index), len(LIGHTINGS))
        shard = int(np.searchsorted(self._ends, geometry, side="right"))
        row = geometry - (int(self._ends[shard - 1]) if shard else 0)
        s = self._shards[shard]
        size = self.rendering.size
        suns = LIGHTINGS[lighting]
        image = np.stack([s["image"][row, sun, view] for view, sun in enumerate(suns)])
        valid = np.unpackbits(s["valid"][row], axis=-1, count=size).astype(bool)
        near, far = s["range"][row].T
        depth = near[:, None, None] + s["depth"][row] * ((far - near) / DEPTH_STEPS)[:, None, None]
        name = str(s["geometry"][row])
        return StereoPair(
            name=f"{name}-{suns[0]}{suns[1]}",
            geometry=name,
            trajectory=str(s["trajectory"][row]),
            image=np.repeat(image[..., None], 3, -1),
            depth_m=np.where(valid, depth, 0).astype(np.float32),
            valid=valid,
            K=np.tile(cameras.intrinsics(size), (2, 1, 1)),
            T_world_cam=s["T"][row],
        )
