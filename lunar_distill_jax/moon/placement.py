"""Where the square of ground lies on the Moon, and where the sun stands over it."""

from __future__ import annotations

import math

import numpy as np

from lunar_distill_jax.moon import cameras, photometry
from lunar_distill_jax.moon.terrain import MOON_RADIUS_KM


def east_north_up(up: np.ndarray) -> np.ndarray:
    """[3, 3], columns east, north and up of a site, up a unit vector of the body-fixed frame."""
    east = np.cross([0.0, 0.0, 1.0], up)
    if np.linalg.norm(east) < 1e-12:  # at a pole every direction is north, or south
        east = np.array([0.0, 1.0, 0.0])
    east /= np.linalg.norm(east)
    return np.stack([east, np.cross(up, east), up], 1)


def direction(latitude_deg: float, longitude_deg: float) -> np.ndarray:
    """Unit vector to a site, body-fixed."""
    lat, lon = math.radians(latitude_deg), math.radians(longitude_deg)
    return np.array([math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)])


def place_at(up: np.ndarray, heading: float) -> np.ndarray:
    """T_world_grid [4, 4]: the grid touches the sphere in the direction `up` (a unit vector),
    turned by `heading` (rad) from east-north-up; metres."""
    T = np.eye(4)
    T[:3, :3] = east_north_up(up) @ cameras.rotation_about(2, heading)
    T[:3, 3] = 1e3 * MOON_RADIUS_KM * up
    return T


def place_near_south_pole(rng: np.random.Generator) -> np.ndarray:
    """`place_at` a site of StereoLunar's latitudes, turned by any angle."""
    latitude = rng.uniform(-89.9, -87.1)
    longitude, heading = rng.uniform(0.0, 2 * math.pi, 2)
    return place_at(direction(latitude, math.degrees(longitude)), heading)


def sun_in_grid(T_world_grid: np.ndarray, azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """Unit vector to the sun in the frame of the grid; azimuth clockwise from north."""
    local = east_north_up(T_world_grid[:3, 2])
    return T_world_grid[:3, :3].T @ local @ photometry.sun_direction(azimuth_deg, elevation_deg)
