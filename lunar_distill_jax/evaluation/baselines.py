"""What a model must beat, or can hope for, without looking at the photographs.

All are predictors as `run.evaluate` wants them: a list of pairs in, their point maps out.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.evaluation.network import match
from lunar_distill_jax.twoview import matching
from lunar_distill_jax.twoview.adjust import adjust
from lunar_distill_jax.types import PointMaps, StereoPair

RANDOM_CHANNELS = 16


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


@dataclasses.dataclass(frozen=True)
class Means:
    """What the training pairs of each trajectory have in common, and all of them (key None).

    points: {trajectory: float64 [2, H, W, 3]} mean point map in camera 1; each is first divided by
            its mean distance from camera 1 over the valid pixels of both views (`avg_dis`), and the
            mean of a pixel is over the pairs in which it is valid
    pose:   {trajectory: T_cam2_cam1 [4, 4]} of the rotation nearest to the mean matrix, and the
            mean translation in that unit
    """

    points: Mapping[str | None, np.ndarray]
    pose: Mapping[str | None, np.ndarray]

    def key(self, pair: StereoPair) -> str | None:
        """Raises InputError if the pair is of another size than the means."""
        _same_shape(pair, self.points[None].shape[:3])
        return pair.trajectory if pair.trajectory in self.points else None


def trajectory_means(training: Iterable[StereoPair]) -> Means:
    """Raises InputError: no training pairs, or pairs of different sizes."""
    sums: dict[str | None, np.ndarray] = {}
    counts: dict[str | None, np.ndarray] = {}
    poses: dict[str | None, list[np.ndarray]] = {}
    shape = None
    for pair in training:
        shape = _same_shape(pair, shape or pair.valid.shape)
        points = geometry.pointmaps_cam1(pair)
        unit = np.linalg.norm(points[pair.valid], axis=-1).mean()
        T = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
        T[:3, 3] /= unit
        for key in (pair.trajectory, None):
            sums[key] = sums.get(key, 0.0) + np.where(pair.valid[..., None], points / unit, 0.0)
            counts[key] = counts.get(key, 0) + pair.valid
            poses.setdefault(key, []).append(T)
    if shape is None:
        raise InputError("The mean baseline got 0 training pairs, expected at least 1: give some.")
    means = {key: np.stack([*map(_mean_map, sums[key], counts[key])]) for key in sums}
    return Means(means, {key: _mean_pose(np.stack(each)) for key, each in poses.items()})


def _mean_pose(poses: np.ndarray) -> np.ndarray:
    T = poses.mean(0)
    U, _, Vt = np.linalg.svd(T[:3, :3])
    T[:3, :3] = (U * [1.0, 1.0, np.linalg.det(U) * np.linalg.det(Vt)]) @ Vt
    return T


def mean_baseline(means: Means) -> Callable[[Sequence[StereoPair]], list[PointMaps]]:
    """Predictor: the mean point map and pose of the asked pair's trajectory, and the matches that
    these two say; of a trajectory that has no mean, those of all."""

    def predict(pairs: Sequence[StereoPair]) -> list[PointMaps]:
        out = []
        for pair in pairs:
            key = means.key(pair)
            points, T = means.points[key], means.pose[key]
            pixels = _some_pixels(pair)
            seen = geometry.transform(T, points[0, pixels[:, 1], pixels[:, 0]])
            there = geometry.project(pair.K[1], seen)
            inside = ((there >= 0) & (there < pair.valid.shape[:0:-1])).all(1) & (seen[:, 2] > 0)
            matches = np.concatenate([pixels, there], 1)[inside]
            out.append(
                dataclasses.replace(_without_opinion(points), matches=matches, T_cam2_cam1=T)
            )
        return out

    return predict


def identity_baseline(means: Means) -> Callable[[Sequence[StereoPair]], list[PointMaps]]:
    """Predictor: the mean point map of all trajectories, and no motion: every pixel matches the
    same one, nothing is turned. The direction of the translation, of which there is none, is x."""
    T = np.eye(4)
    T[0, 3] = 1.0

    def predict(pairs: Sequence[StereoPair]) -> list[PointMaps]:
        out = []
        for pair in pairs:
            means.key(pair)
            pixels = _some_pixels(pair)
            matches = np.concatenate([pixels, pixels], 1).astype(np.float64)
            same = _without_opinion(means.points[None])
            out.append(dataclasses.replace(same, matches=matches, T_cam2_cam1=T))
        return out

    return predict


def random_baseline(means: Means) -> Callable[[Sequence[StereoPair]], list[PointMaps]]:
    """Predictor: the mean point map of the trajectory, and what matching and pose estimation make
    of descriptors that are noise."""

    def predict(pairs: Sequence[StereoPair]) -> list[PointMaps]:
        out = []
        for pair in pairs:
            points = means.points[means.key(pair)]
            rng = np.random.default_rng(zlib.crc32(pair.name.encode()))
            desc = rng.standard_normal((*pair.valid.shape, RANDOM_CHANNELS), np.float32)
            desc /= np.linalg.norm(desc, axis=-1, keepdims=True)
            matches = match(list(desc), [np.ones(v.shape) for v in pair.valid])
            fit = adjust(points, matches, pair.K)
            T = np.full((4, 4), np.nan) if fit is None else fit.T_cam2_cam1
            found = _without_opinion(points)
            out.append(dataclasses.replace(found, matches=matches, T_cam2_cam1=T))
        return out

    return predict


def _some_pixels(pair: StereoPair) -> np.ndarray:
    """A grid of pixels (x, y) of view 1 whose depth is known: int [N, 2]."""
    height, width = pair.valid.shape[1:]
    pixels = matching.grid_pixels(height, width, max(1, round((height * width / 2000) ** 0.5)))
    return pixels[pair.valid[0, pixels[:, 1], pixels[:, 0]]]


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
