"""Which pairs are for training and which for testing, and which suns meet in a pair.

Pairs of one geometry show the same ground from the same cameras: they stay on one side of a split.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from lunar_distill_jax import atomic
from lunar_distill_jax.data import frames
from lunar_distill_jax.data.frames import PairRef
from lunar_distill_jax.data.write import PAIR_ROW, overlap
from lunar_distill_jax.errors import InputError

LIGHTINGS = ("same", "cross", "all")


def split_by_geometry(
    refs: Sequence[PairRef], fraction: float = 0.1
) -> tuple[list[PairRef], list[PairRef]]:
    """-> (training pairs, test pairs), `fraction` of the geometries for testing, at least one.

    The test geometries are those whose names have the smallest CRC-32: no random state, the same on
    every machine, whatever the order of `refs`.

    Raises:
      InputError: there are fewer than two geometries, or `fraction` is not inside (0, 1).
    """
    names = sorted({ref.geometry for ref in refs}, key=lambda n: (zlib.crc32(n.encode()), n))
    if len(names) < 2:
        raise InputError(
            f"There are {len(names)} geometries, expected 2 or more to split into training and "
            "testing: give more data."
        )
    if not 0 < fraction < 1:
        raise InputError(f"The test fraction is {fraction}: give a number between 0 and 1.")
    held_out = set(names[: min(math.ceil(fraction * len(names)), len(names) - 1)])
    train = [ref for ref in refs if ref.geometry not in held_out]
    return train, [ref for ref in refs if ref.geometry in held_out]


def relight(refs: Sequence[PairRef], lighting: str) -> list[PairRef]:
    """Pairs of the same geometries whose views share a sun ("same"), do not ("cross"), or "all".

    refs: pairs under one sun each, as `stereolunar.find_pairs` lists them. A geometry under three
          suns has three pairs of the first kind and six of the second, which are far harder.
    """
    check_lighting(lighting)
    out = list(refs) if lighting in ("same", "all") else []
    if lighting in ("cross", "all"):
        groups: dict[str, list[PairRef]] = {}
        for ref in refs:
            groups.setdefault(ref.geometry, []).append(ref)
        for group in groups.values():
            out += [_cross(a, b) for a in group for b in group if a is not b]
    return out


def check_lighting(lighting: str) -> None:
    if lighting not in LIGHTINGS:
        raise InputError(f"Unknown lighting {lighting!r}: choose from {', '.join(LIGHTINGS)}.")


def _cross(a: PairRef, b: PairRef) -> PairRef:
    first, second = a.frames[0], b.frames[1]
    folder, _, _ = a.name.rpartition("/")
    name = f"{first.image.stem}-{second.image.stem}"
    return dataclasses.replace(
        a, name=f"{folder}/{name}" if folder else name, frames=(first, second)
    )


def write_pair_list(
    path: str | os.PathLike,
    root: str | os.PathLike,
    refs: Sequence[PairRef],
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Writes `refs` as `scenes`, `images` and `pairs`, the list that StereoLunar's own code reads.

    A row's score is the overlap of the views; it is measured once for each geometry.
    """
    root = pathlib.Path(root)
    scenes: dict[str, int] = {}
    images: dict[str, int] = {}
    scores: dict[str, float] = {}
    rows = []
    for ref in refs:
        folder = ref.frames[0].image.parent
        if folder.name == "images":
            folder = folder.parent
        scene = scenes.setdefault(folder.relative_to(root).as_posix(), len(scenes))
        stems = [images.setdefault(f.image.stem, len(images)) for f in ref.frames]
        if ref.geometry not in scores:
            scores[ref.geometry] = overlap(frames.load_pair(ref))
        rows.append((scene, *stems, scores[ref.geometry]))
        progress(1)
    with atomic.atomic_file(path) as part, open(part, "wb") as file:
        np.savez(
            file,
            scenes=np.array(list(scenes), dtype=str),
            images=np.array(list(images), dtype=str),
            pairs=np.array(rows, dtype=PAIR_ROW),
        )
