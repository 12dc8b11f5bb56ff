"""Folders in the format that MASt3R's preparation scripts write (BlendedMVS and the like).

    ROOT/NAME_pairs.npz   `scenes`, `images`, `pairs` as in `pair_lists`, or
    ROOT/NAME_pairs.npy   rows (seq_high, seq_low, img1, img2, score), as BlendedMVS has them
    ROOT/SCENE/STEM.jpg   photograph
    ROOT/SCENE/STEM.exr   z-depth, channel Y; 0 where there is none
    ROOT/SCENE/STEM.npz   `intrinsics` and `cam2world`, or `R_cam2world` and `t_cam2world`

Their K is for integer pixel centres, and is used as it is. In a .npy list a scene is named by its
two numbers, %08x%016x, and a frame %08d.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from lunar_distill_jax.data.frames import FrameFiles, PairRef, raise_error, require_folder
from lunar_distill_jax.data.pair_lists import pairs_of_list
from lunar_distill_jax.errors import InputError

COLUMNS = ("seq_high", "seq_low", "img1", "img2")
# Of ten scenes, by the last digit of seq_low: eight to train on, one to watch, one to test.
SPLITS = {"train": range(2, 10), "val": (0,), "test": (1,)}


def pair_list(root: pathlib.Path) -> pathlib.Path | None:
    """The pair list in `root`, if there is one."""
    return next(iter(sorted((*root.glob("*_pairs.npz"), *root.glob("*_pairs.npy")))), None)


def find_pairs(
    root: pathlib.Path,
    split: str | None = None,
    *,
    on_error: Callable[[InputError], None] | None = None,
) -> list[PairRef]:
    """Lists the pairs; those of scenes that are not there are left out, as MASt3R does.

    split: None: all; "train", "val" or "test": of a .npy list, by the last digit of the scene

    Raises:
      InputError: there is no usable pair list, or it names no pair that is there.
    """
    root = require_folder(root)
    fail = on_error or raise_error
    path = pair_list(root)
    if path is None:
        raise InputError(f"The folder {root} holds no *_pairs.npz or *_pairs.npy: add the list.")
    if path.suffix == ".npy":
        named = _pairs_of_rows(root, path, split)
    elif split is None:
        named = pairs_of_list(root, path, fail)
    else:
        raise InputError(f"The pair list {path} has no splits, found split {split!r}: give none.")
    refs = []
    for folder, stems in named:
        if not folder.is_dir():
            continue
        files = [
            FrameFiles(*(folder / f"{stem}{end}" for end in (".jpg", ".exr", ".npz")), corner=False)
            for stem in stems
        ]
        name = f"{folder.relative_to(root).as_posix()}/{'-'.join(stems)}"
        refs.append(PairRef(name, name, "unknown", (files[0], files[1])))
    if not refs:
        raise InputError(
            f"The pair list {path} names no pair that lies under {root} (found 0): unpack the "
            "scenes beside it, or name another split."
        )
    return refs


def _pairs_of_rows(
    root: pathlib.Path, path: pathlib.Path, split: str | None
) -> Iterator[tuple[pathlib.Path, tuple[str, str]]]:
    if split is not None and split not in SPLITS:
        raise InputError(f"Unknown split {split!r}: choose from {', '.join(SPLITS)}.")
    try:
        rows = np.load(path, allow_pickle=False)
        columns = [rows[name].tolist() for name in COLUMNS]
    except (OSError, ValueError, EOFError, IndexError, KeyError) as e:
        raise InputError(
            f"The pair list {path} is not a readable array with the columns {list(COLUMNS)} (found "
            f"{type(e).__name__}): copy it again from its source."
        ) from e
    for high, low, first, second in zip(*columns, strict=True):
        if split is None or low % 10 in SPLITS[split]:
            yield root / f"{high:08x}{low:016x}", (f"{first:08d}", f"{second:08d}")
