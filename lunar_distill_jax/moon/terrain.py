"""A square heightfield that has the statistics of the lunar south pole.

Relief (fractal) + craters + fine texture -> talus (no slope above the angle of repose) -> blur of
half a cell -> the sphere of the Moon falls away. Heights are km; rows run along y, columns along x.
"""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax.moon import craters, morphology
from lunar_distill_jax.moon.options import FIRST, Ground

MOON_RADIUS_KM = 1737.4
RELIEF_BETA, RELIEF_OUTER_KM, RELIEF_LAG_KM = 5.6, 60.0, 0.5
TEXTURE_BETA, TEXTURE_OUTER_KM = 3.0, 0.4
REPOSE_DEG = 32.0


def fractal(key: jax.Array, n: int, cell_km: jax.Array, ground: Ground = FIRST.ground) -> jax.Array:
    """Relief and fine texture [N, N] in km: white noise filtered to a given power spectrum.

    Each part has the 2-D spectrum (k^2 + k0^2)^(-beta/2), k in cycles/km, and is scaled to an RMS
    slope (bidirectional, both axes) at one lag: at 500 m, and from cell to cell. They
    occupy different bands, so they may share one noise. It is periodic over 1.5 N cells, of which
    one corner is kept: opposite edges do not match. Targets: Rosenburg et al. 2011, and the spectra
    measured on StereoLunar (k^-4.7 to k^-5.1 with craters).
    """
    m = 3 * n // 2
    noise = jnp.fft.rfft2(jax.random.normal(key, (m, m)))
    ky = (jnp.asarray(np.fft.fftfreq(m), jnp.float32) / cell_km)[:, None]
    kx = (jnp.asarray(np.fft.rfftfreq(m), jnp.float32) / cell_km)[None, :]
    columns = np.full(m // 2 + 1, 2.0, np.float32)  # how often a column of rfft2 counts
    columns[[0, -1]] = 1.0
    power = jnp.abs(noise) ** 2 * columns[None, :]

    def band(beta, outer_km, slope, lag_km):
        gain = (kx**2 + ky**2 + outer_km**-2) ** (-beta / 4)
        steps = 2.0 - jnp.cos(2 * jnp.pi * kx * lag_km) - jnp.cos(2 * jnp.pi * ky * lag_km)
        rms = jnp.sqrt((power * gain**2 * steps).sum()) / m**2  # Parseval
        return gain * (slope * lag_km / rms)

    gain = band(RELIEF_BETA, RELIEF_OUTER_KM, ground.relief_slope, RELIEF_LAG_KM)
    gain += band(TEXTURE_BETA, TEXTURE_OUTER_KM, ground.texture_slope, cell_km)
    return jnp.fft.irfft2(noise * gain.at[0, 0].set(0.0), (m, m))[:n, :n]


def reflectance(key: jax.Array, n: int, cell_km: jax.Array, spread: float) -> jax.Array:
    """Albedo [N, N] relative to its mean: log-normal, in patches of kilometres."""
    noise = jnp.fft.rfft2(jax.random.normal(key, (n, n)))
    ky = (jnp.asarray(np.fft.fftfreq(n), jnp.float32) / cell_km)[:, None]
    kx = (jnp.asarray(np.fft.rfftfreq(n), jnp.float32) / cell_km)[None, :]
    field = jnp.fft.irfft2(noise * (kx**2 + ky**2 + 0.2**2) ** -1.0, (n, n))
    return jnp.exp(spread * (field - field.mean()) / jnp.maximum(field.std(), 1e-12))


def _limit_slopes(heights: jax.Array, max_step: jax.Array) -> jax.Array:
    """16 sweeps, each moving a quarter of what exceeds `max_step` between neighbours downhill."""

    def excess(step):
        return 0.25 * (step - jnp.clip(step, -max_step, max_step))

    def sweep(_, h):
        for axis in (0, 1):
            # Both neighbours by slices of one padded array: what moves is computed twice, which is
            # a third faster than padding it.
            n, widths = h.shape[axis], [(0, 0), (0, 0)]
            widths[axis] = (1, 1)
            padded = jnp.pad(h, widths, mode="edge")
            before, after = (jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i in (0, 2))
            h = h + excess(after - h) - excess(h - before)
        return h

    return jax.lax.fori_loop(0, 16, sweep, heights)


def talus(heights: jax.Array, cell_km: jax.Array) -> jax.Array:
    """Lets slopes slide to the angle of repose, on a pyramid so that tall cliffs slide too."""
    n = heights.shape[0]
    max_step = jnp.tan(jnp.deg2rad(REPOSE_DEG)) * cell_km
    for scale in (8, 4, 2):
        m = n // scale
        coarse = heights.reshape(m, scale, m, scale).mean((1, 3))
        moved = _limit_slopes(coarse, scale * max_step) - coarse
        heights = heights + jax.image.resize(moved, (n, n), "linear")
    return _limit_slopes(heights, max_step)


def blur(image: jax.Array, sigma: float) -> jax.Array:
    """Separable Gaussian blur of [..., H, W], sigma in samples; edges repeat, never wrap."""
    radius = max(1, round(4 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (-2, -1):
        size = image.shape[axis]
        widths = [(0, 0)] * image.ndim
        widths[axis] = (radius, radius)
        padded = jnp.pad(image, widths, mode="edge")
        shifted = [
            float(tap) * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
            for i, tap in enumerate(taps)
        ]
        image = functools.reduce(operator.add, shifted)
    return image


def sphere_drop(
    n: int, cell_km: jax.Array, x0_km: jax.Array, y0_km: jax.Array, *, exact: bool = False
) -> jax.Array:
    """How far (km) the sphere lies below its tangent plane at (0, 0), [N, N].

    R - sqrt(R^2 - r^2), or the paraboloid r^2 / 2R, which is 0.2 m off at 50 km and 19 m at 150.
    """
    x = (x0_km + jnp.arange(n) * cell_km)[None, :]
    y = (y0_km + jnp.arange(n) * cell_km)[:, None]
    r2 = x**2 + y**2
    if not exact:
        return r2 / (2 * MOON_RADIUS_KM)
    # As a quotient: the difference of two numbers of 1737 km would lose metres in float32.
    return r2 / (MOON_RADIUS_KM + jnp.sqrt(jnp.maximum(MOON_RADIUS_KM**2 - r2, 0.0)))


def make_heights(
    key: jax.Array,
    counts: jax.Array,
    n: int,
    cell_km: jax.Array,
    x0_km: jax.Array,
    y0_km: jax.Array,
    ground: Ground = FIRST.ground,
    giants: jax.Array | None = None,
    boulders: jax.Array | None = None,
) -> jax.Array:
    """Heights [N, N] in km above the tangent plane at (0, 0), where the ground itself is at zero.

    counts: craters of each class (`craters.draw_counts`); (x0, y0): position of sample [0, 0];
    giants, boulders: `morphology.draw_giants` and `draw_boulders`, where `ground` has them
    """
    noise_key, crater_key = jax.random.split(key)
    heights = fractal(noise_key, n, cell_km, ground)
    if giants is not None:
        giant_key = jax.random.fold_in(crater_key, 4)
        heights = craters.add_giants(heights, giant_key, giants, cell_km, ground)
    heights = craters.add_craters(heights, crater_key, counts, cell_km, ground)
    heights = blur(talus(heights, cell_km), 0.5)
    if boulders is not None:
        heights = morphology.add_boulders(heights, boulders, cell_km)
    heights -= sphere_drop(n, cell_km, x0_km, y0_km, exact=ground.sphere == "exact")
    middle = [jnp.round(-start / cell_km).astype(jnp.int32) for start in (y0_km, x0_km)]
    return heights - heights[middle[0], middle[1]]
