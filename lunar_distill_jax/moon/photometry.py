"""How bright the regolith looks, and how the sensor records it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax.moon import terrain

PHASE_SLOPE = 0.69  # fitted to StereoLunar: mean R^2 0.985 over 54 images, one gain an image
PSF_SIGMA_PX = 0.6


def sun_direction(azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """Unit vector to the sun in an east-north-up frame; azimuth runs clockwise from north."""
    azimuth, elevation = np.deg2rad([azimuth_deg, elevation_deg])
    flat = np.cos(elevation)
    return np.array([flat * np.sin(azimuth), flat * np.cos(azimuth), np.sin(elevation)])


def lommel_seeliger(mu0: jax.Array, mu: jax.Array, phase: jax.Array) -> jax.Array:
    """I = 2 mu0 / (mu0 + mu) exp(-0.69 g); mu0 = n.s, mu = n.v, g the phase angle in radians."""
    mu0, mu = jnp.maximum(mu0, 0.0), jnp.maximum(mu, 0.0)
    return 2.0 * mu0 / jnp.maximum(mu0 + mu, 1e-6) * jnp.exp(-PHASE_SLOPE * phase)


def shade(normals: jax.Array, to_camera: jax.Array, sun: jax.Array) -> jax.Array:
    """Radiance [...] up to gain from unit normals and view directions [..., 3] and the sun [3]."""
    phase = jnp.arccos(jnp.clip(to_camera @ sun, -1.0, 1.0))
    return lommel_seeliger(normals @ sun, (normals * to_camera).sum(-1), phase)


def expose(radiance: jax.Array) -> jax.Array:
    """Grey images uint8 [..., H, W]: PSF of 0.6 px, then each stretched from minimum to maximum.

    As in StereoLunar grey levels are truncated, and each image has an exposure of its own.
    """
    seen = terrain.blur(radiance, PSF_SIGMA_PX)
    low, high = (extreme(seen, axis=(-2, -1), keepdims=True) for extreme in (jnp.min, jnp.max))
    stretched = 255.0 * (seen - low) / jnp.maximum(high - low, 1e-12)
    return (stretched + 1e-3).astype(jnp.uint8)  # 254.9999 is rounding, not a darker pixel
