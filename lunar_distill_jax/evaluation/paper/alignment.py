"""The similarity that the public code fits before it measures: trimmed Umeyama, then ICP."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from lunar_distill_jax import geometry
from lunar_distill_jax.evaluation.align import Similarity

MOST_POINTS = 50_000
SAMPLE = 800
HYPOTHESES = 300
ICP_ROUNDS = 100
ICP_TOLERANCE = 1e-6  # relative change of fitness and of RMSE at which ICP stops
FEWEST_MATCHED = 0.02  # fraction of the cloud below which an ICP result is rejected
NEIGHBOURS = 30  # at most, of a normal


def least_squares(source: np.ndarray, target: np.ndarray) -> Similarity:
    """Umeyama on all points, both [N, 3]."""
    return Similarity(*geometry.umeyama(source, target))


def trimmed(
    source: np.ndarray, target: np.ndarray, *, hypotheses: int = HYPOTHESES, sample: int = SAMPLE
) -> tuple[Similarity, np.ndarray]:
    """The public "RANSAC-Umeyama": -> the similarity and which points it kept, bool [N].

    Its inlier threshold is at most the 75th percentile of each hypothesis' own residuals, so nearly
    every hypothesis has that many inliers and the first one wins: we stop where none can have more.
    """
    draw = np.random.RandomState(42)
    most = int(0.75 * (len(source) - 1)) + 1
    count = min(sample, len(source))
    best = np.zeros(len(source), bool)
    for _ in range(hypotheses):
        at = draw.choice(len(source), count, replace=False)
        residual = _residual(least_squares(source[at], target[at]), source, target)
        limit = np.clip(3 * np.median(residual), *np.percentile(residual, [10, 75]))
        inliers = residual < limit
        if inliers.sum() > best.sum():
            best = inliers
        if best.sum() >= most:
            break
    return least_squares(source[best], target[best]), best


def fit(source: np.ndarray, target: np.ndarray, conf: np.ndarray) -> Similarity:
    """Trimmed, or on the points of at least median confidence if that is nearer. No ICP."""
    if len(source) > MOST_POINTS:
        at = np.random.RandomState(0).choice(len(source), MOST_POINTS, replace=False)
        chosen, _ = trimmed(source[at], target[at])
    else:
        chosen, _ = trimmed(source, target)
    sure = conf >= np.median(conf)
    other = least_squares(source[sure], target[sure])
    errors = [np.median(_residual(s, source, target)) for s in (chosen, other)]
    return other if errors[1] < errors[0] else chosen


def _residual(similarity: Similarity, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.linalg.norm(similarity(source) - target, axis=1)


def with_icp(first: Similarity, source: np.ndarray, target: np.ndarray) -> Similarity:
    """The default last step: point-to-plane ICP of the voxel means, from `first` on.

    It slides a cloud along the terrain, away from correspondences that were known.
    """
    moved = first(source)
    voxel = max(0.02 * float(np.linalg.norm(np.ptp(target, axis=0))), 1e-3)
    cloud, ground = voxel_means(moved, voxel), voxel_means(target, voxel)
    reach = max(3 * float(np.median(np.linalg.norm(moved - target, axis=1))), 2 * voxel)
    T, fitness = point_to_plane(cloud, ground, normals(ground, 2 * voxel), reach)
    if fitness < FEWEST_MATCHED:
        return first
    return Similarity(
        first.scale, T[:3, :3] @ first.rotation, T[:3, :3] @ first.translation + T[:3, 3]
    )


def voxel_means(points: np.ndarray, size: float) -> np.ndarray:
    """Mean of the points in each cube of a grid half a cube below their minimum."""
    cell = np.floor((points - (points.min(0) - size / 2)) / size).astype(np.int64)
    number = np.ravel_multi_index(tuple(cell.T), tuple(cell.max(0) + 1))
    _, index, count = np.unique(number, return_inverse=True, return_counts=True)
    sums = [np.bincount(index, points[:, axis]) for axis in range(3)]
    return np.stack(sums, 1) / count[:, None]


def normals(points: np.ndarray, radius: float) -> np.ndarray:
    """Direction of least variance of at most `NEIGHBOURS` points within `radius`: [N, 3]."""
    tree = cKDTree(points)
    distance, index = tree.query(points, min(NEIGHBOURS, len(points)), distance_upper_bound=radius)
    known = np.isfinite(distance)
    near = points[np.where(known, index, 0)] * known[..., None]
    count = known.sum(1)[:, None]
    centre = near.sum(1) / count
    offset = (points[np.where(known, index, 0)] - centre[:, None]) * known[..., None]
    out = np.linalg.eigh(np.einsum("nki,nkj->nij", offset, offset))[1][:, :, 0]
    return np.where(count >= 3, out, [0.0, 0.0, 1.0])


def point_to_plane(
    source: np.ndarray, target: np.ndarray, normal: np.ndarray, reach: float
) -> tuple[np.ndarray, float]:
    """-> T [4, 4] that moves source onto target, and the fraction of source with a partner."""
    tree = cKDTree(target)
    T, moved = np.eye(4), source
    before = matched(tree, moved, reach)
    for _ in range(ICP_ROUNDS):
        near, index, fitness, rmse = before
        if not near.any():
            break
        p, q, n = moved[near], target[index[near]], normal[index[near]]
        J = np.concatenate([np.cross(p, n), n], 1)
        step = np.linalg.lstsq(J.T @ J, -J.T @ ((p - q) * n).sum(1), rcond=None)[0]
        T = _motion(step) @ T
        moved = geometry.transform(T, source)
        after = matched(tree, moved, reach)
        stop = abs(after[2] - fitness) < ICP_TOLERANCE and abs(after[3] - rmse) < ICP_TOLERANCE
        before = after
        if stop:
            break
    return T, before[2]


def matched(tree: cKDTree, points: np.ndarray, reach: float):
    """-> which points have a partner within reach, its index, their fraction, RMSE of distances."""
    distance, index = tree.query(points, distance_upper_bound=reach)
    near = np.isfinite(distance)
    rmse = float(np.sqrt((distance[near] ** 2).mean())) if near.any() else 0.0
    return near, np.where(near, index, 0), float(near.mean()), rmse


def _motion(step: np.ndarray) -> np.ndarray:
    """Rotations about x, y, z by step[:3], then the translation step[3:]: [4, 4]."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(step[:3]), np.sin(step[:3])
    T = np.eye(4)
    T[:3, :3] = (
        np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    )
    T[:3, 3] = step[3:]
    return T
