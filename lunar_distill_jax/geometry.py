"""Pixels, rays, points, planes and similarity transforms (numpy, float64; host side).

Frames and conventions are those of `types.py`.
"""

from __future__ import annotations

import numpy as np


def pixel_rays(K: np.ndarray, height: int, width: int) -> np.ndarray:
    """Rays K^-1 [u, v, 1] of all pixels: [H, W, 3] with z = 1, so that point = ray * z-depth."""
    v, u = np.mgrid[:height, :width].astype(np.float64)
    return np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T


def backproject(depth_m: np.ndarray, K: np.ndarray) -> np.ndarray:
    """z-depth [H, W] -> points in that camera [H, W, 3], in the unit of the depth."""
    return pixel_rays(K, *depth_m.shape) * depth_m[..., None]


def transform(T: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Applies a 4x4 transform to points [..., 3]."""
    return points @ T[:3, :3].T + T[:3, 3]


def relative_pose(T_world_cam: np.ndarray) -> np.ndarray:
    """T_cam1_cam2 [4, 4] from the poses of both views [2, 4, 4], formed in float64.

    StereoLunar's positions are Moon-centred (1.7e6 m): never subtract them in float32.
    """
    T1, T2 = np.asarray(T_world_cam, np.float64)
    T = np.eye(4)
    T[:3, :3] = T1[:3, :3].T @ T2[:3, :3]
    T[:3, 3] = T1[:3, :3].T @ (T2[:3, 3] - T1[:3, 3])
    return T


def inverse(T: np.ndarray) -> np.ndarray:
    """Inverse of a rigid 4x4 transform."""
    out = np.eye(4)
    out[:3, :3] = T[:3, :3].T
    out[:3, 3] = -T[:3, :3].T @ T[:3, 3]
    return out


def project(K: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [..., 3] in a camera -> pixels (u, v) [..., 2]; callers check z > 0."""
    uvw = points @ K.T
    return uvw[..., :2] / uvw[..., 2:]


def pointmaps_cam1(pair) -> np.ndarray:
    """Ground-truth points of both views in camera 1: float64 [2, H, W, 3], metres.

    Pixels that are not valid have depth 0: they hold the camera centre of their view.
    """
    own = [backproject(d, K) for d, K in zip(pair.depth_m, pair.K, strict=True)]
    return np.stack([own[0], transform(relative_pose(pair.T_world_cam), own[1])])


def umeyama(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Least-squares (s, R, t) with target ~ s R source + t; both [N, 3] (Umeyama 1991)."""
    mu_s, mu_t = source.mean(0), target.mean(0)
    s0, t0 = source - mu_s, target - mu_t
    U, S, Vt = np.linalg.svd(t0.T @ s0 / len(source))
    D = np.array([1.0, 1.0, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])
    R = (U * D) @ Vt
    scale = float((S * D).sum() / np.maximum((s0**2).sum(1).mean(), 1e-300))
    return scale, R, mu_t - scale * R @ mu_s


def fit_inverse_depth_plane(rays: np.ndarray, depth: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """z-depth [H, W] of the plane that fits `depth` best.

    A plane seen by a pinhole camera has an inverse depth that is affine in the ray (x, y), so this
    is a linear least-squares fit of 1/z, each row weighted by z (relative depth error).
    rays: [H, W, 3].
    """
    A = rays[valid]
    z = depth[valid].astype(np.float64)
    w, *_ = np.linalg.lstsq(A * z[:, None], np.ones_like(z), rcond=None)
    return 1.0 / (rays @ w)
