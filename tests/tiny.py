"""The smallest network with every part, and stereo pairs of a plane, exact by formula."""

import pathlib

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.models.config import DecoderConfig, EncoderConfig, HeadConfig, StereoConfig
from lunar_distill_jax.types import StereoPair

REPOSITORY = pathlib.Path(__file__).parents[1]
CONFIG = StereoConfig(
    name="tiny",
    encoder=EncoderConfig(width=16, depth=1, heads=2, mlp_ratio=2.0),
    decoder=DecoderConfig(width=24, depth=2, heads=2, mlp_ratio=2.0),
    head=HeadConfig(width=8, layers=(8, 8, 8, 8), last=4, desc=4, desc_ratio=0.5, plane=True),
)
SIZE = 32


def rotation(axis, angle: float) -> np.ndarray:
    """Rodrigues' formula."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def plane_pair(seed=0, *, size=(SIZE, SIZE), trajectory="nadir", holes=0.1) -> StereoPair:
    """Two cameras with odd intrinsics see a tilted, textured plane; some pixels are not valid."""
    rng = np.random.default_rng(seed)
    height, width = size
    K, T, depth, image = np.empty((2, 3, 3)), np.empty((2, 4, 4)), [], []
    normal = np.array([*rng.uniform(-0.2, 0.2, 2), 1.0])  # the plane normal . X = 10 km, in metres
    for view in range(2):
        focal = width * rng.uniform(0.9, 1.4, 2)
        centre = (np.array([width, height]) - 1) / 2 + rng.uniform(-3, 3, 2)
        K[view] = [[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1]]
        T[view] = np.eye(4)
        T[view, :3, :3] = rotation(rng.normal(size=3), rng.uniform(-0.15, 0.15))
        T[view, :3, 3] = rng.uniform(-800, 800, 3)
        rays = geometry.pixel_rays(K[view], height, width) @ T[view, :3, :3].T
        depth.append((1e4 - normal @ T[view, :3, 3]) / (rays @ normal))
        ground = geometry.transform(T[view], geometry.backproject(depth[-1], K[view])) / 1000
        waves = np.sin(3 * ground[..., 0] + seed) + np.sin(4 * ground[..., 1] + ground[..., 0])
        image.append(np.repeat((128 + 50 * waves)[..., None], 3, -1).astype(np.uint8))
    valid = rng.uniform(size=(2, height, width)) >= holes
    depth = np.where(valid, depth, 0).astype(np.float32)
    name = f"plane{seed}"
    return StereoPair(name, name, trajectory, np.stack(image), depth, valid, K, T)
