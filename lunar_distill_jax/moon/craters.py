"""Craters of every age, stamped on a heightfield from the largest to the smallest.

Lengths inside this file are in cells unless a name says `_km`; x = r / R is the distance from the
centre in crater radii, K = kappa t / R^2 the dimensionless age (linear diffusion of the relief).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

OLDEST = 0.6  # K at which a crater counts as erased
AGES = np.linspace(0.0, OLDEST, 16)
REACH = 3.0  # a crater ends at this many radii
STEPS_PER_RADIUS = 32
DENSITY = 1.7  # crater count relative to Trask's equilibrium


def fresh_profile(x: np.ndarray) -> np.ndarray:
    """Height of a fresh simple crater in diameters (Fassett & Thomson 2014, eq. 4)."""
    bowl = -0.2288 + 0.2275 * x + 0.0831 * x**2 - 0.0395 * x**3
    rim = 0.1883 - 0.1871 * x + 0.0184 * x**2 + 0.0151 * x**3
    return np.select([x <= 0.2, x <= 1.0, x <= 1.5], [-0.181 + 0.0 * x, bowl, rim], 0.0)


@functools.cache
def profile_table() -> np.ndarray:
    """Profiles [age, radius] in diameters: the fresh crater diffused for K = kappa t / R^2.

    Diffusion for a time t is a Gaussian blur of variance 2 kappa t, done in 2-D with an FFT on a
    square that is wide enough for the blur not to wrap round. The last half radius fades to zero.
    """
    half = round(STEPS_PER_RADIUS * (REACH + 4.0 * math.sqrt(2.0 * OLDEST)))
    axis = np.arange(-half, half) / STEPS_PER_RADIUS
    fresh = np.fft.rfft2(fresh_profile(np.hypot(axis[:, None], axis[None, :])))
    ky = np.fft.fftfreq(2 * half, 1 / STEPS_PER_RADIUS)[:, None]
    kx = np.fft.rfftfreq(2 * half, 1 / STEPS_PER_RADIUS)[None, :]
    decay = -4.0 * np.pi**2 * (kx**2 + ky**2)  # d ln(amplitude) / dK
    count = round(STEPS_PER_RADIUS * REACH) + 1
    rows = [np.fft.irfft2(fresh * np.exp(decay * K))[half, half : half + count] for K in AGES]
    x = np.arange(count) / STEPS_PER_RADIUS
    fade = np.clip((REACH - x) / 0.5, 0.0, 1.0)
    return (np.stack(rows) * fade**2 * (3.0 - 2.0 * fade)).astype(np.float32)


def patch_sizes(n: int) -> list[int]:
    """Patches of the size classes, largest first: class P holds diameters in (P/6, P/3]."""
    return [2**e for e in range(int(math.log2(min(n, 1024))), 3, -1)]


def expected_count(n: int, patch: int, factor: float) -> float:
    """Craters of class `patch` whose centre lies within patch/4 of an n x n grid.

    Trask's (1966) equilibrium N(>D) = 10^-1.1 D^-2 is free of scale, so it holds in cells too.
    """
    per_cell = 10**-1.1 * ((6 / patch) ** 2 - (3 / patch) ** 2)
    return DENSITY * factor * per_cell * (n + patch / 2) ** 2


def size_factor(diameter_km: float) -> float:
    """Departure from Trask's slope: fewer small craters, as the spectra of StereoLunar ask for."""
    return float(np.clip(diameter_km**0.75, 0.15, 2.0))


def draw_counts(rng: np.random.Generator, n: int, cell_km: float) -> np.ndarray:
    """Poisson number of craters of each class, int32 [classes]."""
    means = [
        expected_count(n, p, size_factor(p / math.sqrt(18.0) * cell_km)) for p in patch_sizes(n)
    ]
    return np.minimum(rng.poisson(means), [_capacity(n, p) for p in patch_sizes(n)]).astype(np.int32)


def _capacity(n: int, patch: int) -> int:
    most = expected_count(n, patch, 2.0)
    return math.ceil(most + 6.0 * math.sqrt(most) + 4.0)


def depth_factor(diameter_km: jax.Array) -> jax.Array:
    """Depth over that of the fresh profile: shallower when small (Stopar et al. 2017) or complex."""
    small = jnp.clip((diameter_km / 0.4) ** 0.25, 0.5, 1.0)
    return small * jnp.maximum(diameter_km / 10.0, 1.0) ** -0.7


def _draw(key: jax.Array, count: int, n: int, patch: int, cell_km: jax.Array) -> jax.Array:
    """Craters [count, 5]: centre row, centre column, diameter (cells), age K, depth scale (km)."""
    keys = jax.random.split(key, 5)
    margin = patch / 4
    row, column = (jax.random.uniform(k, (count,), minval=-margin, maxval=n + margin) for k in keys[:2])
    # N(>D) ~ D^-2 on (P/6, P/3]: D^-2 is uniform.
    inverse_square = jax.random.uniform(
        keys[2], (count,), minval=(3 / patch) ** 2, maxval=(6 / patch) ** 2
    )
    diameter = inverse_square**-0.5
    age = OLDEST * jax.random.uniform(keys[3], (count,), minval=0.03, maxval=1.0)
    spread = jnp.exp(0.15 * jax.random.normal(keys[4], (count,)))
    depth_km = diameter * cell_km * depth_factor(diameter * cell_km) * spread
    return jnp.stack([row, column, diameter, age, depth_km], 1)


def _local_plane(weight: jax.Array, heights: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """Weighted least-squares plane through `heights` [P, P] at rows y [P, 1] and columns x [1, P]."""
    total = jnp.maximum(weight.sum(), 1e-6)
    my, mx, mh = ((weight * a).sum() / total for a in (y, x, heights))
    dy, dx, dh = y - my, x - mx, heights - mh
    wy, wx = weight * dy, weight * dx
    syy, sxx, sxy = (wy * dy).sum(), (wx * dx).sum(), (wx * dy).sum()
    syh, sxh = (wy * dh).sum(), (wx * dh).sum()
    det = syy * sxx - sxy**2 + 1e-3 * total**2
    return mh + ((syh * sxx - sxh * sxy) * dy + (sxh * syy - syh * sxy) * dx) / det


def _stamp(heights: jax.Array, crater: jax.Array, table: jax.Array, patch: int) -> jax.Array:
    """Excavates one crater: old relief is pulled to its local plane inside the rim, then the profile
    is added. The patch is pushed inside the grid; it still covers all the grid the crater touches."""
    n = heights.shape[0]
    row, column, diameter, age, depth_km = crater
    corner = [jnp.clip(jnp.floor(c).astype(jnp.int32) - patch // 2, 0, n - patch) for c in (row, column)]
    old = jax.lax.dynamic_slice(heights, corner, (patch, patch))
    steps = jnp.arange(patch)
    y = ((steps + corner[0] - row) / (0.5 * diameter))[:, None]
    x = ((steps + corner[1] - column) / (0.5 * diameter))[None, :]
    r = jnp.sqrt(y**2 + x**2)  # [P, P]

    level = age / OLDEST * (table.shape[0] - 1)
    low = jnp.clip(level.astype(jnp.int32), 0, table.shape[0] - 2)
    profile = table[low] + (level - low) * (table[low + 1] - table[low])
    at = jnp.minimum(r * STEPS_PER_RADIUS, table.shape[1] - 1.001)
    left = at.astype(jnp.int32)
    rise = profile[1:] - profile[:-1]
    height = profile[left] + (at - left) * rise[left]

    inside = jnp.clip((1.15 - r) / 0.3, 0.0, 1.0)
    inside = inside**2 * (3.0 - 2.0 * inside)
    pull = 0.7 * (1.0 - age / OLDEST) ** 2 * inside
    new = old + pull * (_local_plane(inside, old, y, x) - old) + depth_km * height
    return jax.lax.dynamic_update_slice(heights, new, corner)


def add_craters(heights: jax.Array, key: jax.Array, counts: jax.Array, cell_km: jax.Array) -> jax.Array:
    """Stamps `counts` [classes] craters of each class on heights [N, N] (km), big to small."""
    n = heights.shape[0]
    table = jnp.asarray(profile_table())
    for index, patch in enumerate(patch_sizes(n)):
        key, subkey = jax.random.split(key)
        craters = _draw(subkey, _capacity(n, patch), n, patch, cell_km)

        def stamp(i, h, craters=craters, patch=patch):
            return _stamp(h, craters[i], table, patch)

        heights = jax.lax.fori_loop(0, counts[index], stamp, heights)
    return heights
