"""Where pairs come from: a folder in one of the formats we read, or the synthetic Moon."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

from lunar_distill_jax.data import frames, images, mast3r_folder, plain_folder, splits, stereolunar
from lunar_distill_jax.data.frames import PairRef
from lunar_distill_jax.data.synthetic import SyntheticPairs
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.moon import FIRST, Moon, preset
from lunar_distill_jax.types import StereoPair

SYNTHETIC = "synthetic"
TFDS_FILE = "dataset_info.json"


def find_pairs(
    root: str | os.PathLike,
    split: str | None = None,
    *,
    on_error: Callable[[InputError], None] | None = None,
) -> list[PairRef]:
    """Lists the pairs of a folder, whatever its format.

    A folder with pairs.txt is read by `plain_folder`, one with a *_pairs.npz or *_pairs.npy by
    `mast3r_folder`, any other by `stereolunar`.

    Args: see those; `split` names a split file (StereoLunar) or "train", "val", "test" (MASt3R)

    Raises:
      InputError: the folder or a pair cannot be used.
    """
    root = frames.require_folder(root)
    if is_stereolunar(root):
        return stereolunar.find_pairs(root, split, on_error=on_error)
    if (root / plain_folder.LIST).is_file():
        if split is not None:
            raise InputError(f"The pairs of {root} have no splits, found {split!r}: give none.")
        return plain_folder.find_pairs(root, on_error=on_error)
    return mast3r_folder.find_pairs(root, split, on_error=on_error)


def is_stereolunar(root: pathlib.Path) -> bool:
    """Whether a folder is in StereoLunar's format: it has no list of the other two."""
    return not (root / plain_folder.LIST).is_file() and mast3r_folder.pair_list(root) is None


class PairFiles(Sequence[StereoPair]):
    """Pairs on disk, each read when it is asked for; grain reads it as a random-access source."""

    def __init__(
        self,
        refs: Sequence[PairRef],
        size: int | tuple[int, int] | None = None,
        *,
        like: frames.Sized | None = None,
    ):
        """size, like: as for `frames.load_pair`"""
        self.refs, self._size, self._like = tuple(refs), size, like

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, index):  # type: ignore[override]  # of a slice, too
        if isinstance(index, slice):
            return PairFiles(self.refs[index], self._size, like=self._like)
        return frames.load_pair(self.refs[index], self._size, like=self._like)

    def check_sizes(self) -> None:
        """Raises InputError where a pair is not of the size it must have; reads headers only."""
        if self._like is None:
            return
        for ref in self.refs:
            shapes = [images.stored_size(files.image) for files in ref.frames]
            same = [shape for shape in shapes if shape and shape == shapes[0]]
            if len(same) == 2:  # else reading them says what is wrong
                frames.check_sizes(ref, same, like=self._like)


def open_folder(
    root: str | os.PathLike,
    *,
    split: str | None = None,
    size: int | tuple[int, int] | None = None,
    lighting: str = "same",
) -> Sequence[StereoPair]:
    """The pairs of a folder as a random-access sequence; nothing but their names is read yet.

    Args:
      root: a folder in a format of `find_pairs`, or a data set that `stereolunar_tfds` prepared
      split: as for `find_pairs`; "train" or "test" of a prepared data set, by default "train"
      size: None keeps the frames' own; n or (height, width) resamples them
      lighting: "same", "cross" or "all" (`splits.relight`)

    Raises:
      InputError: the folder cannot be used.
    """
    root = pathlib.Path(root)
    if (root / TFDS_FILE).is_file():
        from lunar_distill_jax.data import stereolunar_tfds  # here: seconds to import

        return stereolunar_tfds.PreparedPairs(root, split or "train", size=size, lighting=lighting)
    refs = splits.relight(find_pairs(root, split), lighting)
    if not refs:
        raise InputError(
            f"The folder {root} holds no pairs for lighting {lighting!r} (one sun a geometry): "
            "choose 'same'."
        )
    # StereoLunar's frames are one camera's; pairs that people collected may differ in size.
    return PairFiles(refs, size, like=frames.first_size(refs) if is_stereolunar(root) else None)


def open_pairs(
    source: str | os.PathLike, *, size: int, geometries: int, seed: int
) -> tuple[int, Iterator[StereoPair]]:
    """-> (how many pairs, the pairs of `pair_sequence`, read or rendered one by one)"""
    pairs = pair_sequence(source, size=size, geometries=geometries, seed=seed)
    return len(pairs), iter(pairs)


def synthetic_moon(source: str | os.PathLike) -> Moon | None:
    """The Moon of "synthetic" or "synthetic:PRESET" (`moon.PRESETS`); None: it is a folder.

    Raises:
      InputError: there is no such preset.
    """
    kind, _, name = str(source).partition(":")
    if kind != SYNTHETIC:
        return None
    return preset(name) if name else FIRST


def pair_sequence(
    source: str | os.PathLike, *, size: int, geometries: int, seed: int, lighting: str = "same"
) -> Sequence[StereoPair]:
    """Pairs as square frames of `size` pixels, each read or rendered when it is asked for.

    source: a folder, or "synthetic" or "synthetic:PRESET" for `geometries` rendered scenes from
            seed `seed` on, each under one of StereoLunar's suns; a folder is read whole
    lighting: as for `open_folder`; of rendered scenes, each under one sun, or "cross", each view
              under its own

    Raises:
      InputError: `size` is not a multiple of 16, a number is out of range, or the folder cannot be
        used.
    """
    check_size(size)
    moon = synthetic_moon(source)
    if moon is not None:
        if geometries < 1:
            raise InputError(f"The number of geometries is {geometries}: give 1 or more.")
        if seed < 0:
            raise InputError(f"The seed of the synthetic scenes is {seed}: give 0 or more.")
        splits.check_lighting(lighting)
        if lighting == "all":
            raise InputError("Rendered scenes have the lighting 'same' or 'cross': choose one.")
        return SyntheticPairs(seed, geometries, size, moon=moon, crossed=lighting == "cross")
    pairs = open_folder(source, size=size, lighting=lighting)
    if isinstance(pairs, PairFiles):
        pairs.check_sizes()  # now, not after minutes of compilation
    return pairs


def check_size(size: int) -> None:
    """Raises InputError unless frames of `size` x `size` pixels can be cut into patches."""
    if size < 32 or size % 16:
        raise InputError(f"The size is {size} pixels: give a multiple of 16, 32 or more.")
