"""Scenes under suns as stereo pairs with ground truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lunar_distill_jax.moon import cameras, options
from lunar_distill_jax.moon.scene import Scene, light, make_scene, share_ground
from lunar_distill_jax.moon.suns import Sun, resolve_sun
from lunar_distill_jax.types import StereoPair


def poses(scene: Scene) -> np.ndarray:
    """T_world_cam [2, 4, 4], metres."""
    T_grid_cam = np.tile(np.eye(4), (2, 1, 1))
    T_grid_cam[:, :3, :3] = scene.pair.rotation
    T_grid_cam[:, :3, 3] = 1e3 * scene.pair.centre
    return scene.T_world_grid @ T_grid_cam


def stereo_pair(scene: Scene, label: str, image: np.ndarray) -> StereoPair:
    """A scene with its photographs; `label` tells the sun in the pair's name."""
    valid = np.asarray(scene.valid)
    return StereoPair(
        name=f"{scene.geometry}-{label}",
        geometry=scene.geometry,
        trajectory=scene.trajectory,
        image=image,
        depth_m=np.where(valid, np.float32(1e3) * np.asarray(scene.depth_km), np.float32(0)),
        valid=valid,
        K=np.tile(cameras.intrinsics(scene.size), (2, 1, 1)),
        T_world_cam=poses(scene),
    )


def light_scenes(
    scenes: Iterable[Scene], suns: Sequence[Sun], *, cast_shadows: bool | None = None
) -> list[StereoPair]:
    """Every scene under every sun (`resolve_sun`)."""
    pairs = []
    for scene in scenes:
        for label, azimuth, elevation in [resolve_sun(scene.seed, sun) for sun in suns]:
            image = light(scene, azimuth, elevation, cast_shadows=cast_shadows)
            pairs.append(stereo_pair(scene, label, image))
    return pairs


def make_lightings(
    seed: int,
    trajectory: str,
    size: int,
    suns: Sequence[Sun] = (0, 1, 2),
    *,
    cast_shadows: bool | None = None,
    grid: int | None = None,
    moon: options.Moon = options.FIRST,
    geometries: int = 1,
) -> list[StereoPair]:
    """The same ground and cameras under several suns: pairs that share all but the images.

    geometries: camera pairs over one ground (`share_ground`), each under all suns

    Raises:
      InputError: an argument is out of range.
    """
    for sun in suns:
        resolve_sun(seed, sun)  # before any work
    scene = make_scene(seed, trajectory, size, grid=grid, moon=moon)
    scenes = share_ground(scene, geometries) if geometries > 1 else [scene]
    return light_scenes(scenes, suns, cast_shadows=cast_shadows)


def make_pair(
    seed: int,
    trajectory: str,
    size: int,
    *,
    cast_shadows: bool | None = None,
    sun: Sun = None,
    grid: int | None = None,
    moon: options.Moon = options.FIRST,
) -> StereoPair:
    """One synthetic stereo pair with exact depth and poses; the same seed gives the same bytes.

    Args: see `make_scene`, and `resolve_sun` for `sun`. StereoLunar's frames have no cast shadows.
    """
    return make_lightings(
        seed, trajectory, size, (sun,), cast_shadows=cast_shadows, grid=grid, moon=moon
    )[0]
