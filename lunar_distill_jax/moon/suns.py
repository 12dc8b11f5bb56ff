"""StereoLunar's suns, and others."""

from __future__ import annotations

import numpy as np

from lunar_distill_jax.errors import InputError

# Azimuth (clockwise from north) and elevation in degrees of StereoLunar's three suns.
SUNS = ((330.0, 20.0), (250.0, 20.0), (180.0, 15.0))
SUN_STREAM = 1000
Sun = None | int | str | tuple[float, float]


def generator(seed: int, *stream: int) -> np.random.Generator:
    """A random stream of its own for each use of one seed."""
    if seed < 0:
        raise InputError(f"The seed is {seed}: give 0 or more.")
    return np.random.default_rng([seed, *stream])


def resolve_sun(seed: int, sun: Sun) -> tuple[str, float, float]:
    """Label, azimuth and elevation (degrees) of a sun.

    None draws one of the three presets by the seed; an int names one; "random" draws azimuth 0..360
    and elevation 10..30; a pair (azimuth, elevation) is taken as it is.

    Raises:
      InputError: no such preset, or the sun is not above the horizon.
    """
    rng = generator(seed, SUN_STREAM)
    if sun is None:
        sun = int(rng.integers(len(SUNS)))
    if sun == "random":
        sun = (round(rng.uniform(0, 360), 1), round(rng.uniform(10, 30), 1))
    if isinstance(sun, int):
        if not 0 <= sun < len(SUNS):
            raise InputError(
                f"There is no sun {sun}: choose 0, 1 or 2, or give azimuth and elevation."
            )
        return f"sun{sun}", *SUNS[sun]
    if isinstance(sun, str):
        raise InputError(f"Unknown sun {sun!r}: give 0, 1, 2, 'random' or azimuth and elevation.")
    azimuth, elevation = sun
    if not 0 < elevation <= 90:
        raise InputError(
            f"The sun stands at elevation {elevation} degrees: give a value above 0, up to 90."
        )
    return f"az{azimuth:g}el{elevation:g}", azimuth, elevation
