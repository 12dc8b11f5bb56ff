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

from lunar_distill_jax.moon import morphology
from lunar_distill_jax.moon.options import FIRST, Ground

YOUNGEST, OLDEST = 0.018, 0.6  # ages K; the oldest crater counts as erased
AGES = np.geomspace(YOUNGEST, OLDEST, 16)
REACH = 3.0  # a crater ends at this many radii
STEPS_PER_RADIUS = 32
DEGREE = 16
YOUNG_GIANTS = 0.1  # debris, not diffusion, wears down a crater of many kilometres
SECONDARY_DEPTH = 0.6  # of a primary's: secondaries hit slowly


def fresh_profile(x: np.ndarray) -> np.ndarray:
    """Height of a fresh simple crater in diameters (Fassett & Thomson 2014, eq. 4)."""
    bowl = -0.2288 + 0.2275 * x + 0.0831 * x**2 - 0.0395 * x**3
    rim = 0.1883 - 0.1871 * x + 0.0184 * x**2 + 0.0151 * x**3
    return np.select([x <= 0.2, x <= 1.0, x <= 1.5], [-0.181 + 0.0 * x, bowl, rim], 0.0)


def degraded_profiles(ages: np.ndarray) -> np.ndarray:
    """Profiles [age, radius] in diameters: the fresh crater diffused for K = kappa t / R^2.

    Diffusion for a time t is a Gaussian blur of variance 2 kappa t, done in 2-D with an FFT on a
    square that is wide enough for the blur not to wrap round. The last half radius fades to zero.
    Radii are 0, 1/32, ... 3.
    """
    half = round(STEPS_PER_RADIUS * (REACH + 4.0 * math.sqrt(2.0 * OLDEST)))
    axis = np.arange(-half, half) / STEPS_PER_RADIUS
    fresh = np.fft.rfft2(fresh_profile(np.hypot(axis[:, None], axis[None, :])))
    ky = np.fft.fftfreq(2 * half, 1 / STEPS_PER_RADIUS)[:, None]
    kx = np.fft.rfftfreq(2 * half, 1 / STEPS_PER_RADIUS)[None, :]
    decay = -4.0 * np.pi**2 * (kx**2 + ky**2)  # d ln(amplitude) / dK
    count = round(STEPS_PER_RADIUS * REACH) + 1
    rows = [np.fft.irfft2(fresh * np.exp(decay * K))[half, half : half + count] for K in ages]
    x = np.arange(count) / STEPS_PER_RADIUS
    fade = np.clip((REACH - x) / 0.5, 0.0, 1.0)
    return np.stack(rows) * fade**2 * (3.0 - 2.0 * fade)


@functools.cache
def profile_series() -> np.ndarray:
    """Chebyshev coefficients [age, DEGREE + 1] of the profiles of `AGES` in 2 (x / REACH)^2 - 1.

    A polynomial is evaluated in vector registers, where a look-up table is one gather per cell.
    """
    x = np.arange(round(STEPS_PER_RADIUS * REACH) + 1) / STEPS_PER_RADIUS
    at = 2.0 * (x / REACH) ** 2 - 1.0
    fit = np.polynomial.chebyshev.chebfit(at, degraded_profiles(AGES).T, DEGREE)
    return fit.T.astype(np.float32)


def crater_height(x_squared: jax.Array, age: jax.Array, series: jax.Array) -> jax.Array:
    """Height in diameters at squared distance (r/R)^2 from the centre of a crater of age K."""
    level = jnp.log(age / YOUNGEST) / math.log(OLDEST / YOUNGEST) * (series.shape[0] - 1)
    low = jnp.clip(level.astype(jnp.int32), 0, series.shape[0] - 2)
    series = series[low] + (level - low) * (series[low + 1] - series[low])
    at = jnp.minimum(x_squared * (2.0 / REACH**2) - 1.0, 1.0)
    later, latest = jnp.zeros_like(at), jnp.zeros_like(at)
    for k in range(DEGREE, 0, -1):  # Clenshaw's recurrence
        later, latest = 2.0 * at * later - latest + series[k], later
    return jnp.where(x_squared < REACH**2, at * later - latest + series[0], 0.0)


def patch_sizes(n: int) -> list[int]:
    """Patches of the size classes, largest first: class P holds diameters in (P/6, P/3]."""
    return [2**e for e in range(int(math.log2(min(n, 1024))), 3, -1)]


def expected_count(n: int, patch: int, factor: float) -> float:
    """Craters of class `patch` whose centre lies within patch/4 of an n x n grid.

    Trask's (1966) equilibrium N(>D) = 10^-1.1 D^-2 is free of scale, so it holds in cells too.
    """
    per_cell = 10**-1.1 * ((6 / patch) ** 2 - (3 / patch) ** 2)
    return factor * per_cell * (n + patch / 2) ** 2


def _aged_count(n: int, patch: int, cell_km: float, age_ga: float) -> float:
    """The same for a surface of some age that has not reached equilibrium."""
    small, large = (morphology.production(patch / parts * cell_km, age_ga) for parts in (6, 3))
    return (small - large) * ((n + patch / 2) * cell_km) ** 2


def size_factor(diameter_km: float) -> float:
    """Departure from Trask's slope: fewer small craters, as the spectra of StereoLunar ask for."""
    return float(np.clip(diameter_km**0.75, 0.15, 2.0))


def draw_counts(
    rng: np.random.Generator, n: int, cell_km: float, ground: Ground = FIRST.ground
) -> np.ndarray:
    """Poisson number of craters of each class, int32 [classes]."""
    means = []
    for p in patch_sizes(n):
        factor = ground.density * size_factor(p / math.sqrt(18.0) * cell_km)
        means.append(expected_count(n, p, factor))
        if ground.age_ga is not None:
            means[-1] = min(means[-1], _aged_count(n, p, cell_km, ground.age_ga))
    return np.minimum(rng.poisson(means), [_capacity(n, p, ground) for p in patch_sizes(n)]).astype(
        np.int32
    )


def _capacity(n: int, patch: int, ground: Ground) -> int:
    most = expected_count(n, patch, 2.0 * ground.density)
    return math.ceil(most + 6.0 * math.sqrt(most) + 4.0)


def depth_factor(diameter_km: jax.Array) -> jax.Array:
    """Depth over the fresh profile's: shallower when small (Stopar et al. 2017) or complex."""
    small = jnp.clip((diameter_km / 0.4) ** 0.25, 0.5, 1.0)
    return small * jnp.maximum(diameter_km / 10.0, 1.0) ** -0.7


def _draw(key: jax.Array, n: int, cell_km: jax.Array, ground: Ground) -> list[jax.Array]:
    """Craters of each class [capacity, 5 or 11]: centre row and column, diameter (all in cells),
    age K, depth scale (km), and what `_shapes` adds."""
    sizes = patch_sizes(n)
    capacities = [_capacity(n, patch, ground) for patch in sizes]
    patch = jnp.asarray(np.repeat(np.asarray(sizes, np.float32), capacities))
    uniform = jax.random.uniform(key, (4, sum(capacities)))
    row, column = (uniform[i] * (n + patch / 2) - patch / 4 for i in (0, 1))
    # N(>D) ~ D^-2 on (P/6, P/3]: D^-2 is uniform.
    diameter = patch * (9.0 + 27.0 * uniform[2]) ** -0.5
    age = YOUNGEST + (OLDEST - YOUNGEST) * uniform[3]
    spread = jnp.exp(0.15 * jax.random.normal(jax.random.fold_in(key, 1), patch.shape))
    depth_km = diameter * cell_km * depth_factor(diameter * cell_km) * spread
    if ground.secondaries:
        small = diameter * cell_km < 1.0
        row, column, moved = morphology.cluster(
            jax.random.fold_in(key, 2), row, column, n, small, ground.secondaries
        )
        depth_km *= jnp.where(moved, SECONDARY_DEPTH, 1.0)
    all_craters = jnp.stack([row, column, diameter, age, depth_km], 1)
    if has_shapes(ground):
        shapes = _shapes(jax.random.fold_in(key, 3), diameter * cell_km, ground)
        all_craters = jnp.concatenate([all_craters, shapes], 1)
    return jnp.split(all_craters, np.cumsum(capacities)[:-1])


def has_shapes(ground: Ground) -> bool:
    """Whether craters are more than round bowls."""
    return bool(ground.irregular or ground.filled or ground.complex_shapes or ground.giants)


def _shapes(key: jax.Array, diameter_km: jax.Array, ground: Ground) -> jax.Array:
    """[N, 6]: four harmonics of the rim, level of the floor (share of the depth), peak (km)."""
    keys = jax.random.split(key)
    normal = jnp.clip(jax.random.normal(keys[0], (len(diameter_km), 4)), -2.0, 2.0)
    floor = morphology.floor_level(keys[1], diameter_km, ground.filled)
    peak = jnp.zeros_like(floor)
    if ground.complex_shapes:
        flat = diameter_km > morphology.COMPLEX_KM
        floor, peak = jnp.where(flat, 0.65, floor), morphology.peak_km(diameter_km)
    return jnp.concatenate([ground.irregular * normal, floor[:, None], peak[:, None]], 1)


def _local_plane(weight: jax.Array, heights: jax.Array, y: jax.Array, x: jax.Array):
    """Weighted least squares: height at the origin and slopes along y [P, 1] and x [1, P].

    weight, heights: [P, P]. The small ridge keeps craters with little ground on the grid level.
    """
    total = jnp.maximum(weight.sum(), 1e-6)
    my, mx, mh = ((weight * a).sum() / total for a in (y, x, heights))
    wy, wx = weight * (y - my), weight * (x - mx)
    syy, sxx, sxy = (wy * (y - my)).sum(), (wx * (x - mx)).sum(), (wx * (y - my)).sum()
    syh, sxh = (wy * (heights - mh)).sum(), (wx * (heights - mh)).sum()
    det = syy * sxx - sxy**2 + 1e-3 * total**2
    slope_y = (syh * sxx - sxh * sxy) / det
    slope_x = (sxh * syy - syh * sxy) / det
    return mh - slope_y * my - slope_x * mx, slope_y, slope_x


def _rim_weight(x_squared: jax.Array) -> jax.Array:
    """1 inside the rim, 0 outside, smooth between 0.85 and 1.15 radii."""
    w = jnp.clip((1.15**2 - x_squared) / (1.15**2 - 0.85**2), 0.0, 1.0)
    return w**2 * (3.0 - 2.0 * w)


def _stamp(
    heights: jax.Array, crater: jax.Array, series: jax.Array, patch: int, shaped: bool
) -> jax.Array:
    """Excavates one crater: old relief is pulled to its local plane inside the rim, the profile is
    added. The patch is pushed inside the grid; it still covers all the crater's share of it."""
    n = heights.shape[0]
    row, column, diameter, age, depth_km = crater[:5]
    corner = jnp.clip(jnp.floor(crater[:2]).astype(jnp.int32) - patch // 2, 0, n - patch)
    old = jax.lax.dynamic_slice(heights, corner, (patch, patch))
    steps = jnp.arange(patch)
    y = ((steps + corner[0] - row) / (0.5 * diameter))[:, None]
    x = ((steps + corner[1] - column) / (0.5 * diameter))[None, :]
    x_squared = morphology.ragged(y, x, crater[5:9]) if shaped else y**2 + x**2  # [P, P]

    # A few hundred samples fix the plane of a large patch as well as all of them.
    some = slice(None, None, max(1, patch // 32))
    weight = _rim_weight(x_squared[some, some])
    centre, slope_y, slope_x = _local_plane(weight, old[some, some], y[some], x[:, some])
    plane = centre + slope_y * y + slope_x * x
    pull = 0.7 * (1.0 - age / OLDEST) ** 2 * _rim_weight(x_squared)
    profile = depth_km * crater_height(x_squared, age, series)
    if shaped:
        deepest = depth_km * crater_height(jnp.zeros(()), age, series)
        # The peak grows with the crater's depth: an old one has little of both.
        peak = jnp.exp(-x_squared / (2 * 0.12**2)) * crater[10] * deepest / (-0.181 * depth_km)
        profile = morphology.fill(profile, crater[9] * deepest, -0.25 * deepest) + peak
    new = old + pull * (plane - old) + profile
    return jax.lax.dynamic_update_slice(heights, new, corner)


def add_giants(
    heights: jax.Array, key: jax.Array, giants: jax.Array, cell_km: jax.Array, ground: Ground
) -> jax.Array:
    """Stamps craters larger than any class, `giants` [G, 3] (`morphology.draw_giants`), on the
    whole grid."""
    series = jnp.asarray(profile_series())
    row, column, diameter = giants.T
    age = YOUNGEST + (YOUNG_GIANTS - YOUNGEST) * jax.random.uniform(key, row.shape)
    depth_km = diameter * cell_km * depth_factor(diameter * cell_km)
    craters = jnp.stack([row, column, diameter, age, depth_km], 1)
    shapes = _shapes(jax.random.fold_in(key, 1), diameter * cell_km, ground)
    craters = jnp.concatenate([craters, shapes], 1)

    def stamp(i, h):
        return _stamp(h, craters[i], series, h.shape[0], True)

    return jax.lax.fori_loop(0, (diameter > 0).sum(), stamp, heights)


def add_craters(
    heights: jax.Array,
    key: jax.Array,
    counts: jax.Array,
    cell_km: jax.Array,
    ground: Ground = FIRST.ground,
):
    """Stamps `counts` [classes] craters of each class on heights [N, N] (km), big to small."""
    n = heights.shape[0]
    series = jnp.asarray(profile_series())
    shaped = has_shapes(ground)
    for index, (patch, drawn) in enumerate(
        zip(patch_sizes(n), _draw(key, n, cell_km, ground), strict=True)
    ):

        def stamp(i, h, drawn=drawn, patch=patch):
            return _stamp(h, drawn[i], series, patch, shaped)

        heights = jax.lax.fori_loop(0, counts[index], stamp, heights)
    return heights
