"""Under which conditions a pair was taken: what results are broken down by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.evaluation import align
from lunar_distill_jax.evaluation.flow import Flow
from lunar_distill_jax.moon.photometry import PHASE_SLOPE
from lunar_distill_jax.twoview.dem import MOON_CENTRED_M
from lunar_distill_jax.types import StereoPair

CONDITIONS = {  # key -> heading
    "trajectory": "Trajectory",
    "sun": "Sun's azimuth",
    "lighting": "Suns of the two views",
    "overlap": "Overlap",
    "altitude": "Median depth",
    "rotation": "Rotation",
    "baseline": "Baseline / depth",
}
BINS = {
    "overlap": ((0.6, 0.9), ("below 60 %", "60 to 90 %", "above 90 %")),
    "altitude": ((1.5e4, 3e4), ("below 15 km", "15 to 30 km", "above 30 km")),
    "rotation": ((10.0, 45.0), ("below 10°", "10° to 45°", "above 45°")),
    "baseline": ((0.1, 0.2), ("below 0.1", "0.1 to 0.2", "above 0.2")),
}
SUN_STEP_DEG = 30  # of the names; the search is finer
SURE = (
    0.6  # correlation of the modelled brightness with the photograph, below which no sun is named
)
SAMPLES = 2000  # pixels a view


def pair_numbers(pair: StereoPair, flow: Flow) -> dict[str, float]:
    """The numbers behind the bins: overlap [0, 1], depth in metres, degrees, a ratio."""
    T = geometry.relative_pose(pair.T_world_cam)
    depth = float(np.median(pair.depth_m[pair.valid]))
    return {
        "overlap": float(flow.seen.sum() / max(pair.valid[0].sum(), 1)),
        "altitude": depth,
        "rotation": align.rotation_angle_deg(T[:3, :3]),
        "baseline": float(np.linalg.norm(T[:3, 3])) / depth,
    }


def conditions(pair: StereoPair, numbers: Mapping[str, float]) -> dict[str, str]:
    """The bin of a pair under each of `CONDITIONS`; numbers: of `pair_numbers`."""
    suns = [sun(pair, view) for view in range(2)]
    same = "unknown"
    if suns[0] is not None and suns[1] is not None:
        # Near a pole the norths of two views differ: directions are compared in one frame.
        same = "same" if _turn_deg(suns[0], suns[1]) < SUN_STEP_DEG else "different"
    named = {
        "trajectory": pair.trajectory,
        "sun": "unknown" if suns[0] is None else f"{_rounded(suns[0].azimuth_deg):03d}°",
        "lighting": same,
    }
    for key, value in numbers.items():
        edges, names = BINS[key]
        named[key] = names[int(np.searchsorted(edges, value, "right"))]
    return {key: named[key] for key in CONDITIONS}


def _rounded(azimuth_deg: float) -> int:
    return int(round(azimuth_deg / SUN_STEP_DEG) * SUN_STEP_DEG) % 360


@dataclasses.dataclass(frozen=True)
class Sun:
    """azimuth_deg: clockwise from the view's own north; direction: unit [3], Moon-centred, towards
    it; up: unit [3], of the view's ground."""

    azimuth_deg: float
    direction: np.ndarray
    up: np.ndarray


def _turn_deg(one: Sun, other: Sun) -> float:
    """How far one sun's azimuth is from the other's, on the ground of the first."""
    flat = [s.direction - (s.direction @ one.up) * one.up for s in (one, other)]
    a, b = (f / max(np.linalg.norm(f), 1e-12) for f in flat)
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


def sun(pair: StereoPair, view: int) -> Sun | None:
    """Where it stands by the true surface and the photograph; None where nothing fits.

    Lommel-Seeliger brightness with StereoLunar's phase function for a grid of suns; the one that
    correlates best wins.
    """
    normals, to_camera, grey, up = _shading(pair, view)
    if normals is None or up is None or np.ptp(grey) == 0:
        return None
    east = np.cross([0.0, 0, 1], up)
    if not np.linalg.norm(east) > 0:
        return None
    east /= np.linalg.norm(east)
    north = np.cross(up, east)
    azimuth, elevation = np.meshgrid(
        np.radians(np.arange(0, 360, 5)), np.radians([10, 15, 20, 30, 45, 60])
    )
    flat = np.cos(elevation)[..., None] * (
        np.cos(azimuth)[..., None] * north + np.sin(azimuth)[..., None] * east
    )
    suns = (flat + np.sin(elevation)[..., None] * up).reshape(-1, 3)
    mu0 = np.maximum(normals @ suns.T, 0)
    mu = np.maximum((normals * to_camera).sum(1), 1e-3)[:, None]
    phase = np.arccos(np.clip(to_camera @ suns.T, -1, 1))
    bright = mu0 / (mu0 + mu) * np.exp(-PHASE_SLOPE * phase)
    bright -= bright.mean(0)
    grey = grey - grey.mean()
    correlation = grey @ bright / np.maximum(np.sqrt((bright**2).sum(0) * (grey**2).sum()), 1e-300)
    best = int(correlation.argmax())
    if not correlation[best] > SURE:
        return None
    return Sun(float(np.degrees(azimuth.ravel()[best])), suns[best], up)


def _shading(pair: StereoPair, view: int):
    """Unit normals [N, 3], directions to the camera [N, 3], grey [N], up [3]; None if no Moon."""
    T = np.asarray(pair.T_world_cam[view], np.float64)
    depth = np.where(pair.valid[view], pair.depth_m[view], np.nan).astype(np.float64)
    world = geometry.transform(T, geometry.backproject(depth, pair.K[view]))
    normals = np.cross(np.gradient(world, axis=1), np.gradient(world, axis=0))
    known = np.isfinite(normals).all(-1)
    if np.linalg.norm(T[:3, 3]) < MOON_CENTRED_M or known.sum() < 100:
        return None, None, np.zeros(1), None
    step = -(-known.sum() // SAMPLES)
    normals, at = normals[known][::step], world[known][::step]
    up = at.mean(0) / np.linalg.norm(at.mean(0))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    normals *= np.sign(normals @ up)[:, None]
    to_camera = T[:3, 3] - at
    to_camera /= np.linalg.norm(to_camera, axis=1, keepdims=True)
    grey = pair.image[view].astype(np.float64).mean(-1)[known][::step]
    return normals, to_camera, grey, up
