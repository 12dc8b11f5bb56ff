"""Pairs of pinhole cameras as StereoLunar flies them: nadir, oblique and dynamic (numpy).

Lengths are km in the frame of the grid: z up, ground at the origin. Cameras are OpenCV's (x right,
y down, z forward). The distributions are those of StereoLunar's generation scripts, corrected where
the published frames show otherwise.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lunar_distill_jax.moon.options import FIRST

FIELD_OF_VIEW_DEG = 45.0
Levels = tuple[float, ...]  # altitudes (km) to draw from; dynamic flies 0.5 km higher
MAX_SIDE = 4.5  # joint footprint over altitude; beyond it the grid cannot resolve the near ground
MIN_OVERLAP = 0.25
# The footprint is taken on planes this far (in altitudes) below and above the origin; ground that
# reaches further costs a redraw.
RELIEF = {"nadir": 0.05, "oblique": 0.10, "dynamic": 0.07}
MARGIN = 1.04


@dataclasses.dataclass(frozen=True)
class CameraPair:
    """Two cameras and the square of ground they see.

    centre:    float64 [2, 3]     camera centres, km
    rotation:  float64 [2, 3, 3]  camera to grid
    x0, y0:    lower-left corner of the square, km
    side:      its side, km
    """

    centre: np.ndarray
    rotation: np.ndarray
    x0: float
    y0: float
    side: float


def intrinsics(size: int) -> np.ndarray:
    """K [3, 3] of a square frame of 45 degrees; integer pixel coordinates are pixel centres."""
    focal = size / 2 / math.tan(math.radians(FIELD_OF_VIEW_DEG / 2))
    centre = (size - 1) / 2
    return np.array([[focal, 0.0, centre], [0.0, focal, centre], [0.0, 0.0, 1.0]])


def look_at(centre: np.ndarray, target: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] camera to grid that looks at `target`; image x lies closest to `right`."""
    z = (target - centre) / np.linalg.norm(target - centre)
    x = right - (right @ z) * z
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], 1)


def rotation_about(axis: int, angle: float) -> np.ndarray:
    """Right-handed rotation [3, 3] by `angle` (rad) about x (0), y (1) or z (2)."""
    c, s = math.cos(angle), math.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    R = np.eye(3)
    R[i, i], R[i, j], R[j, i], R[j, j] = c, -s, s, c
    return R


def _around(distance: float, azimuth: float, z: float = 0.0) -> np.ndarray:
    return np.array([distance * math.sin(azimuth), distance * math.cos(azimuth), z])


def nadir(rng: np.random.Generator, levels: Levels) -> tuple[np.ndarray, np.ndarray]:
    """Camera 1 looks straight down; camera 2 stands B to its left, B/H in 0.02..0.10.

    Camera 2 does not aim at the point below camera 1 but (-B/2, -B/2) beside it in the image, that
    is 0.71 B away: its rotation from camera 1 is (theta/2, theta/2, 0) with tan theta = B/H, as
    measured in StereoLunar.
    """
    altitude = rng.choice(levels)
    baseline = altitude * rng.uniform(0.02, 0.10)
    centres = np.array([[0.0, 0.0, altitude], [-baseline, 0.0, altitude]])
    # Image y points to -y of the grid.
    targets = np.array([[0.0, 0.0, 0.0], [-baseline / 2, baseline / 2, 0.0]])
    right = np.array([1.0, 0.0, 0.0])
    return centres, np.stack([look_at(c, t, right) for c, t in zip(centres, targets, strict=True)])


def _oblique_altitudes(rng: np.random.Generator, levels: Levels) -> np.ndarray:
    """Two altitudes (km) within 1 km of a level (less where that is lower than StereoLunar's):
    same, close, different or progressive."""
    offset = rng.uniform(-1.0, 1.0)
    close = offset + rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.0)
    ends = np.array([rng.uniform(-1.0, -0.4), rng.uniform(0.4, 1.0)])
    offsets = [
        (offset, offset),
        (offset, np.clip(close, -1.0, 1.0)),
        rng.permutation(ends),
        (-1, 1),
    ]
    level = rng.choice(levels)
    return level + min(level / 3.5, 1.0) * np.array(offsets[rng.integers(4)])


def oblique(rng: np.random.Generator, levels: Levels) -> tuple[np.ndarray, np.ndarray]:
    """Both cameras look at one point from 0.5..1.1 altitudes aside, azimuths within 10 degrees.

    They stand to the south of the grid; the grid itself is turned at random when put on the Moon.
    """
    centres, rotations = [], []
    for altitude in _oblique_altitudes(rng, levels):
        azimuth = math.pi + math.radians(rng.uniform(-10, 10))
        centre = _around(altitude * rng.uniform(0.5, 1.1), azimuth, altitude)
        target = np.append(rng.uniform(-0.0125, 0.0125, 2), 0.0)
        level = np.cross(target - centre, [0.0, 0.0, 1.0])  # the horizon stays level
        centres.append(centre)
        rotations.append(look_at(centre, target, level))
    return np.stack(centres), np.stack(rotations)


def dynamic(rng: np.random.Generator, levels: Levels) -> tuple[np.ndarray, np.ndarray]:
    """A descent: altitudes vary by 30 %, pointing wanders by up to 30 degrees, roll is free."""
    level = rng.choice(levels) + 0.5
    centres, rotations = [], []
    for _ in range(2):
        altitude = level * rng.uniform(0.7, 1.3)
        centre = _around(altitude * rng.uniform(0.02, 0.22), rng.uniform(0, 2 * math.pi), altitude)
        target = _around(rng.uniform(0, 0.5), rng.uniform(0, 2 * math.pi))
        cone = math.radians(rng.uniform(0, rng.choice([10.0, 20.0, 30.0], p=[0.3, 0.5, 0.2])))
        pitch = rng.choice([5.0, 10.0, 15.0], p=[0.3, 0.4, 0.3])
        pitch = math.radians(rng.uniform(-pitch, pitch))
        around, roll = rng.uniform(0, 2 * math.pi, 2)
        R = look_at(centre, target, np.array([1.0, 0.0, 0.0])) @ rotation_about(2, around)
        R = R @ rotation_about(0, cone) @ rotation_about(2, -around)
        centres.append(centre)
        rotations.append(R @ rotation_about(0, pitch) @ rotation_about(2, roll))
    return np.stack(centres), np.stack(rotations)


def ground_hits(centre: np.ndarray, rotation: np.ndarray, height: float, count: int) -> np.ndarray:
    """Points [count^2, 2] where a raster of rays meets the plane z = height (inf: never)."""
    edge = math.tan(math.radians(FIELD_OF_VIEW_DEG / 2)) * np.linspace(-1, 1, count)
    x, y = np.meshgrid(edge, edge)
    rays = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], 1) @ rotation.T
    falls = rays[:, 2] < -1e-3
    t = np.where(falls, (height - centre[2]) / np.where(falls, rays[:, 2], -1.0), np.inf)
    return centre[:2] + t[:, None] * rays[:, :2]


def plane_overlap(centre: np.ndarray, rotation: np.ndarray) -> float:
    """How much of a view's ground, taken as flat, the other view frames; smaller of the two."""
    limit = math.tan(math.radians(FIELD_OF_VIEW_DEG / 2))
    fractions = []
    for a, b in ((0, 1), (1, 0)):
        ground = ground_hits(centre[a], rotation[a], 0.0, 16)
        seen = (np.append(ground, np.zeros((len(ground), 1)), 1) - centre[b]) @ rotation[b]
        framed = (np.abs(seen[:, :2]) <= limit * seen[:, 2:]).all(1)
        fractions.append(framed.mean())
    return min(fractions)


TRAJECTORIES = {"nadir": nadir, "oblique": oblique, "dynamic": dynamic}


def draw_cameras(
    rng: np.random.Generator, trajectory: str, levels: Levels = FIRST.levels_km
) -> CameraPair | None:
    """One camera pair, or None where it sees sky, too wide a ground, or too little in common."""
    centre, rotation = TRAJECTORIES[trajectory](rng, levels)
    altitude = centre[:, 2].mean()
    relief = RELIEF[trajectory] * altitude
    seen = [
        ground_hits(centre[view], rotation[view], height, 9)
        for view in range(2)
        for height in (-relief, relief)
    ]
    seen = np.concatenate([*seen, np.zeros((1, 2))])  # the origin must lie on the grid
    if not np.isfinite(seen).all():
        return None
    low, high = seen.min(0), seen.max(0)
    side = MARGIN * float((high - low).max())
    if side > MAX_SIDE * altitude or plane_overlap(centre, rotation) < MIN_OVERLAP:
        return None
    x0, y0 = (low + high - side) / 2
    return CameraPair(centre, rotation, float(x0), float(y0), side)


def move_over(
    drawn: CameraPair, over: CameraPair, heights: np.ndarray, rng: np.random.Generator
) -> CameraPair:
    """A pair whose square is no larger, turned by quarters and put somewhere over the ground of
    another one, lifted to the height (km) of the ground [N, N] below its origin."""
    R = rotation_about(2, rng.integers(4) * math.pi / 2)
    low, high = np.array([drawn.x0, drawn.y0]), np.array([drawn.x0, drawn.y0]) + drawn.side
    corners = np.sort(np.stack([R[:2, :2] @ low, R[:2, :2] @ high]), 0)
    room = over.side - drawn.side
    shift = np.array([over.x0, over.y0]) + rng.uniform(0, 1, 2) * room - corners[0]
    n = len(heights)
    column, row = np.rint((shift - [over.x0, over.y0]) / over.side * (n - 1)).astype(int)
    lift = float(heights[np.clip(row, 0, n - 1), np.clip(column, 0, n - 1)])
    centre = drawn.centre @ R.T + np.append(shift, lift)
    x0, y0 = corners[0] + shift
    return CameraPair(centre, R @ drawn.rotation, float(x0), float(y0), drawn.side)
