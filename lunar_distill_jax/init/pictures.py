"""The calibration pairs' pictures, read batch by batch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from lunar_distill_jax.data.batches import stack_images
from lunar_distill_jax.data.source import open_folder, open_pairs, synthetic_moon
from lunar_distill_jax.data.synthetic import TRAINING_SEEDS, SyntheticPairs
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.types import StereoPair

Calibration = str | os.PathLike | Iterable[StereoPair] | tuple[np.ndarray, np.ndarray] | None


@dataclasses.dataclass(frozen=True)
class Pictures:
    """count: of the pairs; read: indices [B] -> both views, two float32 [B, H, W, 3] in [-1, 1]"""

    count: int
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def calibration_pictures(calibration: Calibration, size: int, pairs: int, seed: int) -> Pictures:
    """The pictures of what `init_student` takes as `calibration`, its other arguments likewise.

    Of a folder at most `pairs` are used, evenly spread; synthetic terrain is what may be trained
    on, never a test's. Nothing is read yet but what is no sequence, which is kept in memory.

    Raises:
      InputError: there are fewer than two pairs, or they are no pairs, or cannot be read.
    """
    if calibration is None:
        raise InputError(
            "The method calibrated needs pairs of images: give calibration (--calibration DATA), "
            "or take the method structured."
        )
    if isinstance(calibration, tuple) and isinstance(calibration[0], np.ndarray):
        one, other = calibration
        return _of_arrays(np.asarray(one), np.asarray(other))
    if isinstance(calibration, str | os.PathLike):
        if pairs < 2:
            raise InputError(f"The number of calibration pairs is {pairs}: give at least 2.")
        moon = synthetic_moon(calibration)
        if moon is not None:
            open_pairs(calibration, size=size, geometries=pairs, seed=seed)  # checks the numbers
            return _of_pairs(SyntheticPairs(TRAINING_SEEDS + seed, pairs, size, moon=moon))
        found = open_folder(calibration, size=size)
        chosen = np.unique(np.linspace(0, len(found) - 1, min(pairs, len(found))).round())
        return _of_pairs(found, chosen.astype(int))
    given: Any = calibration if isinstance(calibration, Sequence) else list(calibration)
    return _of_pairs(given)


def _of_arrays(one: np.ndarray, other: np.ndarray) -> Pictures:
    one, other = np.asarray(one), np.asarray(other)
    if one.ndim != 4 or one.shape != other.shape:
        raise InputError(
            f"The calibration images have shapes {one.shape} and {other.shape}: give two arrays "
            "[P, H, W, 3] of one shape, the first and the second view of each pair."
        )
    _check_count(len(one))
    return Pictures(len(one), lambda rows: (one[rows], other[rows]))


def _of_pairs(pairs: Sequence[StereoPair], chosen: np.ndarray | None = None) -> Pictures:
    order = np.arange(len(pairs)) if chosen is None else chosen
    _check_count(len(order))
    first: list[tuple[str, tuple[int, ...]]] = []

    def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        loaded = [pairs[int(i)] for i in order[rows]]
        for pair in loaded:
            if not isinstance(pair, StereoPair):
                raise InputError(
                    f"A calibration pair is a {type(pair).__name__}: give StereoPairs, two arrays "
                    "of images, a folder or 'synthetic'."
                )
            first.append((pair.name, pair.image.shape[1:3])) if not first else None
            if pair.image.shape[1:3] != first[0][1]:
                raise InputError(
                    f"The calibration pairs differ in size: {first[0][0]} is {first[0][1]} and "
                    f"{pair.name} is {pair.image.shape[1:3]}; resize them (--size), or give those "
                    "of one size."
                )
        return stack_images(loaded)

    return Pictures(len(order), read)


def _check_count(count: int) -> None:
    if count < 2:
        raise InputError(
            f"There {'is' if count == 1 else 'are'} {count} calibration "
            f"pair{'s' * (count != 1)}: give at least 2, better some hundreds."
        )
