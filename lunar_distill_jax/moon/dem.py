"""Real ground instead of a synthetic one: a digital elevation model, seen by the same renderer.

Read by rasterio (the extra `dem`): GeoTIFF, PDS3, PDS4, ISIS and all else that GDAL reads, in any
map projection; or from an .npz with `heights` [N, M] in metres and `cell` in metres, on a plane.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.moon import cameras, options, placement, raycast, scene, terrain
from lunar_distill_jax.moon.suns import generator

STREAM = 4000
MAX_DRAWS = 200


@dataclasses.dataclass(frozen=True)
class Dem:
    """Heights over the sphere of 1737.4 km.

    name:    of the file, without its folder
    heights: float32 [N, M] metres, nan where unknown; row 0 is the first of the file
    cell_m:  size of a sample
    to_map:  unit vectors [P, 3] -> (row, column) [P, 2] of the samples there, real-valued
    to_moon: (row, column) -> unit vector
    """

    name: str
    heights: np.ndarray
    cell_m: float
    to_map: Callable[[np.ndarray], np.ndarray]
    to_moon: Callable[[float, float], np.ndarray]


def read_dem(path: str | os.PathLike) -> Dem:
    """Opens a DEM; heights may be stored as radii, or over the sphere.

    Raises:
      InputError: the file is missing or unreadable, rasterio is not installed, or the file has no
        map projection.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"The DEM {path} does not exist: give a GeoTIFF, a PDS label or an .npz.")
    return _read_npz(path) if path.suffix == ".npz" else _read_raster(path)


def _read_npz(path: pathlib.Path) -> Dem:
    try:
        with np.load(path, allow_pickle=False) as file:
            heights, cell = file["heights"].astype(np.float32), float(file["cell"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"The DEM {path} is not a readable npz of `heights` and `cell` (found "
            f"{type(e).__name__}): write both in metres."
        ) from e
    if heights.ndim != 2 or min(heights.shape) < 8 or not cell > 0:
        raise InputError(
            f"The DEM {path} has heights {list(heights.shape)} and a cell of {cell} m: give 8 x 8 "
            "or more, and a cell above 0."
        )
    middle = (np.array(heights.shape) - 1) / 2
    metres = 1e3 * terrain.MOON_RADIUS_KM

    # A gnomonic plane that touches the sphere at the south pole; rows run south to north.
    def to_map(directions):
        plane = metres * directions[:, :2] / np.maximum(-directions[:, 2:], 1e-9)
        return plane[:, ::-1] / cell + middle

    def to_moon(row, column):
        y, x = (np.array([row, column]) - middle) * cell
        return np.array([x, y, -metres]) / np.linalg.norm([x, y, metres])

    return Dem(path.stem, heights, cell, to_map, to_moon)


def _read_raster(path: pathlib.Path) -> Dem:
    try:
        import rasterio
        import rasterio.warp
        from rasterio.errors import RasterioError
    except ImportError as e:
        raise InputError(
            f"Reading the DEM {path} needs rasterio: install lunar-distill-jax[dem], or give an "
            ".npz with `heights` and `cell`."
        ) from e
    try:
        with rasterio.open(path) as file:
            if file.crs is None:
                raise InputError(
                    f"The DEM {path} has no map projection: give one that has, or an .npz."
                )
            data = file.read(1, masked=True).astype(np.float64)
            data = data * file.scales[0] + file.offsets[0]
            crs, transform = file.crs, file.transform
    except RasterioError as e:
        raise InputError(f"The DEM {path} cannot be read ({e}): copy it again.") from e
    heights = np.ma.filled(data, np.nan)
    if np.isnan(heights).all():
        raise InputError(f"The DEM {path} holds no heights (all of {heights.size} are nodata).")
    unit = 1e3 if np.nanmedian(np.abs(heights)) < 20 and np.nanmax(np.abs(heights)) < 2000 else 1.0
    heights = heights * unit  # some products are in km
    if np.nanmedian(heights) > 1e6:  # radii
        heights = heights - 1e3 * terrain.MOON_RADIUS_KM
    geographic = rasterio.crs.CRS.from_dict(
        proj="longlat", a=1e3 * terrain.MOON_RADIUS_KM, b=1e3 * terrain.MOON_RADIUS_KM, no_defs=True
    )
    inverse = ~transform

    def to_map(directions):
        lon = np.rad2deg(np.arctan2(directions[:, 1], directions[:, 0]))
        lat = np.rad2deg(np.arcsin(np.clip(directions[:, 2], -1, 1)))
        x, y = (np.array(a) for a in rasterio.warp.transform(geographic, crs, lon, lat))
        column = inverse.a * x + inverse.b * y + inverse.c
        row = inverse.d * x + inverse.e * y + inverse.f
        return np.stack([row, column], 1) - 0.5  # GDAL counts from the corner of a sample

    def to_moon(row, column):
        x = transform.a * (column + 0.5) + transform.b * (row + 0.5) + transform.c
        y = transform.d * (column + 0.5) + transform.e * (row + 0.5) + transform.f
        (lon,), (lat,) = rasterio.warp.transform(crs, geographic, [x], [y])
        return placement.direction(lat, lon)

    a, b = to_moon(0, 0), to_moon(1, 0)
    cell = 1e3 * terrain.MOON_RADIUS_KM * float(np.linalg.norm(a - b))
    return Dem(path.stem, heights.astype(np.float32), cell, to_map, to_moon)


def sample_heights(dem: Dem, T_world_grid: np.ndarray, n: int, cell_km: float, x0, y0):
    """Heights [N, N] in km above the tangent plane of a grid; nan beyond the DEM.

    The sample above (x, y) is found by its direction from the Moon's centre, which depends on its
    height: two rounds, after which it moves by less than a centimetre.
    """
    x, y = (start + np.arange(n) * cell_km for start in (x0, y0))
    x, y = (a.ravel() for a in np.meshgrid(x, y))
    R, axes = terrain.MOON_RADIUS_KM, T_world_grid[:3, :3]
    z = -(x**2 + y**2) / (2 * R)
    for _ in range(3):
        points = np.stack([x, y, R + np.nan_to_num(z)], 1)
        length = np.linalg.norm(points, axis=1)
        height = _bilinear(dem.heights, dem.to_map(points / length[:, None] @ axes.T)) / 1e3
        # Radius R + h in this direction: z is what is left of it along the normal.
        z = np.sqrt(np.maximum((R + height) ** 2 - x**2 - y**2, 0)) - R
    return z.reshape(n, n)


def _bilinear(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """values at (row, column) [P, 2]; nan outside."""
    rows, columns = values.shape
    at = np.where(np.isfinite(at), at, -1.0)
    i, j = (
        np.clip(np.floor(a).astype(int), 0, m - 2) for a, m in zip(at.T, values.shape, strict=True)
    )
    b, a = at[:, 0] - i, at[:, 1] - j
    inside = (at >= 0).all(1) & (at[:, 0] <= rows - 1) & (at[:, 1] <= columns - 1)
    low = values[i, j] * (1 - a) + values[i, j + 1] * a
    high = values[i + 1, j] * (1 - a) + values[i + 1, j + 1] * a
    return np.where(inside, low * (1 - b) + high * b, np.nan)


@functools.partial(jax.jit, static_argnames="size")
def _see_blurred(heights, x0, y0, cell, centre, rotation, *, size: int):
    # Half a sample: a DEM in whole or half metres has terraces, which shading would show.
    surface = raycast.Surface(terrain.blur(heights, 0.5), x0, y0, cell)
    return surface, *scene.see(surface, centre, rotation, size)


def make_dem_scene(
    dem: Dem,
    seed: int,
    trajectory: str,
    size: int,
    *,
    grid: int | None = None,
    moon: options.Moon = options.FIRST,
) -> scene.Scene:
    """Cameras over a random place of a DEM, whose frames lie wholly on it.

    Ground finer than a cell of the grid, or than the DEM, is not made up: keep to altitudes at
    which the DEM has a sample or more a pixel.

    Raises:
      InputError: an argument is out of range, or no frame fits on the DEM.
    """
    n = scene.check_arguments(trajectory, size, grid)
    rows, columns = dem.heights.shape
    widest = min(rows, columns) * dem.cell_m / 1e3
    smallest = np.inf
    for attempt in range(MAX_DRAWS):
        rng = generator(seed, STREAM, list(cameras.TRAJECTORIES).index(trajectory), attempt)
        pair = cameras.draw_cameras(rng, trajectory, moon.levels_km)
        if pair is None:
            continue
        smallest = min(smallest, pair.side)
        if pair.side > widest:
            continue
        up = dem.to_moon(rng.uniform(0, rows - 1), rng.uniform(0, columns - 1))
        T_world_grid = placement.place_at(up, rng.uniform(0, 2 * np.pi))
        cell = pair.side / (n - 1)
        heights = sample_heights(dem, T_world_grid, n, cell, pair.x0, pair.y0)
        if np.isnan(heights).any():
            continue
        middle = np.rint([-pair.y0 / cell, -pair.x0 / cell]).astype(int)
        lift = heights[middle[0], middle[1]]  # cameras fly over the ground, not the sphere
        T_world_grid[:3, 3] += 1e3 * lift * T_world_grid[:3, 2]
        surface, *seen = _see_blurred(
            (heights - lift).astype(np.float32),
            *(np.float32(v) for v in (pair.x0, pair.y0, cell)),
            pair.centre.astype(np.float32),
            pair.rotation.astype(np.float32),
            size=size,
        )
        if np.asarray(seen[1]).mean() >= scene.MIN_VALID:
            name = f"{trajectory}/{dem.name}-{seed:05d}"
            return scene.Scene(
                name, trajectory, size, seed, moon, surface, pair, T_world_grid, *seen
            )
    raise InputError(
        f"No {trajectory} frame fits on the DEM {dem.name} in {MAX_DRAWS} draws (it is "
        f"{widest:.3g} km wide, the smallest frame drawn needs {smallest:.3g} km): give a larger "
        "DEM, or lower altitudes."
    )
