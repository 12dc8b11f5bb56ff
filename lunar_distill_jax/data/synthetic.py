"""An endless supply of synthetic pairs, as a pure function of a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lunar_distill_jax import moon
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
) -> Iterator[StereoPair]:
    """Pairs of `geometries` scenes, the trajectory types taking turns, each under all `suns`.

    Geometry i has seed `seed + i`: ranges of seeds that do not overlap share no terrain.
    suns: as `moon.resolve_sun` takes them; None is one of StereoLunar's three, drawn by the seed
    """
    for i in range(geometries):
        trajectory = trajectories[i % len(trajectories)]
        yield from moon.make_lightings(seed + i, trajectory, size, suns)
