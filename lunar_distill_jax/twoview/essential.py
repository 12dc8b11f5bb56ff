"""Poses from pixel matches alone: five points by RANSAC, by OpenCV (the `baselines` extra).

The ground below an orbiter is nearly a plane and the baseline a few percent of the altitude:
matches alone, even perfect ones rounded to pixels of a small frame, then leave the direction of
flight open (docs/evaluation.md has the numbers). With point maps they settle it (`adjust`).
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.errors import InputError

THRESHOLD_PX = 1.0
CONFIDENCE = 0.9999
FEWEST = 8  # matches below which no pose is tried


def has_opencv() -> bool:
    return importlib.util.find_spec("cv2") is not None


def opencv() -> Any:
    """The cv2 module.

    Raises:
      InputError: OpenCV is not installed.
    """
    if not has_opencv():
        raise InputError(
            "Poses from matches and the classical baselines need OpenCV, which is not installed: "
            'run `pip install "lunar-distill-jax[baselines]"`.'
        )
    import cv2

    cv2.setRNGSeed(0)  # RANSAC draws from one global stream
    return cv2


def relative_pose(
    pixels1: np.ndarray, pixels2: np.ndarray, K: np.ndarray, threshold_px: float = THRESHOLD_PX
) -> tuple[np.ndarray, np.ndarray] | None:
    """T_cam2_cam1 [4, 4] with |t| = 1, and which matches agree with it: bool [N]. None if none.

    The sign of t is decided by the points having to lie before both cameras.

    Args:
      pixels1, pixels2: [N, 2] (x, y)
      K: [2, 3, 3] of both views
      threshold_px: largest distance of an inlier from its epipolar line, pixels of view 1

    Raises:
      InputError: OpenCV is not installed.
    """
    cv2 = opencv()
    if len(pixels1) < FEWEST:
        return None
    points1 = np.asarray(pixels1, np.float64)
    # With one K for both, OpenCV's own normalisation applies; another camera is brought to it.
    points2 = geometry.project(K[0], rays_of(pixels2, K[1]))
    E, mask = cv2.findEssentialMat(
        points1, points2, K[0], method=cv2.RANSAC, prob=CONFIDENCE, threshold=threshold_px
    )
    if E is None or E.shape != (3, 3):
        return None
    _, R, t, mask = cv2.recoverPose(E, points1, points2, K[0], mask=mask)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, t.ravel()
    return T, mask.ravel() > 0


def rays_of(pixels: np.ndarray, K: np.ndarray) -> np.ndarray:
    """K^-1 (x, y, 1) of pixels [N, 2]: [N, 3] with z = 1."""
    homogeneous = np.concatenate([pixels, np.ones((len(pixels), 1))], 1)
    return homogeneous @ np.linalg.inv(K).T


def triangulate(
    pixels1: np.ndarray, pixels2: np.ndarray, K: np.ndarray, T_cam2_cam1: np.ndarray
) -> np.ndarray:
    """Points [N, 3] in camera 1 that see both pixels best: the midpoint between the two rays.

    NaN where the rays are parallel or meet behind a camera. K: [2, 3, 3].
    """
    T_cam1_cam2 = geometry.inverse(T_cam2_cam1)
    d1, d2 = rays_of(pixels1, K[0]), rays_of(pixels2, K[1]) @ T_cam1_cam2[:3, :3].T
    centre2 = T_cam1_cam2[:3, 3]
    # a d1 - b d2 = centre2, by least squares for each match
    a11, a12, a22 = (d1 * d1).sum(1), -(d1 * d2).sum(1), (d2 * d2).sum(1)
    b1, b2 = d1 @ centre2, -(d2 @ centre2)
    det = a11 * a22 - a12**2
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (a22 * b1 - a12 * b2) / det, (a11 * b2 - a12 * b1) / det
        points = (a[:, None] * d1 + centre2 + b[:, None] * d2) / 2
    seen = (det > 1e-12 * a11 * a22) & (a > 0) & (b > 0)
    return np.where(seen[:, None], points, np.nan)
