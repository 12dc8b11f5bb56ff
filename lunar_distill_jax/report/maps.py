"""What the report draws of a pair: depth, relief, slope, error and confidence (numpy, host side).

Maps are [2, H, W], one slice a view; NaN where there is no ground truth or nothing to compute.
Frames and conventions are those of `types.py`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.types import PointMaps, StereoPair

# A camera this far from the origin of its world is in Moon-centred coordinates (radius
# 1 737 400 m); nearer, the world is a local one and the plane of the terrain gives the vertical.
MOON_CENTRED_M = 1.0e6


@dataclasses.dataclass(frozen=True)
class Surface:
    """One source's account of a pair: the ground truth's, or a model's after one-scale alignment.

    points_cam1: float64 [2, H, W, 3]  metres
    depth_m:     float64 [2, H, W]     z-depth in each view's own (ground-truth) camera
    relief_m:    float64 [2, H, W]     depth of the true plane minus depth: positive is nearer
    slope_deg:   float64 [2, H, W]     angle of the surface normal to the local vertical
    error_pct:   float64 [2, H, W]     |X - X_gt| in % of the true depth; NaN for the ground truth
    conf:        float64 [2, H, W]     NaN for the ground truth
    """

    points_cam1: np.ndarray
    depth_m: np.ndarray
    relief_m: np.ndarray
    slope_deg: np.ndarray
    error_pct: np.ndarray
    conf: np.ndarray


def thin(pair: StereoPair, predictions: dict[str, PointMaps], side: int):
    """The same pair and predictions with every k-th pixel, so that no side exceeds `side`.

    Sampling pixel k * u moves no pixel centre: the first two rows of K are divided by k, exactly.
    """
    k = -(-max(pair.depth_m.shape[1:]) // side)
    if k == 1:
        return pair, predictions
    cut = (slice(None), slice(None, None, k), slice(None, None, k))
    small = dataclasses.replace(
        pair,
        image=pair.image[cut],
        depth_m=pair.depth_m[cut],
        valid=pair.valid[cut],
        K=pair.K / np.array([k, k, 1.0])[:, None],
    )
    return small, {
        name: PointMaps(p.points_cam1[cut], p.conf[cut]) for name, p in predictions.items()
    }


def align_scale(points: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    """The one scale that brings `points` to `truth`: median |X_gt| / |X| over valid pixels.

    points, truth: [2, H, W, 3]; valid: [2, H, W]. 1.0 when there is no pixel to measure it on.
    """
    length = np.linalg.norm(points, axis=-1)
    use = valid & np.isfinite(length) & (length > 0)
    if not use.any():
        return 1.0
    return float(np.median(np.linalg.norm(truth, axis=-1)[use] / length[use]))


def own_depths(pair: StereoPair, points_cam1: np.ndarray) -> np.ndarray:
    """z-depth [2, H, W] of each view's points in its own camera, by the ground-truth pose."""
    T_cam2_cam1 = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
    second = geometry.transform(T_cam2_cam1, points_cam1[1])
    return np.stack([points_cam1[0, ..., 2], second[..., 2]])


def plane_depths(pair: StereoPair) -> np.ndarray:
    """z-depth [2, H, W] of the plane fitted to each view's own ground truth; NaN without one."""
    planes = np.full(pair.depth_m.shape, np.nan)
    for v in range(2):
        if pair.valid[v].sum() >= 3:
            rays = geometry.pixel_rays(pair.K[v], *pair.depth_m[v].shape)
            planes[v] = geometry.fit_inverse_depth_plane(rays, pair.depth_m[v], pair.valid[v])
    return planes


def terrain_plane(pair: StereoPair) -> tuple[np.ndarray, np.ndarray]:
    """(centre [3], unit normal [3] towards camera 1) of both views' true points; camera 1, metres.

    The normal is the direction of least variance; looking down the optical axis when there are too
    few points to tell.
    """
    points = geometry.pointmaps_cam1(pair)[pair.valid]
    if len(points) < 3:
        return np.zeros(3), np.array([0.0, 0.0, -1.0])
    centre = points.mean(0)
    normal = np.linalg.eigh(np.cov((points - centre).T))[1][:, 0]
    return centre, normal if normal @ centre < 0 else -normal


def local_up(pair: StereoPair, points_cam1: np.ndarray) -> np.ndarray:
    """Unit vertical at `points_cam1` [..., 3]: radial in a Moon-centred world, else the plane's."""
    T_world_cam1 = pair.T_world_cam[0]
    if np.linalg.norm(T_world_cam1[:3, 3]) < MOON_CENTRED_M:
        return np.broadcast_to(terrain_plane(pair)[1], points_cam1.shape)
    radial = geometry.transform(T_world_cam1, points_cam1)
    radial /= np.linalg.norm(radial, axis=-1, keepdims=True)
    return radial @ T_world_cam1[:3, :3]


def slopes(pair: StereoPair, points_cam1: np.ndarray) -> np.ndarray:
    """Slope [2, H, W] in degrees, from neighbouring 3D points: no pixel size is assumed.

    The normal is the cross product of central differences of the points (one-sided at borders).
    """
    known = np.where(pair.valid[..., None], points_cam1, np.nan)
    normal = np.cross(np.gradient(known, axis=2), np.gradient(known, axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.abs((normal * local_up(pair, known)).sum(-1)) / np.linalg.norm(normal, axis=-1)
        return np.degrees(np.arccos(np.clip(cosine, 0.0, 1.0)))


def describe(pair: StereoPair, points_cam1: np.ndarray, planes_m: np.ndarray) -> Surface:
    """The maps that need no comparison: of the ground truth, or of a prediction already aligned."""
    points = np.where(pair.valid[..., None], points_cam1, np.nan)
    depth = own_depths(pair, points)
    unknown = np.full(depth.shape, np.nan)
    return Surface(points, depth, planes_m - depth, slopes(pair, points_cam1), unknown, unknown)


def surfaces(
    pair: StereoPair, predictions: dict[str, PointMaps]
) -> tuple[Surface, dict[str, Surface]]:
    """The ground truth's surface, and each prediction's after alignment by one scale."""
    planes = plane_depths(pair)
    truth = describe(pair, geometry.pointmaps_cam1(pair), planes)
    models = {}
    for name, prediction in predictions.items():
        points = np.asarray(prediction.points_cam1, np.float64)
        points = points * align_scale(points, truth.points_cam1, pair.valid)
        error = np.linalg.norm(points - truth.points_cam1, axis=-1) / truth.depth_m * 100
        conf = np.where(pair.valid, np.asarray(prediction.conf, np.float64), np.nan)
        models[name] = dataclasses.replace(
            describe(pair, points, planes), error_pct=error, conf=conf
        )
    return truth, models


def pair_facts(pair: StereoPair) -> dict[str, str]:
    """How the pair was taken, for the reader: distances, baseline, rotation, ground sampling."""
    T = geometry.relative_pose(pair.T_world_cam)
    baseline = float(np.linalg.norm(T[:3, 3]))
    rotation = np.degrees(np.arccos(np.clip((np.trace(T[:3, :3]) - 1) / 2, -1, 1)))
    height, width = pair.depth_m.shape[1:]
    facts = {"frame": f"{width} x {height} px"}
    if pair.valid.any():
        z = pair.depth_m[pair.valid]
        lo, hi = np.percentile(z, [1, 99]) / 1000
        facts["depth"] = f"{lo:.1f} to {hi:.1f} km"
        facts["ground sampling"] = f"{np.median(z) / pair.K[0, 0, 0]:.0f} m / px"
        facts["baseline"] = f"{baseline / 1000:.2f} km ({baseline / np.median(z):.3f} of depth)"
    facts["rotation between views"] = f"{rotation:.1f}°"
    return facts
