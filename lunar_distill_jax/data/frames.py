"""One frame on disk, photograph, z-depth and camera, and two of them as a `StereoPair`.

The readers of the formats (`stereolunar`, `pair_lists`) only say where files lie and which two make
a pair; whatever can be wrong inside a file is found here, by one rule for all of them.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from lunar_distill_jax.data import images
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.types import StereoPair

# All that zipfile and numpy raise on damaged bytes; RuntimeError has NotImplementedError.
NPZ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
CAMERA_KEYS = ("intrinsics", "cam2world")
SPLIT_POSE_KEYS = ("R_cam2world", "t_cam2world")  # BlendedMVS as prepared for MASt3R


@dataclasses.dataclass(frozen=True)
class FrameFiles:
    """Where one frame lies; `depth` and `camera` are None where the user has none.

    camera: may be another frame's file, of the same camera
    corner: whether the file's K places (0, 0) at the corner of the first pixel, not at its centre
    """

    image: pathlib.Path
    depth: pathlib.Path | None
    camera: pathlib.Path | None
    corner: bool = True


@dataclasses.dataclass(frozen=True)
class PairRef:
    """A pair that has not been read yet; `name`, `geometry`, `trajectory` as in `StereoPair`."""

    name: str
    geometry: str
    trajectory: str
    frames: tuple[FrameFiles, FrameFiles]


@dataclasses.dataclass(frozen=True)
class Frame:
    """One view of a `StereoPair`: image uint8 [H, W, 3], depth_m float32 and valid bool [H, W],
    K [3, 3] and T_world_cam [4, 4] float64. Without depth no pixel is valid; without a camera K and
    the pose are nan."""

    image: np.ndarray
    depth_m: np.ndarray
    valid: np.ndarray
    K: np.ndarray
    T_world_cam: np.ndarray


def raise_error(error: InputError) -> None:
    raise error


Sized = tuple[pathlib.Path, tuple[int, int]]  # an image, its (height, width)


def require_folder(root: str | os.PathLike) -> pathlib.Path:
    """Raises InputError unless `root` is a folder."""
    root = pathlib.Path(root)
    if root.is_dir():
        return root
    if not root.exists():
        state, step = "does not exist", "give a folder that holds frames"
    elif zipfile.is_zipfile(root):
        state, step = "is a zip archive, expected a folder", "unpack it and give the new folder"
    else:
        state, step = "is a file, expected a folder", "give a folder that holds frames"
    raise InputError(f"The data folder {root} {state}: {step}.")


def load_pair(
    ref: PairRef, size: int | tuple[int, int] | None = None, *, like: Sized | None = None
) -> StereoPair:
    """Reads one pair; depth is valid where finite and positive (HALF overflows to inf at 65 504 m).

    Args:
      size: None keeps the frames' own; n or (height, width) resamples image (antialiased LANCZOS),
        depth (at the exact new pixel centres) and K together
      like: an image of the same folder, whose size these must have; None: any size

    Raises:
      InputError: a file is missing or unusable, or the two frames do not fit together.
    """
    views = [load_frame(files) for files in ref.frames]
    check_sizes(ref, [view.valid.shape for view in views], like=like)
    if size is not None:
        new = (size, size) if isinstance(size, int) else size
        views = [resize_frame(view, new) for view in views]
    return make_pair(ref.name, ref.geometry, ref.trajectory, views)


def make_pair(name: str, geometry: str, trajectory: str, views: list[Frame]) -> StereoPair:
    """Two frames of one size as a pair."""
    fields = (np.stack(a) for a in zip(*map(_fields, views), strict=True))
    return StereoPair(name, geometry, trajectory, *fields)


def _fields(frame: Frame) -> tuple[np.ndarray, ...]:
    return frame.image, frame.depth_m, frame.valid, frame.K, frame.T_world_cam


def check_sizes(
    ref: PairRef, shapes: Sequence[tuple[int, ...]], *, like: Sized | None = None
) -> None:
    """Raises InputError unless both frames are of one size, and of that of `like`."""
    if shapes[0] != shapes[1]:
        (a, b), (size_a, size_b) = (f.image.name for f in ref.frames), map(size_text, shapes)
        raise InputError(
            f"The images of pair {ref.name} have different sizes ({a} is {size_a}, {b} is "
            f"{size_b}, expected equal): resize one of the frames."
        )
    if like and shapes[0] != like[1]:
        raise InputError(
            f"The image {ref.frames[0].image} is {size_text(shapes[0])} but {like[0]} of the "
            f"same folder is {size_text(like[1])}, expected one size: sort them into a folder "
            "each, or resize them."
        )


def first_size(refs: Sequence[PairRef]) -> Sized | None:
    """The first image and its size, by its header; None where it has none."""
    image = refs[0].frames[0].image
    size = images.stored_size(image)
    return None if size is None else (image, size)


def load_frame(files: FrameFiles) -> Frame:
    """Reads one frame.

    Raises:
      InputError: a file is missing or damaged, the image is black, image and depth differ in size,
        the depth has nan or no valid pixel, K is no pinhole camera, or the pose is not rigid.
    """
    image = images.read_image(files.image)
    if files.camera is None:
        K, T_world_cam = np.full((3, 3), np.nan), np.full((4, 4), np.nan)
    else:
        K, T_world_cam = read_camera(files.camera, corner=files.corner)
    if files.depth is None:
        valid = np.zeros(image.shape[:2], bool)
        return Frame(image, valid.astype(np.float32), valid, K, T_world_cam)
    depth = images.read_depth(files.depth)
    if image.shape[:2] != depth.shape:
        raise InputError(
            f"The image {files.image} is {size_text(image.shape)} but its depth file "
            f"{files.depth.name} is {size_text(depth.shape)}, expected equal sizes: give both of "
            "one frame."
        )
    if missing := int(np.isnan(depth).sum()):
        raise InputError(
            f"The depth file {files.depth} has {missing} nan of {depth.size} pixels (expected "
            "metres, and 0 or inf where there is no surface): write the depth again."
        )
    valid = np.isfinite(depth) & (depth > 0)
    if not valid.any():
        raise InputError(
            f"The depth file {files.depth} has no valid pixel (found 0 of {depth.size}, expected "
            "finite and positive metres): remove the frame."
        )
    return Frame(image, np.where(valid, depth, 0), valid, K, T_world_cam)


def resize_frame(frame: Frame, new: tuple[int, int]) -> Frame:
    """Resamples all fields of a frame to `new` (height, width)."""
    return Frame(
        images.resize_image(frame.image, *new),
        *images.resize_depth(frame.depth_m, frame.valid, *new),
        images.resize_intrinsics(frame.K, frame.valid.shape, new),
        frame.T_world_cam,
    )


def read_camera(path: pathlib.Path, *, corner: bool) -> tuple[np.ndarray, np.ndarray]:
    """K [3, 3] for integer pixel centres and T_world_cam [4, 4], float64.

    The pose is `cam2world` [4, 4], or `R_cam2world` [3, 3] and `t_cam2world` [3].

    Raises:
      InputError: the file is unreadable, a key is missing or of another shape, K is no pinhole
        camera, or the pose is not rigid.
    """
    arrays = read_npz(path, CAMERA_KEYS[:1], "camera file", (CAMERA_KEYS[1:], SPLIT_POSE_KEYS))
    shapes = {"intrinsics": (3, 3), "cam2world": (4, 4), "R_cam2world": (3, 3), "t_cam2world": (3,)}
    for key, array in arrays.items():
        shape = shapes[key]
        if array.shape != shape or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise InputError(
                f"`{key}` of the camera file {path} is {array.dtype} {list(array.shape)}, expected "
                f"finite numbers {list(shape)}: write the frame's camera again."
            )
    K, T = arrays["intrinsics"].astype(np.float64), np.eye(4)
    if "cam2world" in arrays:
        T = arrays["cam2world"].astype(np.float64)
    else:
        T[:3, :3], T[:3, 3] = arrays["R_cam2world"], arrays["t_cam2world"]
    if K[0, 0] <= 0 or K[1, 1] <= 0 or K[1, 0] != 0 or not np.array_equal(K[2], [0, 0, 1]):
        raise InputError(
            f"`intrinsics` of the camera file {path} is {K.tolist()}, expected [[fx, s, cx], "
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
    if corner:
        K[:2, 2] -= 0.5
    return K, T


def read_npz(
    path: pathlib.Path,
    keys: tuple[str, ...],
    what: str,
    either: tuple[tuple[str, ...], ...] = (),
) -> dict[str, np.ndarray]:
    """The arrays `keys` of an npz and, if `either` is given, those of the first group that is
    there; `what` names the file in errors.

    Raises:
      InputError: the file is not a readable npz of plain arrays, or lacks a key.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            group = (
                next((g for g in either if set(g) <= set(file.files)), either[0]) if either else ()
            )
            wanted = (*keys, *group)
            missing = [key for key in wanted if key not in file.files]
            if missing:
                raise InputError(
                    f"The {what} {path} has no key {missing[0]!r} (found {sorted(file.files)}, "
                    f"expected {list(wanted)}): write it again."
                )
            return {key: file[key] for key in wanted}
    except InputError:
        raise
    except NPZ_ERRORS as e:
        raise InputError(
            f"The {what} {path} is not a readable npz of plain arrays (found {type(e).__name__}, "
            f"expected {list(keys)}): copy it again from its source."
        ) from e


def size_text(shape: tuple[int, ...]) -> str:
    """ "WIDTHxHEIGHT" of [H, W, ...]."""
    return f"{shape[1]}x{shape[0]}"
