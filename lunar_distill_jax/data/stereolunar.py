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
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from lunar_distill_jax.data import images
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.types import StereoPair

SPLIT_FILES = ("split.npz", "train.npz", "test.npz")
TRAJECTORIES = {  # words of folder names -> what they mean; "pitch" and "landing" are the authors'
    "nadir": "nadir",
    "oblique": "oblique",
    "pitch": "oblique",
    "dynamic": "dynamic",
    "landing": "dynamic",
}

_log = logging.getLogger(__name__)
# All that zipfile and numpy raise on damaged bytes; RuntimeError has NotImplementedError.
_NPZ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclasses.dataclass(frozen=True)
class FrameFiles:
    """Where one frame lies; `camera` may be another frame's file, of the same camera."""

    image: pathlib.Path
    depth: pathlib.Path
    camera: pathlib.Path


@dataclasses.dataclass(frozen=True)
class PairRef:
    """A pair that has not been read yet; `name`, `geometry`, `trajectory` as in `StereoPair`."""

    name: str
    geometry: str
    trajectory: str
    frames: tuple[FrameFiles, FrameFiles]


def find_pairs(root: str | os.PathLike, split: str | None = None) -> list[PairRef]:
    """Lists the pairs under `root`, reading only names, the split file and the tiny camera files.

    Pairs of one folder whose camera files are equal byte by byte share a geometry, named after the
    first of them. A missing camera file is replaced, with a warning, by that of a frame of the same
    folder whose depth file is equal byte by byte: same depth, same camera.

    Args:
      root: a folder with a split file, or any folder above frames
      split: name of a split file in `root`; None takes the only one of `SPLIT_FILES`, if any

    Raises:
      InputError: no such folder, no pairs in it, an unusable split file, a frame without partner or
        without a camera file that could be repaired.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise InputError(
            f"The data folder {root} {state}: give a folder that holds StereoLunar frames."
        )
    split_file = _choose_split(root, split)
    named = _pairs_of_split(root, split_file) if split_file else _pairs_by_number(root)
    refs, geometries = [], {}
    for folder, stems in named:
        scene = folder.relative_to(root).as_posix()
        name = "-".join(stems) if scene == "." else f"{scene}/{'-'.join(stems)}"
        first, second = (_with_camera(_frame_files(folder, stem)) for stem in stems)
        cameras = (folder, first.camera.read_bytes(), second.camera.read_bytes())
        geometry = geometries.setdefault(cameras, name)
        refs.append(PairRef(name, geometry, _trajectory(root, folder), (first, second)))
    if not refs:
        raise InputError(
            f"The data folder {root} holds no pairs (found 0, expected frames such as "
            "im_00000.jpg, im_00000.exr, im_00000.npz and im_00001.*): give a folder that does."
        )
    return refs


def load_pair(ref: PairRef, size: int | tuple[int, int] | None = None) -> StereoPair:
    """Reads one pair; depth is valid where finite and positive (HALF overflows to inf at 65 504 m).

    Args:
      size: None keeps the frames' own; n or (height, width) resamples image (antialiased LANCZOS),
        depth (at the exact new pixel centres) and K together

    Raises:
      InputError: a file is missing or unusable, or the two frames do not fit together.
    """
    views = [_load_frame(frame) for frame in ref.frames]
    shapes = [view[0].shape[:2] for view in views]
    if shapes[0] != shapes[1]:
        a, b = (frame.image for frame in ref.frames)
        raise InputError(
            f"The images of pair {ref.name} have different sizes ({a.name} is {_size(shapes[0])}, "
            f"{b.name} is {_size(shapes[1])}, expected equal): resize one of the frames."
        )
    if size is not None:
        new = (size, size) if isinstance(size, int) else size
        views = [_resize_view(view, new) for view in views]
    image, depth, valid, K, T_world_cam = (
        np.stack([view[i] for view in views]) for i in range(len(views[0]))
    )
    return StereoPair(ref.name, ref.geometry, ref.trajectory, image, depth, valid, K, T_world_cam)


# Finding ------------------------------------------------------------------------------------------


def _choose_split(root: pathlib.Path, split: str | None) -> pathlib.Path | None:
    if split is not None:
        if not (root / split).is_file():
            raise InputError(
                f"The split file {root / split} does not exist: name one that lies in {root}."
            )
        return root / split
    found = [root / name for name in SPLIT_FILES if (root / name).is_file()]
    if len(found) > 1:
        raise InputError(
            f"The data folder {root} holds {len(found)} split files "
            f"({', '.join(path.name for path in found)}), expected one: name the one to read."
        )
    return found[0] if found else None


def _pairs_of_split(
    root: pathlib.Path, path: pathlib.Path
) -> Iterator[tuple[pathlib.Path, tuple[str, str]]]:
    """Yields (folder, (stem 1, stem 2)) for each row of the split file."""
    arrays = _read_npz(path, ("scenes", "images", "pairs"), "split file")
    scenes, stems = (np.atleast_1d(arrays[key]).tolist() for key in ("scenes", "images"))
    for number, row in enumerate(arrays["pairs"].tolist()):
        try:
            scene, first, second = (int(index) for index in tuple(row)[:3])
            if min(scene, first, second) < 0:
                raise IndexError
            folder = root / str(scenes[scene])
            pair = str(stems[first]), str(stems[second])
        except (IndexError, TypeError, ValueError) as e:
            raise InputError(
                f"Row {number} of `pairs` in the split file {path} is {row}, expected (scene < "
                f"{len(scenes)}, image < {len(stems)}, image < {len(stems)}, score): build the "
                "file again."
            ) from e
        if not folder.is_dir():
            raise InputError(
                f"The scene folder {folder} named by the split file {path.name} does not exist: "
                "restore it, or remove its pairs from the split file."
            )
        yield folder, (pair[0].removesuffix(".jpg"), pair[1].removesuffix(".jpg"))


def _pairs_by_number(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, tuple[str, str]]]:
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
                raise InputError(
                    f"The frame {folder / stem} has no partner (found no frame {number ^ 1}, "
                    "expected even and odd numbers in pairs): restore that frame, or remove this "
                    "one."
                )
            if number % 2 == 0:
                yield folder, (stem, partner)


def _frame_files(folder: pathlib.Path, stem: str) -> FrameFiles:
    image, depth, camera = folder, folder, folder
    if (folder / "images").is_dir():
        image, depth, camera = folder / "images", folder / "depth", folder / "cameras"
    return FrameFiles(image / f"{stem}.jpg", depth / f"{stem}.exr", camera / f"{stem}.npz")


def _with_camera(frame: FrameFiles) -> FrameFiles:
    """`frame`, whose camera file may now be that of another frame with the same depth file."""
    if frame.camera.is_file():
        return frame
    if frame.depth.is_file():
        depth = frame.depth.read_bytes()
        for other in sorted(frame.depth.parent.glob("*.exr")):
            donor = frame.camera.with_name(f"{other.stem}.npz")
            if donor.is_file() and other.read_bytes() == depth:
                _log.warning(
                    "The camera file %s is missing: using %s, whose depth file is identical.",
                    frame.camera,
                    donor,
                )
                return dataclasses.replace(frame, camera=donor)
    raise InputError(
        f"The frame {frame.image.with_suffix('')} has no camera file (expected {frame.camera}) and "
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


# Loading ------------------------------------------------------------------------------------------


def _load_frame(files: FrameFiles) -> tuple[np.ndarray, ...]:
    """The fields of `StereoPair` for one view: image, depth, valid, K, T_world_cam."""
    image, depth = images.read_image(files.image), images.read_depth(files.depth)
    if image.shape[:2] != depth.shape:
        raise InputError(
            f"The image {files.image} is {_size(image.shape)} but its depth file "
            f"{files.depth.name} is {_size(depth.shape)}, expected equal sizes: give both of one "
            "frame."
        )
    valid = np.isfinite(depth) & (depth > 0)
    if not valid.any():
        raise InputError(
            f"The depth file {files.depth} has no valid pixel (found 0 of {depth.size}, expected "
            "finite and positive metres): remove the frame."
        )
    return image, np.where(valid, depth, 0), valid, *_read_camera(files.camera)


def _resize_view(view: tuple[np.ndarray, ...], new: tuple[int, int]) -> tuple[np.ndarray, ...]:
    image, depth, valid, K, T_world_cam = view
    return (
        images.resize_image(image, *new),
        *images.resize_depth(depth, valid, *new),
        images.resize_intrinsics(K, depth.shape, new),
        T_world_cam,
    )


def _read_camera(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """K [3, 3] for integer pixel centres and T_world_cam [4, 4], float64."""
    arrays = _read_npz(path, ("intrinsics", "cam2world"), "camera file")
    for key, shape in (("intrinsics", (3, 3)), ("cam2world", (4, 4))):
        array = arrays[key]
        if array.shape != shape or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise InputError(
                f"`{key}` of the camera file {path} is {array.dtype} {list(array.shape)}, expected "
                f"finite numbers {list(shape)}: write the frame's camera again."
            )
    K, T = (arrays[key].astype(np.float64) for key in ("intrinsics", "cam2world"))
    if K[0, 0] <= 0 or K[1, 1] <= 0 or K[1, 0] != 0 or not np.array_equal(K[2], [0, 0, 1]):
        raise InputError(
            f"`intrinsics` of the camera file {path} is {K.tolist()}, expected [[fx, 0, cx], "
            "[0, fy, cy], [0, 0, 1]] with positive fx and fy: write the frame's camera again."
        )
    # float32 rotations are orthonormal to 1e-7; anything worse than 1e-4 is no rounding.
    error = np.abs(T[:3, :3].T @ T[:3, :3] - np.eye(3)).max()
    det = np.linalg.det(T[:3, :3])
    if error > 1e-4 or det < 0 or not np.array_equal(T[3], [0, 0, 0, 1]):
        raise InputError(
            f"`cam2world` of the camera file {path} is not a rigid pose (determinant {det:.4g}, "
            f"expected 1; |R'R - I| {error:.2g}, expected < 1e-4; last row {T[3].tolist()}, "
            "expected [0, 0, 0, 1]): write the frame's camera again."
        )
    K[:2, 2] -= 0.5  # the files place (0, 0) at the corner of the first pixel, we at its centre
    return K, T


def _read_npz(path: pathlib.Path, keys: tuple[str, ...], what: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file.files]
            if missing:
                raise InputError(
                    f"The {what} {path} has no key {missing[0]!r} (found {sorted(file.files)}, "
                    f"expected {list(keys)}): write it again."
                )
            return {key: file[key] for key in keys}
    except InputError:
        raise
    except _NPZ_ERRORS as e:
        raise InputError(
            f"The {what} {path} is not a readable npz of plain arrays (found {type(e).__name__}, "
            f"expected {list(keys)}): copy it again from its source."
        ) from e


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
