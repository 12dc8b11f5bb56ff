"""What a model must beat, or can hope for, without looking at the photographs.

All are predictors as `run.evaluate` wants them: a list of pairs in, their point maps out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.types import PointMaps, StereoPair


def plane_baseline(pairs: Sequence[StereoPair]) -> list[PointMaps]:
    """Oracle: the plane fitted to each view's own true depth, placed by the true poses."""
    return [_plane(pair) for pair in pairs]


def _plane(pair: StereoPair) -> PointMaps:
    points = []
    for K, depth, valid in zip(pair.K, pair.depth_m, pair.valid, strict=True):
        rays = geometry.pixel_rays(K, *depth.shape)
        points.append(rays * geometry.fit_inverse_depth_plane(rays, depth, valid)[..., None])
    points[1] = geometry.transform(geometry.relative_pose(pair.T_world_cam), points[1])
    return _without_opinion(np.stack(points))


def noise_floor(pairs: Sequence[StereoPair]) -> list[PointMaps]:
    """The ground truth as it is stored: what its rounding costs a perfect prediction."""
    return [_without_opinion(_stored(pair)) for pair in pairs]


def _stored(pair: StereoPair) -> np.ndarray:
    """True points [2, H, W, 3]; pixels without truth, which are not scored, get the plane's."""
    planes = _plane(pair).points_cam1
    return np.where(pair.valid[..., None], geometry.pointmaps_cam1(pair), planes)


def mean_baseline(
    training: Iterable[StereoPair],
) -> Callable[[Sequence[StereoPair]], list[PointMaps]]:
    """Predictor: the mean point map of the training pairs of the asked pair's trajectory type.

    Each point map is first divided by its mean distance from camera 1 over the valid pixels of both
    views (`avg_dis`); the mean of a pixel is over the pairs in which it is valid. A trajectory that
    the training pairs do not have gets the mean over all of them.

    Raises:
      InputError: no training pairs, or pairs of different sizes, here or when it is asked.
    """
    sums: dict[str | None, np.ndarray] = {}
    counts: dict[str | None, np.ndarray] = {}
    shape = None
    for pair in training:
        shape = _same_shape(pair, shape or pair.valid.shape)
        points = geometry.pointmaps_cam1(pair)
        points /= np.linalg.norm(points[pair.valid], axis=-1).mean()
        for key in (pair.trajectory, None):  # None: all trajectories
            sums[key] = sums.get(key, 0.0) + np.where(pair.valid[..., None], points, 0.0)
            counts[key] = counts.get(key, 0) + pair.valid
    if shape is None:
        raise InputError("The mean baseline got 0 training pairs, expected at least 1: give some.")
    means = {key: np.stack([*map(_mean_map, sums[key], counts[key])]) for key in sums}

    def predict(pairs: Sequence[StereoPair]) -> list[PointMaps]:
        for pair in pairs:
            _same_shape(pair, shape)
        return [_without_opinion(means.get(pair.trajectory, means[None])) for pair in pairs]

    return predict


def _mean_map(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """total / count, [H, W, 3]; pixels never seen continue the best affine function of (u, v)."""
    mean = total / np.maximum(count, 1)[..., None]
    v, u = np.indices(count.shape)
    A = np.stack([np.ones_like(u), u, v], -1).astype(np.float64)
    affine, *_ = np.linalg.lstsq(A[count > 0], mean[count > 0], rcond=None)
    return np.where((count > 0)[..., None], mean, A @ affine)


def _same_shape(pair: StereoPair, shape: tuple[int, ...]) -> tuple[int, ...]:
    if pair.valid.shape != shape:
        raise InputError(
            f"The mean baseline needs pairs of one size: {pair.name} has "
            f"{list(pair.valid.shape[1:])} pixels, expected {list(shape[1:])} (height, width): "
            "load all pairs at one size."
        )
    return shape


def _without_opinion(points: np.ndarray) -> PointMaps:
    return PointMaps(points.astype(np.float32), np.ones(points.shape[:3], np.float32))
