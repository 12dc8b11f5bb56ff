"""A folder of your own pairs, listed in a text file; ground truth is optional.

    ROOT/pairs.txt   a line for each pair: image 1, image 2 (relative to ROOT; "#" is a comment)
    ROOT/a.jpg       any format that Pillow reads
    ROOT/a.npy       optional z-depth [H, W] in metres, or a.exr (channel Y); 0 or inf where unknown
    ROOT/a.npz       optional camera: `intrinsics` [3, 3] for integer pixel centres (as OpenCV
                     calibrates) and `cam2world` [4, 4]

Without depth no pixel is valid, without a camera K and the pose are nan.
"""

from __future__ import annotations

import os
import pathlib
import shlex
from collections.abc import Callable

from lunar_distill_jax.data.frames import FrameFiles, PairRef, raise_error, require_folder
from lunar_distill_jax.errors import InputError

LIST = "pairs.txt"


def find_pairs(
    root: str | os.PathLike, *, on_error: Callable[[InputError], None] | None = None
) -> list[PairRef]:
    """Lists the pairs of ROOT/pairs.txt.

    Raises:
      InputError: no such folder or list, no pair in it, or a line that does not name two files.
    """
    root = require_folder(root)
    fail = on_error or raise_error
    path = root / LIST
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(
            f"The pair list {path} cannot be read ({type(e).__name__}): write a line with two "
            "image names for each pair."
        ) from e
    refs = []
    for number, line in enumerate(lines, 1):
        try:
            names = shlex.split(line, comments=True)
        except ValueError:  # a quote without its partner
            names = line.split()
        if not names:
            continue
        if len(names) != 2:
            fail(
                InputError(
                    f"Line {number} of {path} has {len(names)} names, expected 2: put names with "
                    "spaces in quotes."
                )
            )
            continue
        first, second = (_frame_files(root / name) for name in names)
        name = "-".join(names)
        refs.append(PairRef(name, name, "unknown", (first, second)))
    if not refs:
        raise InputError(f"The pair list {path} names no pairs (found 0): add a line for each.")
    return refs


def _frame_files(image: pathlib.Path) -> FrameFiles:
    depths = [path for path in map(image.with_suffix, (".exr", ".npy")) if path.is_file()]
    camera = image.with_suffix(".npz")
    return FrameFiles(
        image, depths[0] if depths else None, camera if camera.is_file() else None, corner=False
    )
