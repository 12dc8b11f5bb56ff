"""How bright the regolith looks, and how the sensor records it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax.moon import terrain
from lunar_distill_jax.moon.options import FIRST, Sensor

PHASE_SLOPE = 0.69  # fitted to StereoLunar: mean R^2 0.985 over 54 images, one gain an image


def sun_direction(azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """Unit vector to the sun in an east-north-up frame; azimuth runs clockwise from north."""
    azimuth, elevation = np.deg2rad([azimuth_deg, elevation_deg])
    flat = np.cos(elevation)
    return np.array([flat * np.sin(azimuth), flat * np.cos(azimuth), np.sin(elevation)])


def lommel_seeliger(mu0: jax.Array, mu: jax.Array, phase: jax.Array) -> jax.Array:
    """I = 2 mu0 / (mu0 + mu) exp(-0.69 g); mu0 = n.s, mu = n.v, g the phase angle in radians."""
    mu0, mu = jnp.maximum(mu0, 0.0), jnp.maximum(mu, 0.0)
    return 2.0 * mu0 / jnp.maximum(mu0 + mu, 1e-6) * jnp.exp(-PHASE_SLOPE * phase)


def hapke(mu0: jax.Array, mu: jax.Array, phase: jax.Array) -> jax.Array:
    """Hapke's (1981) isotropic multiple scattering with an opposition surge.

    mu0 / (mu0 + mu) [(1 + B) P + H(mu0) H(mu) - 1] with P Henyey-Greenstein's function; w = 0.162,
    b = -0.247, B0 = 0.12, h = 0.126 were fitted to StereoLunar (mean R^2 0.989 over 54 images).
    Without macroscopic roughness. Scaled like `lommel_seeliger`: about 1 at small phase.
    """
    w, b, b0, width = 0.162, -0.247, 0.12, 0.126
    mu0, mu = jnp.maximum(mu0, 0.0), jnp.maximum(mu, 0.0)
    surge = b0 / (1 + jnp.tan(phase / 2) / width)
    scatter = (1 - b**2) / (1 + 2 * b * jnp.cos(phase) + b**2) ** 1.5

    def many(x):
        return (1 + 2 * x) / (1 + 2 * x * math.sqrt(1 - w))

    brightness = (1 + surge) * scatter + many(mu0) * many(mu) - 1
    return mu0 / jnp.maximum(mu0 + mu, 1e-6) * brightness


def mcewen(mu0: jax.Array, mu: jax.Array, phase: jax.Array) -> jax.Array:
    """McEwen's (1991, 1996) lunar-Lambert law, times exp(-0.48 g).

    L 2 mu0 / (mu0 + mu) + (1 - L) mu0, L a cubic in the phase angle in degrees.
    """
    mu0, mu = jnp.maximum(mu0, 0.0), jnp.maximum(mu, 0.0)
    g = jnp.rad2deg(phase)
    share = jnp.maximum(1 - 0.019 * g + 2.42e-4 * g**2 - 1.46e-6 * g**3, 0.0)
    lommel = 2 * mu0 / jnp.maximum(mu0 + mu, 1e-6)
    return (share * lommel + (1 - share) * mu0) * jnp.exp(-0.48 * phase)


def lambert(mu0: jax.Array, mu: jax.Array, phase: jax.Array) -> jax.Array:
    """mu0 where the surface faces the camera; not what the Moon looks like."""
    del phase
    return jnp.where(mu > 0, jnp.maximum(mu0, 0.0), 0.0)


LAWS = {
    "lommel-seeliger": lommel_seeliger,
    "hapke": hapke,
    "mcewen": mcewen,
    "lambert": lambert,
}


def shade(
    normals: jax.Array, to_camera: jax.Array, sun: jax.Array, law: str = "lommel-seeliger"
) -> jax.Array:
    """Radiance [...] up to gain from unit normals and view directions [..., 3] and the sun [3]."""
    phase = jnp.arccos(jnp.clip(to_camera @ sun, -1.0, 1.0))
    return LAWS[law](normals @ sun, (normals * to_camera).sum(-1), phase)


def expose(radiance: jax.Array, sensor: Sensor = FIRST.sensor, key: jax.Array | None = None):
    """Grey images uint8 [..., H, W]: PSF, exposure, noise of the electrons counted, 8 bits.

    As in StereoLunar grey levels are truncated, and each image has an exposure of its own.
    key: of the noise, where the sensor has any
    """
    seen = terrain.blur(radiance, sensor.psf_px)
    if sensor.exposure == "stretch":
        ends = (extreme(seen, axis=(-2, -1), keepdims=True) for extreme in (jnp.min, jnp.max))
        low, high = ends
    else:
        low, high = 0.0, jnp.percentile(seen, 99.5, axis=(-2, -1), keepdims=True)
    stretched = 255.0 * (seen - low) / jnp.maximum(high - low, 1e-12)
    if sensor.full_well or sensor.read_noise:
        assert key is not None
        electrons = max(sensor.full_well, 1.0) / 255.0  # a grey level
        shot = jnp.maximum(stretched, 0.0) / electrons if sensor.full_well else 0.0
        noise = jnp.sqrt(shot + (sensor.read_noise / electrons) ** 2)
        stretched += noise * jax.random.normal(key, stretched.shape)
    # 254.9999 is rounding, not a darker pixel.
    return jnp.clip(stretched + 1e-3, 0.0, 255.0).astype(jnp.uint8)
