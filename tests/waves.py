"""A wavy Moon: two views of a sum of sines, exact by fixed-point ray casting (numpy only)."""

import dataclasses

import numpy as np
import tiny

from lunar_distill_jax import geometry
from lunar_distill_jax.types import PointMaps, StereoPair

RADIUS_M = 1_737_400.0
ALTITUDE_M = 30_000.0


def heights(x, y, seed=0, shortest=4000.0):
    """Metres above the sphere at (x, y) metres: waves of 4 to 14 km, slopes to about 30 degrees."""
    rng = np.random.default_rng(seed)
    total = np.zeros_like(x)
    for length in np.geomspace(shortest, 14_000, 7):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        total += (
            0.022
            * length
            * np.sin(2 * np.pi / length * (x * np.cos(angle) + y * np.sin(angle)) + phase)
        )
    return total


def wavy_pair(
    seed=0,
    size=64,
    *,
    name="waves",
    trajectory="nadir",
    sun_deg=(250.0, 250.0),
    turn_deg=8.0,
    **terrain,
) -> StereoPair:
    """Camera 1 looks down from 30 km at latitude -88; camera 2 stands 4 km aside, turned a little.

    sun_deg: azimuth of the sun over each view, clockwise from north
    """
    focal = size / 2 / np.tan(np.radians(22.5))
    K = np.array([[focal, 0, (size - 1) / 2], [0, focal, (size - 1) / 2], [0, 0, 1]])
    # Local axes: east, north, up at the scene.
    up = np.array([np.cos(np.radians(-88)), 0, np.sin(np.radians(-88))])
    east = np.array([0.0, 1, 0])
    axes = np.stack([east, np.cross(up, east), up], 1)
    down = np.diag([1.0, -1, -1])  # camera axes in local ones: x east, y south, z down
    poses, depths, images = [], [], []
    for view in range(2):
        R = down @ tiny.rotation([0.1, 1, 0.5], np.radians(turn_deg) * view)
        centre = np.array([-4000.0, 500, 0]) * view + [0, 0, ALTITUDE_M]
        rays = geometry.pixel_rays(K, size, size) @ R.T
        z = np.full((size, size), ALTITUDE_M)
        for _ in range(200):  # converges where slope times the tilt of the ray is below one
            at = centre + rays * z[..., None]
            drop = (at[..., :2] ** 2).sum(-1) / (2 * RADIUS_M)
            z = (
                z
                + 0.5
                * (at[..., 2] + drop - heights(at[..., 0], at[..., 1], seed, **terrain))
                / -rays[..., 2]
            )
        depths.append(z)
        images.append(_shade(centre + rays * z[..., None], centre, sun_deg[view], seed, terrain))
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = axes @ R, axes @ centre + RADIUS_M * up
        poses.append(T)
    return StereoPair(
        name=name,
        geometry=name,
        trajectory=trajectory,
        image=np.repeat(np.stack(images)[..., None], 3, -1),
        depth_m=np.stack(depths).astype(np.float32),
        valid=np.ones((2, size, size), bool),
        K=np.stack([K, K]),
        T_world_cam=np.stack(poses),
    )


def _shade(at, centre, sun_deg, seed, terrain):
    """Lommel-Seeliger from a sun 20 degrees high, grey levels from minimum to maximum."""
    step = 1.0
    x, y = at[..., 0], at[..., 1]
    h = heights(x, y, seed, **terrain)
    slope = [
        (heights(x + dx, y + dy, seed, **terrain) - h) / step for dx, dy in ((step, 0), (0, step))
    ]
    normal = np.stack([-slope[0], -slope[1], np.ones_like(h)], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    azimuth, elevation = np.radians([sun_deg, 20.0])
    sun = np.array([np.sin(azimuth), np.cos(azimuth), np.tan(elevation)]) * np.cos(elevation)
    to_camera = centre - at
    to_camera /= np.linalg.norm(to_camera, axis=-1, keepdims=True)
    mu0, mu = np.maximum(normal @ sun, 0), (normal * to_camera).sum(-1)
    bright = mu0 / (mu0 + mu) * np.exp(-0.69 * np.arccos(np.clip(to_camera @ sun, -1, 1)))
    return (255 * (bright - bright.min()) / np.ptp(bright)).astype(np.uint8)


def as_half(pair: StereoPair) -> StereoPair:
    """The pair as StereoLunar stores it: depths rounded to HALF."""
    return dataclasses.replace(pair, depth_m=pair.depth_m.astype(np.float16).astype(np.float32))


def from_depths(pair: StereoPair, depths, conf=None) -> PointMaps:
    """A prediction whose depth in each own camera is `depths` [2, H, W], with the true pose."""
    own = [
        geometry.backproject(np.asarray(z, float), K) for z, K in zip(depths, pair.K, strict=True)
    ]
    own[1] = geometry.transform(geometry.relative_pose(pair.T_world_cam), own[1])
    conf = np.ones(pair.valid.shape) if conf is None else conf
    return PointMaps(np.stack(own), conf)
