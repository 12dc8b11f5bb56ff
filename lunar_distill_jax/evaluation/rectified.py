"""Dense classical stereo: both frames rectified by the SIFT pose, then semi-global matching.

Hirschmueller, "Stereo Processing by Semiglobal Matching and Mutual Information" (PAMI 2008), as
OpenCV has it. Where the cameras stand one before the other the frames cannot be rectified: no
answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.evaluation import classical
from lunar_distill_jax.twoview import essential
from lunar_distill_jax.types import PointMaps, StereoPair

MOST_TURN_DEG = 55.0  # between an optical axis and the rectified one
MOST_SIDE = 1.6  # of a rectified frame, in sides of the stored one
BLOCK_PX = 5
MOST_DISPARITIES = 320
MOST_DISAGREEMENT_PX = 1.5  # of the disparities of both views
SAMPLES = 4000  # measured pixels that the rest is interpolated from


@dataclasses.dataclass(frozen=True)
class Rectified:
    """Two cameras side by side that look the same way.

    R:    [2, 3, 3]  from each camera's axes to the common ones, x along the baseline
    K:    [3, 3]     of both rectified frames, whose rows match
    size: (height, width)
    """

    R: np.ndarray
    K: np.ndarray
    size: tuple[int, int]


def rectify(K: np.ndarray, T_cam2_cam1: np.ndarray, shape: tuple[int, ...]) -> Rectified | None:
    """Common axes: x along the baseline, z as near to both optical axes as that allows."""
    T_cam1_cam2 = geometry.inverse(T_cam2_cam1)
    x = T_cam1_cam2[:3, 3] / np.linalg.norm(T_cam1_cam2[:3, 3])
    axes = np.stack([[0.0, 0, 1], T_cam1_cam2[:3, 2]])
    z = axes.sum(0)
    z -= (z @ x) * x
    if not np.linalg.norm(z) > 1e-6:
        return None
    z /= np.linalg.norm(z)
    if (axes @ z).min() < np.cos(np.radians(MOST_TURN_DEG)):
        return None
    common = np.stack([x, np.cross(z, x), z])
    R = np.stack([common, common @ T_cam1_cam2[:3, :3]])
    height, width = shape
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], float)
    seen = [essential.rays_of(corners, k) @ r.T for k, r in zip(K, R, strict=True)]
    if min(rays[:, 2].min() for rays in seen) <= 0.05:
        return None
    at = np.concatenate([rays[:, :2] / rays[:, 2:] for rays in seen])
    low, high = at.min(0), at.max(0)
    focal = min(float(K[0, 0, 0]), MOST_SIDE * max(height, width) / float((high - low).max()))
    columns, rows = np.ceil((high - low) * focal).astype(int) + 1
    centre = -low * focal
    new = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
    return Rectified(R, new, (int(rows), int(columns)))


def sgm_baseline(native: classical.Native):
    """Predictor: dense disparities of both views, holes interpolated. As `sift_baseline`."""

    def predict(pairs: Sequence[StereoPair]) -> list[PointMaps]:
        return [_dense(pair, native(pair)) for pair in pairs]

    return predict


def _dense(pair: StereoPair, full: StereoPair) -> PointMaps:
    matches = classical.sift_matches(*full.image)
    in_frame = classical.to_frame(matches, full, pair)
    seen = classical.pose_of(full, matches)
    if seen is None:
        return classical.no_answer(pair, in_frame)
    frames = rectify(full.K, seen.T_cam2_cam1, full.valid.shape[1:])
    points, _ = classical.triangulated(seen)
    if frames is None or len(points) < classical.FEWEST_POINTS:
        return dataclasses.replace(
            classical.no_answer(pair, in_frame), T_cam2_cam1=seen.T_cam2_cam1
        )
    views = []
    for v, disparity in enumerate(disparities(full, frames, points)):
        depth, known = _depth_in_view(full, frames, disparity, v)
        if known.sum() < classical.FEWEST_POINTS:
            return dataclasses.replace(
                classical.no_answer(pair, in_frame), T_cam2_cam1=seen.T_cam2_cam1
            )
        y, x = np.nonzero(known)
        step = -(-len(x) // SAMPLES)
        pixels = np.stack([x, y], 1)[::step].astype(np.float64)
        depth_at = depth[known][::step]
        views.append(
            classical.densify(
                classical.to_frame(pixels, full, pair), depth_at, pair.valid.shape[1:]
            )
        )
    return classical.from_depths(pair, views, seen.T_cam2_cam1, in_frame)


def disparities(full: StereoPair, frames: Rectified, points: np.ndarray) -> list[np.ndarray]:
    """x1 - x2 in both rectified frames [rows, columns], px; NaN where unknown or inconsistent.

    points: [N, 3] in camera 1, unit baseline: what tells where to look
    """
    cv2 = essential.opencv()
    focal = frames.K[0, 0]
    z = (points @ frames.R[0].T)[:, 2]
    low, high = focal / np.percentile(z[z > 0], [99, 1])
    margin = 0.25 * (high - low) + 8
    first = int(np.floor(low - margin))
    count = int(np.clip(16 * np.ceil((high + margin - first) / 16), 16, MOST_DISPARITIES))
    warped, known = [], []
    for image, K, R in zip(full.image, full.K, frames.R, strict=True):
        maps = cv2.initUndistortRectifyMap(K, None, R, frames.K, frames.size[::-1], cv2.CV_32FC1)
        grey = np.ascontiguousarray(image.mean(-1).astype(np.uint8))
        warped.append(cv2.remap(grey, *maps, cv2.INTER_LINEAR))
        inside = cv2.remap(np.full_like(grey, 255), *maps, cv2.INTER_NEAREST) > 0
        known.append(cv2.erode(inside.astype(np.uint8), np.ones((BLOCK_PX, BLOCK_PX))) > 0)
    settings = dict(blockSize=BLOCK_PX, P1=8 * BLOCK_PX**2, P2=32 * BLOCK_PX**2)
    settings |= dict(uniquenessRatio=5, speckleWindowSize=100, speckleRange=2, disp12MaxDiff=2)
    matcher = cv2.StereoSGBM_create(
        minDisparity=first, numDisparities=count, mode=cv2.STEREO_SGBM_MODE_HH, **settings
    )
    left = matcher.compute(warped[0], warped[1])
    flipped = [np.ascontiguousarray(w[:, ::-1]) for w in warped]
    right = matcher.compute(flipped[1], flipped[0])[:, ::-1]
    out = []
    for raw, inside in ((left, known[0]), (right, known[1])):
        disparity = raw.astype(np.float64) / 16
        out.append(np.where(inside & (disparity >= first) & (disparity > 0), disparity, np.nan))
    return [consistent(out[0], out[1], -1), consistent(out[1], out[0], +1)]


def consistent(disparity: np.ndarray, other: np.ndarray, sign: int) -> np.ndarray:
    """`disparity` where the other view's, at the pixel it leads to, agrees; NaN elsewhere.

    sign: -1 from the left to the right view, +1 back
    """
    row, column = np.indices(disparity.shape)
    there = column + sign * np.where(np.isfinite(disparity), disparity, 0)
    at = np.clip(np.rint(there).astype(int), 0, disparity.shape[1] - 1)
    with np.errstate(invalid="ignore"):
        agree = np.abs(other[row, at] - disparity) <= MOST_DISAGREEMENT_PX
    return np.where(agree, disparity, np.nan)


def _depth_in_view(
    full: StereoPair, frames: Rectified, disparity: np.ndarray, view: int
) -> tuple[np.ndarray, np.ndarray]:
    """z-depth [H, W] in the view's own camera at the stored frame's pixels, and where known."""
    height, width = full.valid.shape[1:]
    rays = geometry.pixel_rays(full.K[view], height, width)
    turned = rays @ frames.R[view].T
    at = geometry.project(frames.K, turned)
    x, y = np.rint(at).astype(int).transpose(2, 0, 1)
    inside = (x >= 0) & (y >= 0) & (x < frames.size[1]) & (y < frames.size[0])
    d = np.where(inside, disparity[np.where(inside, y, 0), np.where(inside, x, 0)], np.nan)
    known = np.isfinite(d)
    rectified_z = frames.K[0, 0] / np.where(known, d, 1.0)
    # A point at depth z along the rectified axis lies at z / turned_z along the pixel's ray.
    return np.where(known, rectified_z / turned[..., 2], 0.0), known
