"""The focal length that a point map implies, where the camera is not known."""

from __future__ import annotations

import numpy as np

ROUNDS = 10  # of Weiszfeld's iteration


def focal_median(points: np.ndarray, centre: np.ndarray) -> float:
    """Median over pixels of the focal lengths that u = f X / Z and v = f Y / Z ask for.

    points: [H, W, 3] in their own camera, any unit; centre: principal point (x, y), pixels
    """
    pixels, ahead = _pixels_and_points(points, centre)
    with np.errstate(divide="ignore", invalid="ignore"):
        votes = pixels * ahead[:, 2:] / ahead[:, :2]
    return float(np.nanquantile(votes, 0.5, method="lower"))


def focal_weiszfeld(points: np.ndarray, centre: np.ndarray) -> float:
    """The focal length with the least mean distance |(u, v) - f (X, Y) / Z| (Weiszfeld 1937).

    Arguments as in `focal_median`. Robust as a median, and finer: it weighs both axes together.
    """
    pixels, ahead = _pixels_and_points(points, centre)
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.nan_to_num(ahead[:, :2] / ahead[:, 2:], posinf=0.0, neginf=0.0)
    dot, square = (pixels * slopes).sum(1), (slopes**2).sum(1)
    focal = dot.sum() / square.sum()
    for _ in range(ROUNDS):
        weight = 1 / np.maximum(np.linalg.norm(pixels - focal * slopes, axis=1), 1e-8)
        focal = (weight * dot).sum() / (weight * square).sum()
    return float(focal)


def _pixels_and_points(points: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    v, u = np.indices(points.shape[:2])
    pixels = np.stack([u, v], -1).reshape(-1, 2) - np.asarray(centre, np.float64)
    return pixels, points.reshape(-1, 3).astype(np.float64)
