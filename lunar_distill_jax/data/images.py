"""Reading photographs and depth files, and resampling a frame so that its geometry stays exact.

Integer pixel coordinates are pixel centres, so pixel u of a W-pixel row lies at (u + 0.5) * s - 0.5
of the same row resampled to s * W pixels. Every function here follows it.
"""

from __future__ import annotations

import pathlib
import struct
import warnings

import numpy as np
import OpenEXR
from PIL import Image, ImageOps

from lunar_distill_jax.errors import InputError

# What Pillow's decoders raise on damaged files.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, struct.error,
              TypeError, ZeroDivisionError, OverflowError, MemoryError)  # fmt: skip
BLACKEST = 2  # of 255: a frame without any brighter pixel shows nothing
ANIMATIONS = ("GIF", "PNG", "WEBP")  # by Pillow's names
DIMMEST_16 = 4096  # brightest pixel of a 16-bit picture, below which it may be one of 12 bits
DEPTH_JUMP = 1.1  # neighbours whose depths differ by a larger factor lie on two surfaces


def _require_file(path: pathlib.Path, what: str) -> None:
    if not path.is_file():
        raise InputError(f"The {what} {path} does not exist: restore it, or remove its frame.")


def read_image(path: pathlib.Path) -> np.ndarray:
    """Reads a photograph as it is stored: uint8 [H, W, 3]; grey images get three equal channels.

    Raises:
      InputError: the file is missing, is not an image, is cut short, or shows nothing but black.
    """
    return np.asarray(_open_image(path))


def read_photograph(path: pathlib.Path) -> Image.Image:
    """Reads a photograph as a camera wrote it: RGB, turned upright as its EXIF says.

    Raises:
      InputError: as `read_image`.
    """
    return _open_image(path, upright=True)


def stored_size(path: pathlib.Path) -> tuple[int, int] | None:
    """(height, width) of an image file by its header; None where it has none."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
            return file.height, file.width
    except (*UNREADABLE, Image.DecompressionBombError):
        return None  # who reads its pixels says what is wrong with it


def _open_image(path: pathlib.Path, *, upright: bool = False) -> Image.Image:
    _require_file(path, "image")
    try:
        # Pillow warns of every odd tag; what matters raises.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
            _refuse_animation(path, file)
            upright_file = ImageOps.exif_transpose(file) if upright else file
            image = _eight_bits(path, upright_file).convert("RGB")
    except InputError:
        raise
    except (*UNREADABLE, Image.DecompressionBombError) as e:
        raise InputError(
            f"The image {path} ({path.stat().st_size} bytes) cannot be decoded "
            f"({_one_line(e)}): copy it again from its source."
        ) from e
    brightest = np.asarray(image).max()
    if brightest <= BLACKEST:
        raise InputError(
            f"The image {path} is all black (brightest pixel {brightest} of 255, expected more "
            f"than {BLACKEST}): give one that shows the surface."
        )
    return image


def _refuse_animation(path: pathlib.Path, image: Image.Image) -> None:
    count = getattr(image, "n_frames", 1)
    if image.format in ANIMATIONS and count > 1:  # a TIFF's further pages are its small copies
        raise InputError(
            f"The image {path} is an animation of {count} pictures, expected one: save the one you "
            "mean as a PNG."
        )


def _eight_bits(path: pathlib.Path, image: Image.Image) -> Image.Image:
    """16-bit and float rasters, which Pillow would clip at 255, as the 8-bit picture they are.

    16 bits: 0 to 65535; floats: 0 to 1, or 0 to 255 where one is larger than 1.

    Raises:
      InputError: numbers outside that, nan, or so few of the 16 bits that white is unknown.
    """
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image, np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode[0] == "F":
        white, known, expected = (1.0 if high <= 1 else 255.0), high <= 255, "0 to 1, or 0 to 255"
    else:
        white, expected = 65535.0, f"0 to 65535 with a brightest of {DIMMEST_16} or more"
        known = DIMMEST_16 <= high <= white
    if not (known and low >= 0):  # so that nan is refused too
        raise InputError(
            f"The image {path} holds numbers from {low:g} to {high:g}, expected {expected}, so "
            "that white is known: scale them, or save it with 8 bits."
        )
    return Image.fromarray((255 / white * values).round().astype(np.uint8))


def read_depth(path: pathlib.Path) -> np.ndarray:
    """Reads channel "Y" of an EXR, or an .npy: z-depth in metres, float32 [H, W]; HALF overflow
    stays inf.

    Raises:
      InputError: the file is missing, cut short, not of its kind, or has no channel "Y".
    """
    _require_file(path, "depth file")
    if path.suffix == ".npy":
        return _read_npy_depth(path)
    data = path.read_bytes()
    # OpenEXR prints to the terminal when pixels are missing, so we look first.
    if len(data) < (needed := _exr_bytes_needed(data)):
        raise InputError(
            f"The depth file {path} is cut short (found {len(data)} bytes, expected at least "
            f"{needed}): copy it again from its source."
        )
    try:
        with OpenEXR.File(str(path)) as file:
            channels = {name: channel.pixels for name, channel in file.channels().items()}
    except (RuntimeError, ValueError) as e:
        raise InputError(
            f"The depth file {path} ({len(data)} bytes) is not a readable EXR ({_one_line(e)}): "
            "copy it again from its source."
        ) from e
    if "Y" not in channels:
        raise InputError(
            f"The depth file {path} has the channels {sorted(channels)}, expected 'Y': write the "
            "z-depth in metres as one channel of that name."
        )
    return np.asarray(channels["Y"], np.float32)


def _read_npy_depth(path: pathlib.Path) -> np.ndarray:
    try:
        depth = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise InputError(
            f"The depth file {path} is not a readable npy ({_one_line(e)}): copy it again from its "
            "source."
        ) from e
    if depth.ndim != 2 or depth.dtype.kind not in "fiu":
        raise InputError(
            f"The depth file {path} is {depth.dtype} {list(depth.shape)}, expected numbers "
            "[H, W]: write the z-depth in metres."
        )
    return depth.astype(np.float32)


def _exr_bytes_needed(data: bytes) -> int:
    """Bytes up to the end of the last chunk named by the offset table of a one-part scanline EXR.

    A lower bound where the file ends before that can be read; 0 for other kinds of EXR and files.
    Layout: openexr.com, "OpenEXR File Layout": magic, version, attributes, offset table, chunks.
    """
    if len(data) < 8 or data[:4] != b"v/1\x01" or struct.unpack_from("<I", data, 4)[0] >> 9 != 0:
        return 0
    at = 8
    try:
        while data[at]:  # attributes: name, type, size, value
            at = data.index(b"\0", data.index(b"\0", at) + 1) + 1
            at += 4 + struct.unpack_from("<I", data, at)[0]
        at += 1
        (first,) = struct.unpack_from("<Q", data, at)
        if first > len(data):
            return first
        last = int(np.frombuffer(data, "<u8", (first - at) // 8, at).max())
        if last + 8 > len(data):
            return last + 8
        return last + 8 + struct.unpack_from("<I", data, last + 4)[0]
    except (IndexError, ValueError, struct.error):  # the header itself is not all there
        return max(at, len(data)) + 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resamples uint8 [H, W, 3] with Pillow's antialiased LANCZOS, whose grid is the one above."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def resize_intrinsics(K: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """K [3, 3] of a frame resampled from `old` to `new` (height, width), for integer centres."""
    scale = np.array([new[1] / old[1], new[0] / old[0]])
    out = K.astype(np.float64)
    out[:2] *= scale[:, None]
    out[:2, 2] += 0.5 * scale - 0.5
    return out


def resize_depth(
    depth: np.ndarray, valid: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Depth at the exact new pixel centres: bilinear in 1 / depth, which is exact on planes.

    A new pixel is valid where its four neighbours are and lie on one surface. Nearest-neighbour
    sampling would move the ground truth by up to half an old pixel.

    Args:
      depth: float [H, W], z-depth; only read where `valid`
      valid: bool [H, W]

    Returns:
      float32 [height, width] (0 where not valid) and bool [height, width].
    """
    row, y = _neighbours(depth.shape[0], height)
    col, x = _neighbours(depth.shape[1], width)
    inverse = np.where(valid, 1.0 / np.where(valid, depth, 1.0), 0.0)
    corners = [inverse[np.ix_(row + i, col + j)] for i in (0, 1) for j in (0, 1)]
    a, b, c, d = corners
    y, x = y[:, None], x[None]
    out = (1 - y) * ((1 - x) * a + x * b) + y * ((1 - x) * c + x * d)
    near, far = np.maximum.reduce(corners), np.minimum.reduce(corners)
    ok = (far > 0) & (near <= DEPTH_JUMP * far) & (out > 0)
    return np.where(ok, 1.0 / np.where(ok, out, 1.0), 0.0).astype(np.float32), ok


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Index of the lower neighbour of each new centre, and the weight of the upper one.

    At the border of an enlarged frame the weight leaves [0, 1]: linear extrapolation.
    """
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    lower = np.clip(np.floor(centre).astype(int), 0, old - 2)
    return lower, centre - lower
