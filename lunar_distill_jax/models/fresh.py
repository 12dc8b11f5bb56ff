"""Fresh parameters, drawn with numpy.

flax's own `init` compiles one random-number program for each shape: a minute on a CPU for a small
network. Here each tensor has its own stream, seeded by its name, so values depend on nothing but
(name, shape, seed).
"""

from __future__ import annotations

import functools
import re
import zlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.stereo import StereoNet


def parameter_shapes(config: StereoConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every parameter, names joined by "/"; nothing is computed."""
    return dict(_shapes(config))


@functools.lru_cache(maxsize=64)  # it traces the whole network: seconds for the teacher
def _shapes(config: StereoConfig) -> dict[str, tuple[int, ...]]:
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    tree = jax.eval_shape(StereoNet(config).init, jax.random.key(0), image, image)["params"]
    return {k: v.shape for k, v in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def standard_deviation(name: str, shape: tuple[int, ...]) -> float:
    """Of a kernel's normal distribution: 1 / sqrt(fan-in) (LeCun), as flax's layers have it."""
    if re.fullmatch(r".*/plane/fc2/kernel", name):
        return 1e-3  # every pair starts from the same plane
    if re.fullmatch(r".*/dpt/head2/kernel", name):
        return (
            0.02 * shape[2] ** -0.5
        )  # no norm precedes it: at full size the first points are noise
    if re.fullmatch(r".*/resize[01]/kernel", name):
        return shape[2] ** -0.5  # stride = kernel: each output pixel sees one input pixel
    return float(np.prod(shape[:-1])) ** -0.5


def fresh_params(config: StereoConfig, seed: int) -> Any:
    """A nested dict of float32 numpy arrays for `StereoNet(config)`."""
    flat = {}
    for name, shape in parameter_shapes(config).items():
        if name.endswith("/kernel"):
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            flat[name] = rng.standard_normal(shape, np.float32) * np.float32(
                standard_deviation(name, shape)
            )
        else:
            flat[name] = np.full(shape, name.endswith("/scale"), np.float32)
    return flax.traverse_util.unflatten_dict(flat, sep="/")
