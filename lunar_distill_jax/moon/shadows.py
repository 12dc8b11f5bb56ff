"""Cast shadows of a heightfield by doubling: log2(N) shifts instead of N."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

NOTHING = -1e3  # km; stands beyond the grid, where no ground can cast a shadow


def _shift(field: jax.Array, dy: jax.Array, dx: jax.Array) -> jax.Array:
    """field(i + dy, j + dx) for real dy, dx >= 0, bilinear; NOTHING from beyond the grid."""
    n = field.shape[0]
    padded = jnp.pad(field, (0, n + 1), constant_values=NOTHING)
    dy, dx = jnp.minimum(dy, n), jnp.minimum(dx, n)
    i, j = dy.astype(jnp.int32), dx.astype(jnp.int32)
    b, a = dy - i, dx - j

    def rows(di):
        left, right = (jax.lax.dynamic_slice(padded, (i + di, j + dj), (n, n)) for dj in (0, 1))
        return left + a * (right - left)

    low, high = rows(0), rows(1)
    return low + b * (high - low)


def horizon(heights: jax.Array, cell_km: jax.Array, sun: jax.Array) -> jax.Array:
    """Height [N, N] (km) below which each sample is in shadow; `sun` [3] is a unit vector, z up.

    With u one cell towards the sun and c tan(e) the climb of its ray per cell,
      S_1(x) = h(x + u) - c tan(e),   S_2n(x) = max(S_n(x), S_n(x + n u) - n c tan(e)).
    """
    n = heights.shape[0]
    flat = jnp.hypot(sun[0], sun[1])
    climb = cell_km * sun[2] / flat
    # Shifts run towards higher indices only: mirror the grid, and mirror the answer back.
    south, west = sun[1] < 0, sun[0] < 0
    dy, dx = jnp.abs(sun[1]) / flat, jnp.abs(sun[0]) / flat

    def mirror(field):
        field = jnp.where(south, field[::-1], field)
        return jnp.where(west, field[:, ::-1], field)

    def double(_, state):
        step, shadow = state
        further = _shift(shadow, step * dy, step * dx) - step * climb
        return 2.0 * step, jnp.maximum(shadow, further)

    # A loop, not unrolled: XLA would fuse the shifts and recompute all of them for each sample.
    steps = math.ceil(math.log2(n * math.sqrt(2.0)))
    first = _shift(mirror(heights), dy, dx) - climb
    _, shadow = jax.lax.fori_loop(0, steps, double, (jnp.float32(1.0), first))
    return mirror(shadow)


def lit_fraction(heights: jax.Array, cell_km: jax.Array, sun: jax.Array) -> jax.Array:
    """How much of the sun each sample sees, [N, N] in 0..1, with a penumbra of half a cell."""
    climb = cell_km * sun[2] / jnp.hypot(sun[0], sun[1])
    clearance = (heights - horizon(heights, cell_km, sun)) / climb
    return jnp.clip(2.0 * clearance + 0.5, 0.0, 1.0)


def lit_by_disc(
    heights: jax.Array, cell_km: jax.Array, sun: jax.Array, radius_deg: float, slices: int = 5
) -> jax.Array:
    """The same under a sun of finite size: its disc is cut into horizontal slices, each of which is
    a point sun at its own elevation, weighted by its area. The penumbra grows with distance."""
    edges = np.linspace(-1.0, 1.0, slices + 1)
    area = np.diff(np.arcsin(edges) + edges * np.sqrt(1 - edges**2)) / np.pi
    flat = jnp.hypot(sun[0], sun[1])
    elevation = jnp.arctan2(sun[2], flat)

    def lit(offset):
        high = jnp.maximum(elevation + offset, 1e-4)
        scale = jnp.cos(high) / flat
        return lit_fraction(
            heights, cell_km, jnp.stack([sun[0] * scale, sun[1] * scale, jnp.sin(high)])
        )

    middles = jnp.asarray(np.deg2rad(radius_deg) * (edges[1:] + edges[:-1]) / 2, jnp.float32)
    parts = jax.lax.map(lit, middles)  # not side by side: each holds several grids
    return jnp.tensordot(jnp.asarray(area, jnp.float32), parts, 1)
