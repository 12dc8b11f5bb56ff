"""First hit of camera rays on a heightfield, by Lipschitz steps and a Newton finish.

Rays are P(t) = C + t r with r = R [x, y, 1], so t is the z-depth. Lengths are km; the frame of the
grid has z up.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

MARCH_STEPS, NEWTON_STEPS = 96, 4
# The march stops this close to the ground (in pixels) and leaves the rest to Newton.
MARCH_TOLERANCE, RESIDUAL_TOLERANCE = 0.02, 0.005


@flax.struct.dataclass
class Surface:
    """Bilinear heightfield: heights [N, N] (row y, column x), sample [0, 0] at (x0, y0); km."""

    heights: jax.Array
    x0: jax.Array
    y0: jax.Array
    cell: jax.Array


def _corners(surface: Surface, x: jax.Array, y: jax.Array):
    """Flat index of the lower-left sample of each point's cell, and the position in the cell."""
    n = surface.heights.shape[0]
    u = jnp.clip((x - surface.x0) / surface.cell, 0.0, n - 1.0)
    v = jnp.clip((y - surface.y0) / surface.cell, 0.0, n - 1.0)
    j = jnp.minimum(u.astype(jnp.int32), n - 2)
    i = jnp.minimum(v.astype(jnp.int32), n - 2)
    return i * n + j, u - j, v - i


def sample(surface: Surface, x: jax.Array, y: jax.Array):
    """Height and its gradient (dh/dx, dh/dy) of the bilinear surface at points [P]."""
    n = surface.heights.shape[0]
    at, a, b = _corners(surface, x, y)
    flat = surface.heights.reshape(-1)
    h00, h01, h10, h11 = flat[at], flat[at + 1], flat[at + n], flat[at + n + 1]
    low, high = h00 + a * (h01 - h00), h10 + a * (h11 - h10)
    gx = ((1 - b) * (h01 - h00) + b * (h11 - h10)) / surface.cell
    return low + b * (high - low), gx, (high - low) / surface.cell


def interpolate(field: jax.Array, surface: Surface, x: jax.Array, y: jax.Array) -> jax.Array:
    """A second field [N, N] on the grid of `surface`, bilinearly at points [P]."""
    return sample(dataclasses.replace(surface, heights=field), x, y)[0]


def inside(surface: Surface, x: jax.Array, y: jax.Array) -> jax.Array:
    """Whether points [P] lie over the grid."""
    side = (surface.heights.shape[0] - 1) * surface.cell
    dx, dy = x - surface.x0, y - surface.y0
    return (dx >= 0) & (dx <= side) & (dy >= 0) & (dy <= side)


def steepest(surface: Surface) -> jax.Array:
    """Lipschitz constant: the largest gradient norm anywhere on the bilinear surface."""
    dx = jnp.abs(jnp.diff(surface.heights, axis=1))
    dy = jnp.abs(jnp.diff(surface.heights, axis=0))
    worst = jnp.maximum(dx[1:], dx[:-1]) ** 2 + jnp.maximum(dy[:, 1:], dy[:, :-1]) ** 2
    return jnp.sqrt(worst.max()) / surface.cell


def trace(
    surface: Surface, centre: jax.Array, rays: jax.Array, focal: jax.Array, *, block: int = 8192
):
    """z-depth (km) of the first hit of each ray, and whether it is trusted; both [P].

    centre, rays: [P, 3] in the grid frame, km; rays of unit z in their camera. focal: in pixels.
    block: rays that march together; a block ends when its last ray has arrived. Small ones keep a
           few grazing rays from holding up all others (and stay in a CPU's cache); P runs all of
           them side by side.

    The gap g = P_z - h(P_xy) shrinks at most at the rate -r_z + L |r_xy|, so steps of g over that
    rate never pass the surface (sphere tracing, Hart 1996); the march runs until every ray is
    within 0.02 pixels of the ground. Not trusted: rays that leave the grid, do not descend, or are
    still further than that from the ground after 96 steps (they graze a ridge).
    """
    steep, top = 1.001 * steepest(surface), surface.heights.max()
    if len(rays) <= block:
        return _march(surface, steep, top, centre, rays, focal)
    short = -len(rays) % block
    blocks = [
        jnp.pad(a, ((0, short), (0, 0)), mode="edge").reshape(-1, block, 3) for a in (centre, rays)
    ]
    t, trusted = jax.lax.map(
        lambda b: _march(surface, steep, top, b[0], b[1], focal), tuple(blocks)
    )
    return t.reshape(-1)[: len(rays)], trusted.reshape(-1)[: len(rays)]


def _march(surface: Surface, steep, top, centre: jax.Array, rays: jax.Array, focal: jax.Array):
    """`trace` of one block; steep: Lipschitz constant, top: greatest height."""
    (cx, cy, cz), (rx, ry, rz) = centre.T, rays.T
    bound = jnp.maximum(steep * jnp.hypot(rx, ry) - rz, 1e-3)
    pixel = 1.0 / focal  # of a pixel, at unit depth
    descends = rz < -1e-3

    def gap(t):
        return cz + t * rz - sample(surface, cx + t * rx, cy + t * ry)[0]

    def unfinished(state):
        step, t, g = state
        return (step < MARCH_STEPS) & jnp.any(descends & (g > MARCH_TOLERANCE * pixel * t))

    def march(state):
        step, t, g = state
        t = t + g / bound
        return step + 1, t, gap(t)

    start = jnp.where(descends, (top - cz) / jnp.where(descends, rz, -1.0), 0.0)
    start = jnp.maximum(start, 0.0)
    _, t, g = jax.lax.while_loop(unfinished, march, (0, start, gap(start)))
    arrived = jnp.abs(g) <= MARCH_TOLERANCE * pixel * t

    def newton(_, t):
        height, gx, gy = sample(surface, cx + t * rx, cy + t * ry)
        g = cz + t * rz - height
        slope = rz - gx * rx - gy * ry
        return t - jnp.where(arrived & (slope < -1e-3), g / jnp.minimum(slope, -1e-3), 0.0)

    # A loop, not unrolled: XLA would fuse the steps and compute the early ones again in the late.
    t = jax.lax.fori_loop(0, NEWTON_STEPS, newton, t)
    arrived &= jnp.abs(gap(t)) <= RESIDUAL_TOLERANCE * pixel * t
    return t, arrived & descends & inside(surface, cx + t * rx, cy + t * ry)
