"""From a seed to ground, cameras and what they see, with exact geometry.

A `Scene` is a piece of ground and two cameras; it is lit as often as one likes. The renderer works
in kilometres in the float32 frame of the grid; poses leave it as Moon-centred float64 metres.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.moon import (
    cameras,
    craters,
    morphology,
    options,
    photometry,
    placement,
    raycast,
    shadows,
    terrain,
)
from lunar_distill_jax.moon.suns import generator

MAX_DRAWS = 100
MIN_VALID = 0.999  # grazing rays are rarer; below it, a frame looks past the grid
EXTRA_STREAM, NOISE_STREAM = 2000, 3000
# XLA's FFT on CPUs deals out its rows to whichever thread is free, and the last digit of a row
# depends on that: with threads, 20 of 150 runs of one relief differed from the others.
ONE_THREAD = {"xla_cpu_multi_thread_eigen": False}
LEAST_SHARE = 0.6  # of a shared ground's side, that another camera pair must see


@dataclasses.dataclass(frozen=True)
class Scene:
    """Ground, cameras and first hits, ready to be lit.

    geometry:     name of the camera pair, e.g. "nadir/00001"; pairs that share a ground are
                  "nadir/00001", "nadir/00001.1", ...
    trajectory:   "nadir" | "oblique" | "dynamic"
    size:         side of the frames in pixels
    seed:         of everything random in it
    moon:         what kind of Moon
    surface:      the heightfield, km
    pair:         the cameras, km
    T_world_grid: float64 [4, 4] grid to Moon-centred, body-fixed metres
    depth_km:     [2, H, W] z-depth of the first hit
    valid:        bool [2, H, W]
    normals:      [2, H, W, 3] unit, grid frame
    """

    geometry: str
    trajectory: str
    size: int
    seed: int
    moon: options.Moon
    surface: raycast.Surface
    pair: cameras.CameraPair
    T_world_grid: np.ndarray
    depth_km: jax.Array
    valid: jax.Array
    normals: jax.Array


def default_grid(size: int) -> int:
    """Samples along the side of the heightfield for frames of `size` pixels: about 1.7 a pixel."""
    return 128 * math.ceil(1.7 * size / 128)


def _grid_rays(size: int, rotation: jax.Array) -> jax.Array:
    """Rays [2, H, W, 3] of all pixels in the grid frame, of unit z in their camera."""
    focal, centre = cameras.intrinsics(size)[0, [0, 2]]
    across = (jnp.arange(size) - centre) / focal
    x, y = jnp.meshgrid(across, across)
    own = jnp.stack([x, y, jnp.ones_like(x)], -1)
    return jnp.einsum("vij,hwj->vhwi", rotation, own, precision="highest")


def see(surface: raycast.Surface, centre, rotation, size: int):
    """z-depths [2, H, W], their validity and the normals [2, H, W, 3] of two cameras."""
    rays = _grid_rays(size, rotation).reshape(-1, 3)
    origins = jnp.repeat(centre, size * size, axis=0)
    t, valid = raycast.trace(surface, origins, rays, cameras.intrinsics(size)[0, 0])
    x, y, _ = (origins + t[:, None] * rays).T
    # Kept as arrays: fused into the gathers below, each slope would be computed four times.
    north, east = jax.lax.optimization_barrier(jnp.gradient(surface.heights))
    gx, gy = (raycast.interpolate(slope, surface, x, y) / surface.cell for slope in (east, north))
    normal = jnp.stack([-gx, -gy, jnp.ones_like(gx)], -1)
    normal = normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)
    frame = (2, size, size)
    return t.reshape(frame), valid.reshape(frame), normal.reshape(*frame, 3)


def build(key, counts, extras, x0, y0, cell, centre, rotation, *, size: int, n: int, ground):
    """Surface, and what two cameras see of it; jit and vmap take it as it is."""
    heights = terrain.make_heights(key, counts, n, cell, x0, y0, ground, *extras)
    surface = raycast.Surface(heights, x0, y0, cell)
    return surface, *see(surface, centre, rotation, size)


_build = jax.jit(build, static_argnames=("size", "n", "ground"), compiler_options=ONE_THREAD)
_see = jax.jit(see, static_argnames="size", compiler_options=ONE_THREAD)


@functools.partial(jax.jit, static_argnames=("light", "sensor"), compiler_options=ONE_THREAD)
def _light(surface, depth_km, valid, normals, centre, rotation, sun, key, *, light, sensor):
    """Grey images uint8 [2, H, W]; pixels without ground are black."""
    rays = _grid_rays(depth_km.shape[1], rotation)
    to_camera = -rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)
    radiance = photometry.shade(normals, to_camera, sun, light.photometry)
    ground = centre[:, None, None] + depth_km[..., None] * rays
    x, y, _ = ground.reshape(-1, 3).T
    if light.cast_shadows:
        if light.sun_radius_deg:
            lit = shadows.lit_by_disc(surface.heights, surface.cell, sun, light.sun_radius_deg)
        else:
            lit = shadows.lit_fraction(surface.heights, surface.cell, sun)
        radiance *= raycast.interpolate(lit, surface, x, y).reshape(radiance.shape)
    if light.albedo:
        n = len(surface.heights)
        patches = terrain.reflectance(jax.random.fold_in(key, 1), n, surface.cell, light.albedo)
        radiance *= raycast.interpolate(patches, surface, x, y).reshape(radiance.shape)
    return photometry.expose(jnp.where(valid, radiance, 0.0), sensor, key)


def check_arguments(trajectory: str, size: int, grid: int | None) -> int:
    """-> samples along the side of the grid; raises InputError where one is out of range."""
    if trajectory not in cameras.TRAJECTORIES:
        raise InputError(
            f"Unknown trajectory {trajectory!r}: choose one of {', '.join(cameras.TRAJECTORIES)}."
        )
    if size < 8:
        raise InputError(f"The frame size is {size} pixels: give 8 or more.")
    n = default_grid(size) if grid is None else grid
    if n < 64 or n % 8:
        raise InputError(f"The grid has {n} samples a side: give a multiple of 8, 64 or more.")
    return n


def make_scene(
    seed: int,
    trajectory: str,
    size: int,
    *,
    grid: int | None = None,
    moon: options.Moon = options.FIRST,
) -> Scene:
    """Draws cameras and ground; a draw whose frames look past the grid is thrown away and redrawn.

    Args:
      seed: any integer >= 0; the same seed gives the same bytes.
      trajectory: "nadir", "oblique" or "dynamic".
      size: side of the frames in pixels.
      grid: samples along the side of the heightfield, a multiple of 8; None: about 1.7 a pixel.
      moon: what kind of Moon (`options`)

    Raises:
      InputError: an argument is out of range.
    """
    n = check_arguments(trajectory, size, grid)
    for attempt in range(MAX_DRAWS):
        rng = generator(seed, list(cameras.TRAJECTORIES).index(trajectory), attempt)
        pair = cameras.draw_cameras(rng, trajectory, moon.levels_km)
        if pair is None:
            continue
        T_world_grid = placement.place_near_south_pole(rng)
        cell = pair.side / (n - 1)
        key = jax.random.key(int(rng.integers(2**31)))
        surface, *seen = _build(
            key,
            craters.draw_counts(rng, n, cell, moon.ground),
            _extras(rng, n, cell, moon.ground),
            np.float32(pair.x0),
            np.float32(pair.y0),
            np.float32(cell),
            *_cameras(pair),
            size=size,
            n=n,
            ground=moon.ground,
        )
        if np.asarray(seen[1]).mean() < MIN_VALID:
            continue
        name = f"{trajectory}/{seed:05d}"
        return Scene(name, trajectory, size, seed, moon, surface, pair, T_world_grid, *seen)
    raise RuntimeError(f"no {trajectory} scene in {MAX_DRAWS} draws from seed {seed}")


def _extras(rng: np.random.Generator, n: int, cell: float, ground: options.Ground):
    """Giants and boulders, or None where the ground has none."""
    giants = boulders = None
    if ground.giants:
        least = craters.patch_sizes(n)[0] / 3
        giants = morphology.draw_giants(rng, n, cell, least, ground.giants)
    if ground.boulders:
        boulders = morphology.draw_boulders(rng, n, cell, ground.boulders)
    return giants, boulders


def _cameras(pair: cameras.CameraPair) -> tuple[np.ndarray, np.ndarray]:
    return pair.centre.astype(np.float32), pair.rotation.astype(np.float32)


def share_ground(scene: Scene, count: int) -> list[Scene]:
    """`scene` and up to `count` - 1 more camera pairs over the same ground.

    The others are drawn like the first, turned by quarters, moved over the grid and lifted to the
    ground there. Terrain is the dearest part of a scene, so this is the way to many pairs; split
    such data by terrain (the name up to its dot).
    """
    rng = generator(scene.seed, EXTRA_STREAM, list(cameras.TRAJECTORIES).index(scene.trajectory))
    heights = np.asarray(scene.surface.heights)
    scenes = [scene]
    for _ in range(MAX_DRAWS):
        if len(scenes) >= count:
            break
        drawn = cameras.draw_cameras(rng, scene.trajectory, scene.moon.levels_km)
        if drawn is None or not LEAST_SHARE <= drawn.side / scene.pair.side <= 1:
            continue
        pair = cameras.move_over(drawn, scene.pair, heights, rng)
        seen = _see(scene.surface, *_cameras(pair), size=scene.size)
        if np.asarray(seen[1]).mean() >= MIN_VALID:
            depth_km, valid, normals = seen
            scenes.append(
                dataclasses.replace(
                    scene,
                    geometry=f"{scenes[0].geometry}.{len(scenes)}",
                    pair=pair,
                    depth_km=depth_km,
                    valid=valid,
                    normals=normals,
                )
            )
    return scenes


def light(
    scene: Scene, azimuth_deg: float, elevation_deg: float, *, cast_shadows: bool | None = None
):
    """The two photographs uint8 [2, H, W, 3] of a scene under one sun.

    cast_shadows: None: as the scene's Moon has it
    """
    sun = placement.sun_in_grid(scene.T_world_grid, azimuth_deg, elevation_deg)
    how = scene.moon.light
    if cast_shadows is not None:
        how = dataclasses.replace(how, cast_shadows=cast_shadows)
    noise = generator(
        scene.seed, NOISE_STREAM, round(100 * azimuth_deg), round(100 * elevation_deg)
    )
    grey = _light(
        scene.surface,
        scene.depth_km,
        scene.valid,
        scene.normals,
        *_cameras(scene.pair),
        sun.astype(np.float32),
        jax.random.key(int(noise.integers(2**31))),
        light=how,
        sensor=scene.moon.sensor,
    )
    return np.repeat(np.asarray(grey)[..., None], 3, axis=-1)


_trace = jax.jit(raycast.trace)
RAY_BLOCK = 4096


def trace_rays(scene: Scene, view: int, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z-depth in metres and validity [P] of the ground seen at real-valued pixels uv [P, 2]."""
    K = cameras.intrinsics(scene.size)
    rays = (
        np.append(uv, np.ones((len(uv), 1)), 1) @ np.linalg.inv(K).T @ scene.pair.rotation[view].T
    )
    count = -(-len(uv) // RAY_BLOCK) * RAY_BLOCK  # few sizes, so few compilations
    padded = np.tile(rays[-1:], (count, 1)).astype(np.float32)
    padded[: len(uv)] = rays
    origins = np.tile(scene.pair.centre[view].astype(np.float32), (count, 1))
    depth_km, valid = _trace(scene.surface, origins, padded, K[0, 0])
    return 1e3 * np.asarray(depth_km, np.float64)[: len(uv)], np.asarray(valid)[: len(uv)]
