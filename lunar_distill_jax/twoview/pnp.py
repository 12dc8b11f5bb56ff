"""The pose of a camera from 3D points and the pixels they appear at, without a first guess.

Terzakis and Lourakis, "A Consistently Fast and Globally Optimal Solution to the Perspective-n-Point
Problem" (ECCV 2020): the object-space error is a quadratic form of the nine entries of R. Its
eigenvectors give starting rotations, which are refined on SO(3). Works on planes too.
"""

from __future__ import annotations

import numpy as np

STARTS = 6  # eigenvectors tried, each with both signs
ROUNDS = 15  # Gauss-Newton steps of each start
TRIM = 0.25  # fraction of points, those with the largest angles, that later fits ignore
TRIMMED_FITS = 10  # at most; the kept points stop changing before


def camera_pose(points: np.ndarray, rays: np.ndarray) -> np.ndarray | None:
    """T_cam_points [4, 4] that takes `points` onto the `rays` they were seen along; None if none.

    Least squares, then again without the worst `TRIM` of the points until these stay the same.

    Args:
      points: [N, 3], any frame and unit
      rays: [N, 3], K^-1 (u, v, 1) in the camera
    """
    if len(points) < 6 or not (np.isfinite(points).all() and np.isfinite(rays).all()):
        return None
    rays = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    centre = points.mean(0)
    spread = np.sqrt(((points - centre) ** 2).sum(1).mean())
    if not spread > 0:
        return None
    shape = (points - centre) / spread  # conditioned: the quadratic form mixes X and 1
    fit = _least_squares(shape, rays)
    if fit is None:
        return None
    kept = np.ones(len(shape), bool)
    for _ in range(TRIMMED_FITS):
        angle = _angles(fit, shape, rays)
        before, kept = kept, angle <= np.quantile(angle, 1 - TRIM)
        if (kept == before).all():
            break
        fit = _least_squares(shape[kept], rays[kept], fit[0]) or fit
    R, t = fit
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, spread * t - R @ centre
    return T


def _least_squares(
    points: np.ndarray,
    rays: np.ndarray,
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """(R, t) with the least sum of |(I - m m')(R X + t)|^2 among those with the points in front.

    Looks near the rotation `start`, or everywhere.
    """
    Q = np.eye(3) - rays[:, :, None] * rays[:, None, :]  # [N, 3, 3]
    # R X = A r with r = vec(R) by rows: A = I (x) X'.
    QX = np.einsum("nij,nk->nijk", Q, points)  # Q A, [N, 3, 3, 3]
    try:
        P = -np.linalg.solve(Q.sum(0), QX.sum(0).reshape(3, 9))  # t = P r
    except np.linalg.LinAlgError:
        return None
    AQA = np.einsum("nk,nijl->ikjl", points, QX).reshape(9, 9)
    omega = AQA + QX.sum(0).reshape(3, 9).T @ P  # t is at its best: cross terms cancel in pairs
    omega = (omega + omega.T) / 2
    if start is not None:
        starts = [start]
    else:
        columns = np.linalg.eigh(omega)[1].T[:STARTS]
        starts = [_nearest_rotation(sign * c.reshape(3, 3)) for c in columns for sign in (1, -1)]
    best = None
    for first in starts:
        R = _refine(first, omega)
        t = P @ R.ravel()
        ahead = ((points @ R.T + t) * rays).sum(1) > 0
        cost = float(R.ravel() @ omega @ R.ravel())
        if ahead.mean() > 0.5 and np.isfinite(cost) and (best is None or cost < best[0]):
            best = cost, R, t
    return None if best is None else best[1:]


def _refine(R: np.ndarray, omega: np.ndarray) -> np.ndarray:
    """Gauss-Newton of vec(R)' omega vec(R) over rotations."""
    generators = np.array(
        [[[0, 0, 0], [0, 0, -1], [0, 1, 0]], [[0, 0, 1], [0, 0, 0], [-1, 0, 0]],
         [[0, -1, 0], [1, 0, 0], [0, 0, 0]]], np.float64
    )  # fmt: skip
    for _ in range(ROUNDS):
        J = (generators @ R).reshape(3, 9).T
        H = J.T @ omega @ J
        step = -np.linalg.lstsq(H + 1e-12 * np.trace(H) * np.eye(3), J.T @ omega @ R.ravel())[0]
        size = np.linalg.norm(step)
        if not np.isfinite(size):
            return R
        step *= min(1.0, 0.5 / size) if size > 0 else 0.0  # a step is a rotation: keep it small
        R = _nearest_rotation((np.eye(3) + np.tensordot(step, generators, 1)) @ R)
        if size < 1e-12:
            break
    return R


def _nearest_rotation(M: np.ndarray) -> np.ndarray:
    U, _, Vt = np.linalg.svd(M)
    return (U * [1.0, 1.0, np.linalg.det(U) * np.linalg.det(Vt)]) @ Vt


def _angles(fit: tuple[np.ndarray, np.ndarray], points: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Between the rays and where the pose puts the points, radians [N]."""
    moved = points @ fit[0].T + fit[1]
    cross = np.linalg.norm(np.cross(moved, rays), axis=1)
    return np.arctan2(cross, (moved * rays).sum(1))
