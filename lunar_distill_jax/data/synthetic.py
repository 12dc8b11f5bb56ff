"""An endless supply of synthetic pairs, as a pure function of a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from lunar_distill_jax.moon import FIRST, Moon, make_lightings
from lunar_distill_jax.moon.suns import SUNS
from lunar_distill_jax.types import StereoPair

TRAJECTORIES = ("nadir", "oblique", "dynamic")
# Terrain of this seed and above may have been trained on; below is for tests.
TRAINING_SEEDS = 500_000


def synthetic_pairs(
    seed: int,
    geometries: int,
    size: int,
    *,
    trajectories: Sequence[str] = TRAJECTORIES,
    suns: Sequence = (None,),
    moon: Moon = FIRST,
) -> Iterator[StereoPair]:
    """Pairs of `geometries` scenes, the trajectory types taking turns, each under all `suns`.

    Geometry i has seed `seed + i`: ranges of seeds that do not overlap share no terrain.
    suns: as `moon.resolve_sun` takes them; None is one of StereoLunar's three, drawn by the seed
    """
    pairs = SyntheticPairs(seed, geometries, size, trajectories=trajectories, suns=suns, moon=moon)
    return iter(pairs)


def cross(one: StereoPair, two: StereoPair) -> StereoPair:
    """View 1 of `one` with view 2 of `two`, the same geometry under another sun."""
    sun = two.name.rpartition("-")[2]
    return dataclasses.replace(
        one, name=f"{one.name}-{sun}", image=np.stack([one.image[0], two.image[1]])
    )


class SyntheticPairs(Sequence[StereoPair]):
    """The same pairs by number, each rendered when it is asked for: a data set without files.

    Pair i shows geometry i // len(suns) under sun i % len(suns). The last scene is kept, so that
    reading in order renders each only once.
    """

    def __init__(
        self,
        seed: int,
        geometries: int,
        size: int,
        *,
        trajectories: Sequence[str] = TRAJECTORIES,
        suns: Sequence = (None,),
        moon: Moon = FIRST,
        crossed: bool = False,
    ):
        """crossed: one pair a geometry, each view under another of StereoLunar's three suns"""
        self._moon, self._crossed = moon, crossed
        self._seed, self._geometries, self._size = seed, geometries, size
        self._trajectories = tuple(trajectories)
        self._suns = (None,) if crossed else tuple(suns)
        self._last: tuple[int, list[StereoPair]] | None = None

    def __len__(self) -> int:
        return self._geometries * len(self._suns)

    def __getitem__(self, index):  # type: ignore[override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(index)
        geometry, sun = divmod(index, len(self._suns))
        last = self._last
        if last is None or last[0] != geometry:
            trajectory = self._trajectories[geometry % len(self._trajectories)]
            seed = self._seed + geometry
            suns = self._suns
            if self._crossed:
                suns = (geometry % len(SUNS), (geometry + 1) % len(SUNS))
            pairs = make_lightings(seed, trajectory, self._size, suns, moon=self._moon)
            if self._crossed:
                pairs = [cross(*pairs)]
            self._last = last = geometry, pairs
        return last[1][sun]
