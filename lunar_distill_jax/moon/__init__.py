"""A synthetic Moon: terrain, cameras, suns and exact ground truth, from a seed."""

from lunar_distill_jax.moon.scene import (
    SUNS,
    Scene,
    light,
    make_lightings,
    make_pair,
    make_scene,
    trace_rays,
)

__all__ = ["SUNS", "Scene", "light", "make_lightings", "make_pair", "make_scene", "trace_rays"]
