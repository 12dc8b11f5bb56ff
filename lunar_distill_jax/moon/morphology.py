"""Shapes beyond the round bowl: filled and complex craters, ragged rims, secondaries, giants,
boulders; and how many craters a surface of some age has."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

# Neukum et al. 2001, table 1: log10 N(>D) per km^2 after 1 Ga in powers of log10 D (km).
NEUKUM = (
    *(-3.0876, -3.557528, 0.781027, 1.021521, -0.156012, -0.444058),
    *(0.019977, 0.086850, -0.005874, -0.006809, 8.25e-4, 5.54e-5),
)
COMPLEX_KM = 15.0  # larger craters have flat floors and peaks
CLUSTERS = 24
GIANTS = 24  # at most
BOULDERS, BOULDER_PATCH, BOULDER_SLOPE, LARGEST_BOULDER_M = 1500, 16, 3.2, 40.0


def production(diameter_km: float, age_ga: float) -> float:
    """Craters larger than `diameter_km` per km^2 on a surface of `age_ga` (Neukum et al. 2001).

    The polynomial holds from 10 m to 300 km; the chronology is N(>1 km) = 5.44e-14 (exp(6.93 T) -
    1) + 8.38e-4 T.
    """
    log = math.log10(min(max(diameter_km, 0.01), 300.0))
    shape = 10 ** sum(a * log**i for i, a in enumerate(NEUKUM))
    of_one_km = 5.44e-14 * math.expm1(6.93 * age_ga) + 8.38e-4 * age_ga
    return shape * of_one_km / 10 ** NEUKUM[0]


def ragged(y: jax.Array, x: jax.Array, harmonics: jax.Array) -> jax.Array:
    """(r / R)^2 of a crater whose radius varies with the direction; y [P, 1], x [1, P] in radii.

    harmonics [4]: cosine and sine of the second and of the third harmonic, relative.
    """
    r2 = y**2 + x**2
    near = jnp.maximum(r2, 1e-6)
    second = (harmonics[0] * (x**2 - y**2) + harmonics[1] * 2 * x * y) / near
    third = (harmonics[2] * x * (x**2 - 3 * y**2) + harmonics[3] * y * (3 * x**2 - y**2)) / (
        near * jnp.sqrt(near)
    )
    return r2 * jnp.clip(1 + second + third, 0.5, 2.0)


def fill(height: jax.Array, floor: jax.Array, width: jax.Array) -> jax.Array:
    """max(height, floor), rounded off within `width`; beyond it exactly the larger one."""
    d = jnp.clip((floor - height + width) / (2 * width), 0.0, 1.0)
    return height + d * (floor - height) + width * d * (1 - d)


def floor_level(key: jax.Array, diameter_km: jax.Array, filled: float) -> jax.Array:
    """How deep the flat floor lies, as a share of the bowl's depth; 2 where there is none."""
    debris, share = jax.random.uniform(key, (2, *diameter_km.shape))
    return jnp.where((share < filled) & (diameter_km > 1.0), 0.6 + 0.35 * debris, 2.0)


def peak_km(diameter_km: jax.Array) -> jax.Array:
    """Height of the central peak, km (Pike 1977: 0.032 D^0.9 above 15 km)."""
    return jnp.where(diameter_km > COMPLEX_KM, 0.032 * diameter_km**0.9, 0.0)


def cluster(key: jax.Array, row: jax.Array, column: jax.Array, n: int, small, share: float):
    """Moves a share of the `small` craters into chains and clusters -> row, column, moved.

    A cluster is a strip: a chain where it is narrow. Secondaries come in both.
    """
    keys = jax.random.split(key, 4)
    centre = jax.random.uniform(keys[0], (2, CLUSTERS)) * n
    angle, length, width = jax.random.uniform(keys[1], (3, CLUSTERS))
    length, width = n * (0.08 + 0.4 * length**2), n * 0.0015 * 40**width
    of = jax.random.randint(keys[2], row.shape, 0, CLUSTERS)
    along, across, chance = jax.random.uniform(keys[3], (3, *row.shape))
    along = (along - 0.5) * length[of]
    across = jax.scipy.special.erfinv(1.98 * across - 0.99) * width[of]
    sine, cosine = jnp.sin(math.pi * angle[of]), jnp.cos(math.pi * angle[of])
    moved = small & (chance < share)
    row = jnp.where(moved, centre[0][of] + along * sine + across * cosine, row)
    column = jnp.where(moved, centre[1][of] + along * cosine - across * sine, column)
    return row, column, moved


def draw_giants(
    rng: np.random.Generator, n: int, cell_km: float, least: float, density: float
) -> np.ndarray:
    """Giants float32 [GIANTS, 3]: row, column, diameter (cells), largest first; 0 where there are
    fewer.

    Diameters from `least` to 3 n cells by Hartmann's (1984) saturation N(>D) = 10^-1.14 D^-1.83
    per km^2, D in km, times `density`; centres so far outside that a rim just reaches the grid.
    """
    edges = np.geomspace(least, 3 * n, 9)
    found = []
    for small, large in zip(edges[:-1], edges[1:], strict=True):
        low, high = small * cell_km, large * cell_km
        per_km2 = density * 10**-1.14 * (low**-1.83 - high**-1.83)
        reach = n + 1.2 * large  # to the rim, on both sides
        count = rng.poisson(per_km2 * (reach * cell_km) ** 2)
        ends = small**-1.83, large**-1.83
        diameter = (ends[0] - rng.uniform(size=count) * (ends[0] - ends[1])) ** (-1 / 1.83)
        place = rng.uniform(-0.6 * large, n + 0.6 * large, (count, 2))
        found.append(np.append(place, diameter[:, None], 1))
    found = np.concatenate(found)
    # A crater of many grids' size is just a slope to us: the largest come and go unseen.
    found = found[np.argsort(-found[:, 2], kind="stable")][:GIANTS]
    out = np.zeros((GIANTS, 3), np.float32)
    out[: len(found)] = found
    return out


def draw_boulders(rng: np.random.Generator, n: int, cell_km: float, per_km2: float) -> np.ndarray:
    """Boulders float32 [BOULDERS, 3]: row, column, diameter (cells); 0 where there are fewer."""
    out = np.zeros((BOULDERS, 3), np.float32)
    least_m = max(2.0, 2e3 * cell_km)
    if least_m >= LARGEST_BOULDER_M:
        return out
    ends = [(size / 2.0) ** -BOULDER_SLOPE for size in (least_m, LARGEST_BOULDER_M)]
    expected = per_km2 * (ends[0] - ends[1]) * (n * cell_km) ** 2
    count = min(rng.poisson(min(expected, 10.0 * BOULDERS)), BOULDERS)
    level = ends[0] - rng.uniform(size=count) * (ends[0] - ends[1])
    diameter_m = 2.0 * level ** (-1 / BOULDER_SLOPE)
    half = BOULDER_PATCH / 2
    out[:count, :2] = rng.uniform(half, n - half, (count, 2))
    out[:count, 2] = np.minimum(diameter_m / (1e3 * cell_km), BOULDER_PATCH - 2)
    return out


def add_boulders(heights: jax.Array, boulders: jax.Array, cell_km: jax.Array) -> jax.Array:
    """Adds domes half as high as they are wide, with a rounded foot: the ray caster pays for
    walls."""

    def stamp(i, h):
        row, column, diameter = boulders[i]
        corner = jnp.floor(boulders[i, :2]).astype(jnp.int32) - BOULDER_PATCH // 2
        old = jax.lax.dynamic_slice(h, corner, (BOULDER_PATCH, BOULDER_PATCH))
        steps = jnp.arange(BOULDER_PATCH)
        y = ((steps + corner[0] - row) / (0.5 * diameter))[:, None]
        x = ((steps + corner[1] - column) / (0.5 * diameter))[None, :]
        dome = jnp.maximum(1 - x**2 - y**2, 0.0) ** 2
        return jax.lax.dynamic_update_slice(h, old + 0.5 * diameter * cell_km * dome, corner)

    return jax.lax.fori_loop(0, (boulders[:, 2] > 0).sum(), stamp, heights)
