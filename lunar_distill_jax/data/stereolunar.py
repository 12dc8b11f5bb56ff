"""Reads StereoLunar's on-disk format, real or rendered; conventions as measured on real frames.

A frame is `STEM.jpg`, `STEM.exr` (channel Y, HALF, z-depth in metres) and `STEM.npz` (`intrinsics`
[3, 3] for pixel corners; `cam2world` [4, 4], camera to Moon-centred metres, OpenCV axes), side by
side or in the sub-folders images/, depth/ and cameras/. Which frames form a pair says the split
file, an npz of `scenes`, `images` and `pairs` (rows: scene, image 1, image 2, score), or else their
numbers: the even frame is view 1, the next one view 2.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator

from lunar_distill_jax.data.frames import (
    FrameFiles,
    PairRef,
    load_pair,
    raise_error,
    require_folder,
)
from lunar_distill_jax.data.pair_lists import pairs_of_list
from lunar_distill_jax.errors import InputError

__all__ = ["PairRef", "find_pairs", "load_pair"]

SPLIT_FILES = ("split.npz", "train.npz", "test.npz")
TRAJECTORIES = {  # words of folder names -> what they mean; "pitch" and "landing" are the authors'
    "nadir": "nadir",
    "oblique": "oblique",
    "pitch": "oblique",
    "dynamic": "dynamic",
    "landing": "dynamic",
}

_log = logging.getLogger(__name__)


def find_pairs(
    root: str | os.PathLike,
    split: str | None = None,
    *,
    on_error: Callable[[InputError], None] | None = None,
) -> list[PairRef]:
    """Lists the pairs under `root`, reading only names, the split file and the tiny camera files.

    Pairs of one folder whose camera files are equal byte by byte share a geometry, named after the
    first of them. A missing camera file is replaced, with a warning, by that of a frame of the same
    folder whose depth file is equal byte by byte: same depth, same camera.

    Args:
      root: a folder with a split file, or any folder above frames
      split: name of a split file in `root`; None takes the only one of `SPLIT_FILES`, if any
      on_error: gets the error of each pair that cannot be used, which is then left out; None raises
        the first

    Raises:
      InputError: no such folder, no pairs in it, an unusable split file, a frame without partner or
        without a camera file that could be repaired.
    """
    root = require_folder(root)
    fail = on_error or raise_error
    split_file = _choose_split(root, split)
    if split_file:
        named = pairs_of_list(root, split_file, fail)
    else:
        named = _pairs_by_number(root, fail)
    refs, geometries, listed = [], {}, 0
    for folder, stems in named:
        listed += 1
        scene = folder.relative_to(root).as_posix()
        name = "-".join(stems) if scene == "." else f"{scene}/{'-'.join(stems)}"
        try:
            first, second = (_with_camera(_frame_files(folder, stem)) for stem in stems)
        except InputError as error:
            fail(error)
            continue
        ref = PairRef(name, name, _trajectory(root, folder), (first, second))
        geometry = geometries.setdefault(camera_key(ref), name)
        refs.append(dataclasses.replace(ref, geometry=geometry))
    if not listed:
        if split_file:
            raise InputError(
                f"The split file {split_file} lists no pairs (found 0 rows in `pairs`): name "
                "another one, or build it again."
            )
        raise InputError(
            f"The data folder {root} holds no pairs (found 0, expected frames such as "
            "im_00000.jpg, im_00000.exr, im_00000.npz and im_00001.*): give a folder that does."
        )
    return refs


def camera_key(ref: PairRef) -> tuple[pathlib.Path, bytes, bytes]:
    """Equal for pairs of one geometry: their folder, and the bytes of their camera files."""
    first, second = (files.camera.read_bytes() if files.camera else b"" for files in ref.frames)
    return ref.frames[0].image.parent, first, second


# Finding ------------------------------------------------------------------------------------------


def split_files(root: pathlib.Path) -> list[pathlib.Path]:
    """The split files of StereoLunar that lie in `root`."""
    return [root / name for name in SPLIT_FILES if (root / name).is_file()]


def _choose_split(root: pathlib.Path, split: str | None) -> pathlib.Path | None:
    if split is not None:
        if not (root / split).is_file():
            raise InputError(
                f"The split file {root / split} does not exist: name one that lies in {root}."
            )
        return root / split
    found = split_files(root)
    if len(found) > 1:
        raise InputError(
            f"The data folder {root} holds {len(found)} split files "
            f"({', '.join(path.name for path in found)}), expected one: name the one to read."
        )
    return found[0] if found else None


def _pairs_by_number(
    root: pathlib.Path, fail: Callable[[InputError], None]
) -> Iterator[tuple[pathlib.Path, tuple[str, str]]]:
    """Yields (folder, (even stem, odd stem)) of all folders under `root`, in order.

    By the numbers in the names, not by position: one lost frame must not shift all later pairs.
    """
    folders = set()
    for folder, subfolders, _ in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        path = pathlib.Path(folder)
        folders.add(path.parent if path.name in ("images", "depth", "cameras") else path)
    for folder in sorted(folders):
        stems = {}
        for path in (*folder.glob("*.jpg"), *folder.glob("*.exr"), *folder.glob("images/*.jpg")):
            if number := re.search(r"\d+$", path.stem):
                stems[path.stem[: number.start()], int(number[0])] = path.stem
        for (prefix, number), stem in sorted(stems.items()):
            partner = stems.get((prefix, number ^ 1))  # 594 <-> 595
            if partner is None:
                fail(
                    InputError(
                        f"The frame {folder / stem} has no partner (found no frame {number ^ 1}, "
                        "expected even and odd numbers in pairs): restore that frame, or remove "
                        "this one."
                    )
                )
            elif number % 2 == 0:
                yield folder, (stem, partner)


def _frame_files(folder: pathlib.Path, stem: str) -> FrameFiles:
    image, depth, camera = folder, folder, folder
    if (folder / "images").is_dir():
        image, depth, camera = folder / "images", folder / "depth", folder / "cameras"
    return FrameFiles(image / f"{stem}.jpg", depth / f"{stem}.exr", camera / f"{stem}.npz")


def _with_camera(frame: FrameFiles) -> FrameFiles:
    """`frame`, whose camera file may now be that of another frame with the same depth file."""
    camera, depth_file = frame.camera, frame.depth
    assert camera and depth_file
    if camera.is_file():
        return frame
    if depth_file.is_file():
        depth = depth_file.read_bytes()
        for other in sorted(depth_file.parent.glob("*.exr")):
            donor = camera.with_name(f"{other.stem}.npz")
            if donor.is_file() and other.read_bytes() == depth:
                _log.warning(
                    "The camera file %s is missing: using %s, whose depth file is identical.",
                    camera,
                    donor,
                )
                return dataclasses.replace(frame, camera=donor)
    raise InputError(
        f"The frame {frame.image.with_suffix('')} has no camera file (expected {camera}) and "
        "no other frame of its folder has the same depth file to repair it from: restore the file, "
        "or remove the frame."
    )


def _trajectory(root: pathlib.Path, folder: pathlib.Path) -> str:
    """By the nearest folder name that holds a known word; "unknown" where none does."""
    above = (root.resolve().name, root.resolve().parent.name)
    for part in (*reversed(folder.relative_to(root).parts), *above):
        for word, trajectory in TRAJECTORIES.items():
            if word in part.lower():
                return trajectory
    return "unknown"
