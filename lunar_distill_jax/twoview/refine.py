"""Matches to fractions of a pixel: small windows of both pictures laid over each other.

A network's descriptors say where ground is to a pixel or two, whatever the suns. Where both
pictures were taken under one sun they show the same shading, and the pictures themselves say it to
a twentieth of a pixel: Lucas and Kanade's method (IJCAI 1981) with the slopes of view 1 alone
(Baker and Matthews, IJCV 2004), each window with a shape of its own, and with zero mean and unit
norm, so that exposure and contrast may differ. Where a window does not look the same in both views,
such as under another sun, its match is told to be of no use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

RADIUS = 6  # of a window, pixels
SPREAD = 3.0  # deviation of the weights over a window, pixels
BLUR = 0.7  # deviation of the blur of both pictures, pixels: half a pixel has a slope then
ROUNDS = 10
LONGEST_STEP = 1.0  # pixels a round
FARTHEST = 3.0  # pixels from its start beyond which a window has found something else
ALIKE = 0.8  # correlation of two windows from which they show the same ground


def refine(
    images: Sequence[np.ndarray], matches: np.ndarray, shapes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Matches whose pixel of view 2 is moved to where it looks like that of view 1, and which hold.

    Args:
      images: two [H, W] or [H, W, 3], any range
      matches: [N, 4] (x1, y1, x2, y2), off by a few pixels at most
      shapes: [N, 2, 2], d (x2, y2) / d (x1, y1) near each match

    Returns:
      [N, 4]; and bool [N], whether the windows look alike and have not gone far
    """
    one, two = (ndimage.gaussian_filter(_grey(image), BLUR) for image in images)
    y, x = (g.ravel() for g in np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1])
    window = np.stack([x, y], -1).astype(np.float64)  # [P, 2]
    weights = np.exp(-(window**2).sum(1) / 2 / SPREAD**2)
    weights /= weights.sum()
    pixels = matches[:, None, :2] + window
    sought, norm = _normalise(_sample(one, pixels), weights)
    # What a shift of a window of view 1 changes, beside its mean and contrast: [N, 2, P].
    J = np.stack([_sample(slope, pixels) for slope in np.gradient(one)[::-1]], 1) / norm[..., None]
    J -= (J @ weights)[..., None]
    J -= ((J * sought[:, None]) @ weights)[..., None] * sought[:, None]
    weighted = J * weights
    H = weighted @ J.swapaxes(1, 2) + 1e-6 * np.eye(2)
    to_shift = shapes @ np.linalg.solve(H, weighted)  # [N, 2, P], pixels of view 2
    offsets = window @ shapes.swapaxes(1, 2)
    start = np.asarray(matches[:, 2:], np.float64)
    at = start.copy()
    for _ in range(ROUNDS):
        seen, _ = _normalise(_sample(two, at[:, None] + offsets), weights)
        step = (to_shift @ (sought - seen)[..., None])[..., 0]
        length = np.linalg.norm(step, axis=1, keepdims=True)
        at += step * np.minimum(1, LONGEST_STEP / np.maximum(length, 1e-9))
    seen, _ = _normalise(_sample(two, at[:, None] + offsets), weights)
    holds = (sought * seen) @ weights > ALIKE
    holds &= np.linalg.norm(at - start, axis=1) < FARTHEST
    holds &= ((at >= 0) & (at <= np.array(two.shape[::-1]) - 1)).all(1)
    return np.concatenate([matches[:, :2], at], 1), holds


def _grey(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image, np.float64)
    return image.mean(-1) if image.ndim == 3 else image


def _sample(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Bilinear; pixels: [..., 2] (x, y), those beyond the rim see the rim."""
    at = [pixels[..., 1], pixels[..., 0]]
    return ndimage.map_coordinates(image, at, order=1, mode="nearest")


def _normalise(patches: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Patches [N, P] with zero weighted mean and unit norm, and the norms [N, 1]."""
    patches = patches - (patches @ weights)[:, None]
    norm = np.sqrt((patches**2) @ weights)[:, None] + 1e-6
    return patches / norm, norm
