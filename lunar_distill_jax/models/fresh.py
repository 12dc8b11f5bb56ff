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

_CONSTANT = {"scale": 1.0, "scale1": 1.0, "scale2": 1.0, "layer_scale": 1e-6}  # the others are 0


def parameter_shapes(config: StereoConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every parameter, names joined by "/"; nothing is computed."""
    return dict(_shapes(config)["params"])


def statistics_shapes(config: StereoConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the batch norms' running moments; empty for most networks."""
    return dict(_shapes(config).get("batch_stats", {}))


def array_shapes(config: StereoConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of all that a weight file holds: statistics are the branch "batch_stats/"."""
    statistics = statistics_shapes(config).items()
    return {**parameter_shapes(config), **{f"batch_stats/{name}": s for name, s in statistics}}


@functools.lru_cache(maxsize=64)  # it traces the whole network: seconds for the teacher
def _shapes(config: StereoConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    tree: Any = jax.eval_shape(StereoNet(config).init, jax.random.key(0), image, image)
    return {
        collection: {
            name: leaf.shape
            for name, leaf in dict[str, Any](
                flax.traverse_util.flatten_dict(values, sep="/")
            ).items()
        }
        for collection, values in tree.items()
        if collection in ("params", "batch_stats")
    }


def standard_deviation(name: str, shape: tuple[int, ...]) -> float:
    """Of a kernel's normal distribution: 1 / sqrt(fan-in) (LeCun), as flax's layers have it."""
    if re.fullmatch(r".*/plane/fc2/kernel", name):
        return 1e-3  # every pair starts from the same plane
    if re.fullmatch(r".*/catconv/add/kernel", name):
        return 0.0  # a head without a ladder grows one without a jolt
    if re.fullmatch(r".*/((dpt|catconv)/head2|desc_fine)/kernel", name):
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
        deviation = None
        if name.endswith("/kernel"):
            deviation = standard_deviation(name, shape)
        elif name.endswith(("_token", "_tokens", "/pos_embed")) and "unused/" not in name:
            deviation = 0.02  # as the vision transformers' authors draw them
        if deviation is not None:
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            flat[name] = rng.standard_normal(shape, np.float32) * np.float32(deviation)
            if config.head.desc_fine and name.endswith("/local_features/fc2/kernel"):
                # All pixels of a patch begin with one descriptor: what tells tokens apart is then
                # learned once, and not anew for each of them.
                pixels = config.encoder.patch**2
                one = flat[name].reshape(shape[0], -1, pixels)[..., :1]
                flat[name] = np.ascontiguousarray(np.broadcast_to(one, (*one.shape[:2], pixels)))
                flat[name] = flat[name].reshape(shape)
        else:
            flat[name] = np.full(shape, _CONSTANT.get(name.rpartition("/")[2], 0), np.float32)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def fresh_statistics(config: StereoConfig) -> Any:
    """The running moments before any training: mean 0, variance 1."""
    flat = {
        name: np.full(shape, name.endswith("/var"), np.float32)
        for name, shape in statistics_shapes(config).items()
    }
    return flax.traverse_util.unflatten_dict(flat, sep="/")
