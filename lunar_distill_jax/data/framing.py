"""Photographs of any size to the sizes a network takes, by MASt3R's rules, and the way back.

The long side is resampled to 512 (or the short side to 224), then the middle is cut out so that
both sides are multiples of the patch. A square picture at 512 loses a quarter of its height unless
`square` is kept: that is what the released models were trained on.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageOps

SHORT_SIDE_SIZE = 224  # at this size the short side is resampled, and a square is cut out


@dataclasses.dataclass(frozen=True)
class Framing:
    """Where the pixels of a network's frame lie in the upright photograph.

    original: (height, width) of the upright photograph
    resized:  (height, width) it was resampled to
    box:      (top, left, height, width) that was cut out of that
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    box: tuple[int, int, int, int]

    def to_original(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (x, y) [..., 2] of the frame -> of the photograph; both at pixel centres."""
        scale = np.array(self.original[::-1]) / self.resized[::-1]
        return (pixels + np.array(self.box[1::-1]) + 0.5) * scale - 0.5

    def to_frame(self, pixels: np.ndarray) -> np.ndarray:
        """The inverse of `to_original`."""
        scale = np.array(self.resized[::-1]) / self.original[::-1]
        return (pixels + 0.5) * scale - 0.5 - self.box[1::-1]

    def intrinsics(self, K: np.ndarray) -> np.ndarray:
        """K [3, 3] of the photograph -> of the frame; both for integer pixel centres."""
        scale = np.array(self.resized[::-1]) / self.original[::-1]
        out = np.array(K, np.float64)
        out[:2] *= scale[:, None]
        out[:2, 2] += 0.5 * scale - 0.5 - self.box[1::-1]
        return out


def frame(
    picture: Image.Image, size: int = 512, *, patch: int = 16, square: bool = False
) -> tuple[np.ndarray, Framing]:
    """uint8 [H, W, 3] for the network, and where its pixels come from.

    The orientation that a camera wrote into the file (EXIF) is undone first. A height or a width
    may come out as a multiple of 4 only, where a square picture is cut at an odd `size`.

    Args:
      size: of the long side, or 224
      patch: both sides become multiples of it
      square: keep a square picture square, instead of cutting it to 4:3
    """
    upright = ImageOps.exif_transpose(picture).convert("RGB")
    width, height = upright.size
    longest = max(width, height)
    target = size
    if size == SHORT_SIDE_SIZE:
        target = round(size * max(width / height, height / width))
    resized = round(width * target / longest), round(height * target / longest)
    # Pillow widens LANCZOS when it shrinks a picture; enlarging it would ring.
    how = Image.Resampling.LANCZOS if longest > target else Image.Resampling.BICUBIC
    small = upright.resize(resized, how)
    x, y = resized[0] // 2, resized[1] // 2
    if size == SHORT_SIDE_SIZE:
        half_x = half_y = min(x, y)
    else:
        half_x, half_y = (side // patch * patch // 2 for side in (2 * x, 2 * y))
        if not square and resized[0] == resized[1]:
            half_y = 3 * half_x // 4
    cut = small.crop((x - half_x, y - half_y, x + half_x, y + half_y))
    box = (y - half_y, x - half_x, 2 * half_y, 2 * half_x)
    return np.asarray(cut), Framing((height, width), (resized[1], resized[0]), box)
