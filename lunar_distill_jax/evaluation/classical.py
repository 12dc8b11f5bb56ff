"""What a user would try first: SIFT, five-point RANSAC and triangulation (OpenCV).

These baselines read the frames at the size they are stored in, whatever size networks are
evaluated at, and know K. All of their pixels are scored: what they did not measure is interpolated,
and continued as a plane beyond. Their unit is the length of the baseline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.tri import LinearTriInterpolator, Triangulation
from scipy.spatial import cKDTree

from lunar_distill_jax import geometry
from lunar_distill_jax.twoview import essential
from lunar_distill_jax.types import PointMaps, StereoPair

Native = Callable[[StereoPair], StereoPair]

RATIO = 0.8  # of the best to the second-best distance of descriptors (Lowe 2004)
FEWEST_INLIERS = 15
FEWEST_POINTS = 12
PLANE_FITS = 3
DEPTH_RANGE = 3.0  # extrapolation stays within this factor of what was measured


@dataclasses.dataclass(frozen=True)
class TwoView:
    """Two frames with their relative pose: what both classical baselines start from.

    matches: float [N, 4] pixels (x1, y1, x2, y2); inliers: bool [N], which agree with the pose
    """

    pair: StereoPair
    matches: np.ndarray
    inliers: np.ndarray
    T_cam2_cam1: np.ndarray


def sift_matches(image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
    """Matches [N, 4] of uint8 frames [H, W, 3] that pass the ratio test; needs OpenCV."""
    cv2 = essential.opencv()
    sift = cv2.SIFT_create()
    found = [
        sift.detectAndCompute(image.mean(-1).astype(np.uint8), None) for image in (image1, image2)
    ]
    (points1, desc1), (points2, desc2) = found
    if desc1 is None or desc2 is None or len(points2) < 2:
        return np.zeros((0, 4))
    nearest = cv2.BFMatcher(cv2.NORM_L2).knnMatch(desc1, desc2, k=2)
    kept = [a for a, b in nearest if a.distance < RATIO * b.distance]
    rows = [(*points1[m.queryIdx].pt, *points2[m.trainIdx].pt) for m in kept]
    return np.array(rows, np.float64).reshape(-1, 4)


def pose_of(pair: StereoPair, matches: np.ndarray) -> TwoView | None:
    """The pose that most of the matches [N, 4] agree on, or None."""
    found = essential.relative_pose(matches[:, :2], matches[:, 2:], pair.K)
    if found is None or found[1].sum() < FEWEST_INLIERS:
        return None
    return TwoView(pair, matches, found[1], found[0])


def sift_baseline(native: Native):
    """Predictor: sparse triangulated points, interpolated over each view.

    native: an evaluated pair -> the same pair as it is stored
    """

    def predict(pairs: Sequence[StereoPair]) -> list[PointMaps]:
        out = []
        for pair in pairs:
            full = native(pair)
            matches = sift_matches(*full.image)
            out.append(sparse(pair, full, pose_of(full, matches), matches))
        return out

    return predict


def sparse(
    pair: StereoPair, full: StereoPair, seen: TwoView | None, matches: np.ndarray
) -> PointMaps:
    """The triangulated inliers of a stored pair, interpolated over the evaluated frames."""
    in_frame = to_frame(matches, full, pair)
    if seen is None:
        return no_answer(pair, in_frame)
    points, pixels = triangulated(seen)
    if len(points) < FEWEST_POINTS:
        return no_answer(pair, in_frame)
    pixels = to_frame(pixels, full, pair)
    own = [points, geometry.transform(seen.T_cam2_cam1, points)]
    views = [
        densify(pixels[:, 2 * v : 2 * v + 2], own[v][:, 2], pair.valid.shape[1:]) for v in range(2)
    ]
    return from_depths(pair, views, seen.T_cam2_cam1, in_frame)


def triangulated(seen: TwoView) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] in camera 1 of the inliers, unit baseline, and their pixels [N, 4]."""
    pixels = seen.matches[seen.inliers]
    points = essential.triangulate(pixels[:, :2], pixels[:, 2:], seen.pair.K, seen.T_cam2_cam1)
    known: Any = np.isfinite(points).all(1)
    there = geometry.transform(seen.T_cam2_cam1, np.where(known[:, None], points, 0))
    known &= there[:, 2] > 0
    if known.any():  # a nearly parallel pair of rays meets anywhere
        z = points[:, 2]
        middle = np.median(z[known])
        known &= (z > middle / DEPTH_RANGE) & (z < middle * DEPTH_RANGE)
    return points[known], pixels[known]


def to_frame(pixels: np.ndarray, full: StereoPair, pair: StereoPair) -> np.ndarray:
    """Pixels [..., 2 n] of the stored frame -> of the evaluated frame."""
    scale = np.array(pair.valid.shape[:0:-1]) / full.valid.shape[:0:-1]
    return (pixels + 0.5) * np.tile(scale, pixels.shape[-1] // 2) - 0.5


def densify(
    pixels: np.ndarray, depth: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Depth known at pixels [N, 2] -> at all pixels [H, W], and how near a measurement each is.

    Linear in 1 / depth over a Delaunay triangulation; beyond it, the plane that fits best. The
    second map is 1 + 1 / (1 + distance in pixels): confidences are 1 or more.
    """
    v, u = np.indices(shape)
    grid = np.stack([u.ravel(), v.ravel()], 1).astype(np.float64)
    inverse = 1 / depth
    A = np.concatenate([pixels, np.ones((len(pixels), 1))], 1)
    plane = np.linalg.lstsq(A, inverse, rcond=None)[0]
    for _ in range(PLANE_FITS):  # some measurements are wrong, and would tilt it
        away = np.abs(A @ plane - inverse)
        kept = away <= 3 * np.median(away)
        plane = np.linalg.lstsq(A[kept], inverse[kept], rcond=None)[0]
    out = np.concatenate([grid, np.ones((len(grid), 1))], 1) @ plane
    at, first = np.unique(pixels, axis=0, return_index=True)
    try:  # not scipy's interpolator, which took seconds where this takes 50 ms
        inside = LinearTriInterpolator(Triangulation(*at.T), inverse[first])(*grid.T)
        out = np.where(np.ma.getmaskarray(inside), out, inside.filled(0.0))
    except (RuntimeError, ValueError):  # all on one line: the plane is all there is
        pass
    usual = np.percentile(inverse, [2, 98])
    out = np.clip(out, usual[0] / DEPTH_RANGE, usual[1] * DEPTH_RANGE)
    near = 1 + 1 / (1 + cKDTree(pixels).query(grid)[0])
    return (1 / out).reshape(shape), near.reshape(shape)


def from_depths(
    pair: StereoPair,
    views: Sequence[tuple[np.ndarray, np.ndarray]],
    T_cam2_cam1: np.ndarray,
    matches: np.ndarray,
) -> PointMaps:
    """Point maps from the (depth, confidence) of both views, placed by an estimated pose."""
    own = [geometry.backproject(depth, K) for (depth, _), K in zip(views, pair.K, strict=True)]
    own[1] = geometry.transform(geometry.inverse(T_cam2_cam1), own[1])
    conf = np.stack([conf for _, conf in views]).astype(np.float32)
    return PointMaps(np.stack(own).astype(np.float32), conf, matches, T_cam2_cam1)


def no_answer(pair: StereoPair, matches: np.ndarray) -> PointMaps:
    """What a baseline returns that failed on a pair."""
    shape = pair.valid.shape
    nothing = np.full((*shape, 3), np.nan, np.float32)
    return PointMaps(nothing, np.ones(shape, np.float32), matches, np.full((4, 4), np.nan))
