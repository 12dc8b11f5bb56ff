"""From a seed to a stereo pair with its exact ground truth.

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
from lunar_distill_jax.moon import cameras, craters, photometry, raycast, shadows, terrain
from lunar_distill_jax.types import StereoPair

# Azimuth (clockwise from north) and elevation in degrees of StereoLunar's three suns.
SUNS = ((330.0, 20.0), (250.0, 20.0), (180.0, 15.0))
SUN_STREAM = 1000
MAX_DRAWS = 100
MIN_VALID = 0.999  # grazing rays are rarer; below it, a frame looks past the grid


@dataclasses.dataclass(frozen=True)
class Scene:
    """Ground, cameras and first hits, ready to be lit.

    geometry:     name of the camera pair, e.g. "nadir/00001"
    trajectory:   "nadir" | "oblique" | "dynamic"
    size:         side of the frames in pixels
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


@functools.partial(jax.jit, static_argnames=("size", "n"))
def _build(key, counts, x0, y0, cell, centre, rotation, *, size: int, n: int):
    """Surface, z-depths, validity and normals of both views."""
    surface = raycast.Surface(terrain.make_heights(key, counts, n, cell, x0, y0), x0, y0, cell)
    rays = _grid_rays(size, rotation).reshape(-1, 3)
    origins = jnp.repeat(centre, size * size, axis=0)
    t, valid = raycast.trace(surface, origins, rays, cameras.intrinsics(size)[0, 0])
    x, y, _ = (origins + t[:, None] * rays).T
    north, east = jnp.gradient(surface.heights)
    gx, gy = (raycast.interpolate(slope, surface, x, y) / cell for slope in (east, north))
    normal = jnp.stack([-gx, -gy, jnp.ones_like(gx)], -1)
    normal = normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)
    frame = (2, size, size)
    return surface, t.reshape(frame), valid.reshape(frame), normal.reshape(*frame, 3)


@functools.partial(jax.jit, static_argnames="cast_shadows")
def _light(surface, depth_km, valid, normals, centre, rotation, sun, *, cast_shadows: bool):
    """Grey images uint8 [2, H, W]; pixels without ground are black."""
    rays = _grid_rays(depth_km.shape[1], rotation)
    to_camera = -rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)
    radiance = photometry.shade(normals, to_camera, sun)
    if cast_shadows:
        lit = shadows.lit_fraction(surface.heights, surface.cell, sun)
        ground = centre[:, None, None] + depth_km[..., None] * rays
        x, y, _ = ground.reshape(-1, 3).T
        radiance *= raycast.interpolate(lit, surface, x, y).reshape(radiance.shape)
    return photometry.expose(jnp.where(valid, radiance, 0.0))


def _place_on_moon(rng: np.random.Generator) -> np.ndarray:
    """T_world_grid [4, 4] at a site near the south pole, turned by any angle from east-north-up."""
    lat = math.radians(rng.uniform(-89.9, -87.1))
    lon, heading = rng.uniform(0.0, 2 * math.pi, 2)
    up = np.array([math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)])
    east = np.array([-math.sin(lon), math.cos(lon), 0.0])
    T = np.eye(4)
    T[:3, :3] = np.stack([east, np.cross(up, east), up], 1) @ cameras.rotation_about(2, heading)
    T[:3, 3] = 1e3 * terrain.MOON_RADIUS_KM * up
    return T


def _sun_in_grid(T_world_grid: np.ndarray, azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    up = T_world_grid[:3, 2]
    east = np.cross([0.0, 0.0, 1.0], up)
    east /= np.linalg.norm(east)
    east_north_up = np.stack([east, np.cross(up, east), up], 1)
    direction = photometry.sun_direction(azimuth_deg, elevation_deg)
    return T_world_grid[:3, :3].T @ east_north_up @ direction


def _generator(seed: int, *stream: int) -> np.random.Generator:
    """A random stream of its own for each use of one seed."""
    if seed < 0:
        raise InputError(f"The seed is {seed}: give 0 or more.")
    return np.random.default_rng([seed, *stream])


def make_scene(seed: int, trajectory: str, size: int, *, grid: int | None = None) -> Scene:
    """Draws cameras and ground; a draw whose frames look past the grid is thrown away and redrawn.

    Args:
      seed: any integer >= 0; the same seed gives the same bytes.
      trajectory: "nadir", "oblique" or "dynamic".
      size: side of the frames in pixels.
      grid: samples along the side of the heightfield, a multiple of 8; None: about 1.7 a pixel.

    Raises:
      InputError: an argument is out of range.
    """
    if trajectory not in cameras.TRAJECTORIES:
        raise InputError(
            f"Unknown trajectory {trajectory!r}: choose one of {', '.join(cameras.TRAJECTORIES)}."
        )
    if size < 8:
        raise InputError(f"The frame size is {size} pixels: give 8 or more.")
    n = default_grid(size) if grid is None else grid
    if n < 64 or n % 8:
        raise InputError(f"The grid has {n} samples a side: give a multiple of 8, 64 or more.")
    for attempt in range(MAX_DRAWS):
        rng = _generator(seed, list(cameras.TRAJECTORIES).index(trajectory), attempt)
        pair = cameras.draw_cameras(rng, trajectory)
        if pair is None:
            continue
        T_world_grid = _place_on_moon(rng)
        cell = pair.side / (n - 1)
        surface, depth_km, valid, normals = _build(
            jax.random.key(int(rng.integers(2**31))),
            craters.draw_counts(rng, n, cell),
            np.float32(pair.x0),
            np.float32(pair.y0),
            np.float32(cell),
            pair.centre.astype(np.float32),
            pair.rotation.astype(np.float32),
            size=size,
            n=n,
        )
        if np.asarray(valid).mean() < MIN_VALID:
            continue
        name = f"{trajectory}/{seed:05d}"
        return Scene(name, trajectory, size, surface, pair, T_world_grid, depth_km, valid, normals)
    raise RuntimeError(f"no {trajectory} scene in {MAX_DRAWS} draws from seed {seed}")


def light(scene: Scene, azimuth_deg: float, elevation_deg: float, *, cast_shadows: bool = False):
    """The two photographs uint8 [2, H, W, 3] of a scene under one sun."""
    sun = _sun_in_grid(scene.T_world_grid, azimuth_deg, elevation_deg).astype(np.float32)
    grey = _light(
        scene.surface,
        scene.depth_km,
        scene.valid,
        scene.normals,
        scene.pair.centre.astype(np.float32),
        scene.pair.rotation.astype(np.float32),
        sun,
        cast_shadows=cast_shadows,
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


def _poses(scene: Scene) -> np.ndarray:
    """T_world_cam [2, 4, 4], metres."""
    T_grid_cam = np.tile(np.eye(4), (2, 1, 1))
    T_grid_cam[:, :3, :3] = scene.pair.rotation
    T_grid_cam[:, :3, 3] = 1e3 * scene.pair.centre
    return scene.T_world_grid @ T_grid_cam


def _stereo_pair(scene: Scene, label: str, image: np.ndarray) -> StereoPair:
    valid = np.asarray(scene.valid)
    return StereoPair(
        name=f"{scene.geometry}-{label}",
        geometry=scene.geometry,
        trajectory=scene.trajectory,
        image=image,
        depth_m=np.where(valid, np.float32(1e3) * np.asarray(scene.depth_km), np.float32(0)),
        valid=valid,
        K=np.tile(cameras.intrinsics(scene.size), (2, 1, 1)),
        T_world_cam=_poses(scene),
    )


def resolve_sun(seed: int, sun: None | int | str | tuple[float, float]) -> tuple[str, float, float]:
    """Label, azimuth and elevation (degrees) of a sun.

    None draws one of the three presets by the seed; an int names one; "random" draws azimuth 0..360
    and elevation 10..30; a pair (azimuth, elevation) is taken as it is.

    Raises:
      InputError: no such preset, or the sun is not above the horizon.
    """
    rng = _generator(seed, SUN_STREAM)
    if sun is None:
        sun = int(rng.integers(len(SUNS)))
    if sun == "random":
        sun = (round(rng.uniform(0, 360), 1), round(rng.uniform(10, 30), 1))
    if isinstance(sun, int):
        if not 0 <= sun < len(SUNS):
            raise InputError(
                f"There is no sun {sun}: choose 0, 1 or 2, or give azimuth and elevation."
            )
        return f"sun{sun}", *SUNS[sun]
    if isinstance(sun, str):
        raise InputError(f"Unknown sun {sun!r}: give 0, 1, 2, 'random' or azimuth and elevation.")
    azimuth, elevation = sun
    if not 0 < elevation <= 90:
        raise InputError(
            f"The sun stands at elevation {elevation} degrees: give a value above 0, up to 90."
        )
    return f"az{azimuth:g}el{elevation:g}", azimuth, elevation


def make_lightings(
    seed: int,
    trajectory: str,
    size: int,
    suns=(0, 1, 2),
    *,
    cast_shadows: bool = False,
    grid: int | None = None,
) -> list[StereoPair]:
    """The same ground and cameras under several suns: pairs that share all but the images."""
    resolved = [resolve_sun(seed, sun) for sun in suns]
    scene = make_scene(seed, trajectory, size, grid=grid)
    pairs = []
    for label, azimuth, elevation in resolved:
        image = light(scene, azimuth, elevation, cast_shadows=cast_shadows)
        pairs.append(_stereo_pair(scene, label, image))
    return pairs


def make_pair(
    seed: int,
    trajectory: str,
    size: int,
    *,
    cast_shadows: bool = False,
    sun: None | int | str | tuple[float, float] = None,
    grid: int | None = None,
) -> StereoPair:
    """One synthetic stereo pair with exact depth and poses; the same seed gives the same bytes.

    Args: see `make_scene`, and `resolve_sun` for `sun`. StereoLunar's frames have no cast shadows.
    """
    return make_lightings(seed, trajectory, size, (sun,), cast_shadows=cast_shadows, grid=grid)[0]
