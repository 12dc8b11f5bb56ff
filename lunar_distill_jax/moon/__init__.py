"""A synthetic Moon: terrain, cameras, suns and exact ground truth, from a seed."""

from lunar_distill_jax.moon.options import FIRST, PHYSICAL, PRESETS, STEREOLUNAR, Moon, preset
from lunar_distill_jax.moon.pairs import light_scenes, make_lightings, make_pair
from lunar_distill_jax.moon.scene import Scene, light, make_scene, share_ground, trace_rays
from lunar_distill_jax.moon.suns import SUNS, resolve_sun

__all__ = [
    "FIRST",
    "PHYSICAL",
    "PRESETS",
    "STEREOLUNAR",
    "SUNS",
    "Moon",
    "Scene",
    "light",
    "light_scenes",
    "make_lightings",
    "make_pair",
    "make_scene",
    "preset",
    "resolve_sun",
    "share_ground",
    "trace_rays",
]
