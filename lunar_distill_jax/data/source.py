"""Where pairs come from: a folder in StereoLunar's format, or the synthetic Moon."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

from lunar_distill_jax.data import stereolunar
from lunar_distill_jax.data.synthetic import synthetic_pairs
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.types import StereoPair

SYNTHETIC = "synthetic"


def open_pairs(
    source: str | os.PathLike, *, size: int, geometries: int, seed: int
) -> tuple[int, Iterator[StereoPair]]:
    """-> (how many pairs, the pairs, read or rendered one by one as square frames of `size` pixels)

    source: a folder, or "synthetic" for `geometries` rendered scenes from seed `seed` on, each
            under one of StereoLunar's suns; a folder is read whole

    Raises:
      InputError: `size` is not a multiple of 16, a number is out of range, or the folder cannot be
        used.
    """
    if size < 32 or size % 16:
        raise InputError(f"The size is {size} pixels: give a multiple of 16, 32 or more.")
    if str(source) == SYNTHETIC:
        if geometries < 1:
            raise InputError(f"The number of geometries is {geometries}: give 1 or more.")
        if seed < 0:
            raise InputError(f"The seed of the synthetic scenes is {seed}: give 0 or more.")
        return geometries, synthetic_pairs(seed, geometries, size)
    refs = stereolunar.find_pairs(pathlib.Path(source))
    return len(refs), (stereolunar.load_pair(ref, size) for ref in refs)
