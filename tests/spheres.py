"""Pairs of a plane with balls on it, ray cast in float64: depth and visibility by formula."""

import numpy as np
import tiny

from lunar_distill_jax import geometry
from lunar_distill_jax.types import StereoPair

PLANE_M = 1e4  # the plane z = PLANE_M, in the frame of the world


def balls(seed):
    """Centres [n, 3] and radii [n]: balls that float before the plane and hide parts of it."""
    rng = np.random.default_rng(seed)
    centres = np.append(rng.uniform(-3500, 3500, (6, 2)), rng.uniform(8000, 9500, (6, 1)), 1)
    return centres, rng.uniform(300, 900, 6)


def first_hit(seed, origin, rays):
    """z-depth-like parameter t of the first hit of origin + t * rays, [...]."""
    t = (PLANE_M - origin[2]) / rays[..., 2]
    for centre, radius in zip(*balls(seed), strict=True):
        a, b = (rays**2).sum(-1), rays @ (origin - centre)
        c = ((origin - centre) ** 2).sum() - radius**2
        root = b**2 - a * c
        near = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
        t = np.where((near > 0) & (near < t), near, t)
    return t


def ball_pair(seed=0, *, size=(48, 64), skew=0.0, grey=True) -> StereoPair:
    rng = np.random.default_rng(seed)
    height, width = size
    K, T, depth, image = np.empty((2, 3, 3)), np.empty((2, 4, 4)), [], []
    for view in range(2):
        focal = width * rng.uniform(0.95, 1.15, 2)
        centre = (np.array([width, height]) - 1) / 2 + rng.uniform(-2, 2, 2)
        K[view] = [[focal[0], skew * focal[0], centre[0]], [0, focal[1], centre[1]], [0, 0, 1]]
        T[view] = np.eye(4)
        T[view, :3, :3] = tiny.rotation(rng.normal(size=3), rng.uniform(-0.1, 0.1))
        T[view, :3, 3] = (2 * view - 1) * np.array([rng.uniform(500, 900), 100, 50])
        rays = geometry.pixel_rays(K[view], height, width) @ T[view, :3, :3].T
        depth.append(first_hit(seed, T[view, :3, 3], rays))
        ground = geometry.transform(T[view], geometry.backproject(depth[-1], K[view])) / 1000
        waves = [np.sin(3 * ground[..., 0] + c) + np.sin(4 * ground[..., 1] + c) for c in range(3)]
        image.append(128 + 50 * np.stack([waves[0]] * 3 if grey else waves, -1))
    depth = np.stack(depth).astype(np.float32)
    image = np.stack(image).astype(np.uint8)
    valid = np.ones_like(depth, bool)
    return StereoPair(f"balls{seed}", f"balls{seed}", "dynamic", image, depth, valid, K, T)


def truth(pair, seed, pixels, a=0, b=1):
    """Where the ground of pixels [N, 2] of view a falls in view b [N, 2], and if it is seen."""
    rays = np.append(pixels, np.ones((len(pixels), 1)), 1) @ np.linalg.inv(pair.K[a]).T
    rays = rays @ pair.T_world_cam[a, :3, :3].T
    origin = pair.T_world_cam[a, :3, 3]
    points = origin + first_hit(seed, origin, rays)[:, None] * rays
    there = geometry.transform(geometry.inverse(pair.T_world_cam[b]), points)
    uv = geometry.project(pair.K[b], there)
    # Is the point the first thing that the ray from camera b meets?
    back = points - pair.T_world_cam[b, :3, 3]
    hit = first_hit(seed, pair.T_world_cam[b, :3, 3], back)  # 1 at the point itself
    height, width = pair.valid.shape[1:]
    inside = ((uv > -0.5) & (uv < [width - 0.5, height - 0.5])).all(1)
    return uv, inside & (hit > 1 - 1e-9)
