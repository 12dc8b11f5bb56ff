"""Removing what a prediction cannot know: its scale, or a whole similarity (numpy, float64).

All points are in the camera frame of view 1, and only those with valid ground truth.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lunar_distill_jax import geometry

TRIM = 0.25  # fraction of pixels, those with the largest residuals, that the second fit ignores


class Similarity(NamedTuple):
    """x -> scale * rotation @ x + translation."""

    scale: float
    rotation: np.ndarray  # [3, 3]
    translation: np.ndarray  # [3], metres

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Applies it to points [..., 3]."""
        return self.scale * points @ self.rotation.T + self.translation


def fit_scale(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Median of |truth| / |predicted| over points [N, 3] of both views together.

    One scale for the pair: a scale per view would hide errors of the relative pose.
    """
    distance = np.linalg.norm(predicted, axis=-1)
    # A point at the camera centre has no finite ratio; a huge one leaves the median where it is.
    return float(np.median(np.linalg.norm(truth, axis=-1) / np.maximum(distance, 1e-300)))


def fit_similarity(predicted: np.ndarray, truth: np.ndarray) -> Similarity:
    """Trimmed least-squares similarity from predicted to truth, both [N, 3].

    Least squares (Umeyama 1991), then once more without the worst `TRIM` of the points. No ICP:
    where correspondences are known it only moves the cloud away from them.
    """
    first = Similarity(*geometry.umeyama(predicted, truth))
    offset = first(predicted) - truth
    residual = np.einsum("nc,nc->n", offset, offset)
    kept = residual <= np.quantile(residual, 1 - TRIM)
    return Similarity(*geometry.umeyama(predicted[kept], truth[kept]))


def rotation_angle_deg(R: np.ndarray) -> float:
    """Angle of a rotation matrix [3, 3], degrees in [0, 180]."""
    axis_sin = np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]) / 2
    # atan2: arccos of the trace alone loses angles below 1e-8 rad.
    return float(np.degrees(np.arctan2(np.linalg.norm(axis_sin), (np.trace(R) - 1) / 2)))
