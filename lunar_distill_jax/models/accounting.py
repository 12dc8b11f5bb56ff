"""What a network costs: parameters, multiply-accumulates and activation memory, part by part.

1 MAC = 2 FLOP. MACs are those of matrix products and convolutions in the program as it is traced;
norms, activations, softmax and pointwise resizing are not counted.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.encoders.depthwise import SHIFTED
from lunar_distill_jax.models.fresh import array_shapes, parameter_shapes
from lunar_distill_jax.models.liveness import inner_programs, peak_bytes
from lunar_distill_jax.models.stereo import StereoNet
from lunar_distill_jax.models.unused import unused_shapes

PARTS = ("encoder", "decoder", "dpt", "catconv", "local_features", "plane")


def part_of(path: str) -> str:
    """The part that a parameter or a scope belongs to; its names are joined by "/"."""
    words = path.split("/")
    return next((part for part in ("unused", *PARTS) if part in words), "other")


def parameter_counts(config: StereoConfig) -> dict[str, int]:
    """{part: parameters} as the paper counts them.

    "unused" are those that a file in the reference's layout holds for this network and that no
    computation reads; they are counted whether or not they are in memory (`keep_unused`).
    """
    used = dataclasses.replace(config, keep_unused=False)
    counts: Counter[str] = Counter()
    for name, shape in parameter_shapes(used).items():
        counts[part_of(name)] += math.prod(shape)
    unused = sum(math.prod(shape) for shape in unused_shapes(config)["params"].values())
    return {**counts, **({"unused": unused} if unused else {})}


@functools.lru_cache(maxsize=4)
def program(config: StereoConfig, height: int, width: int) -> Any:
    """The forward pass over one pair: a jaxpr of (variables, image1, image2), not computed."""
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    shapes = array_shapes(config).items()
    flat = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes}
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    variables = {"batch_stats": params.pop("batch_stats", {}), "params": params}

    def forward(variables, image1, image2):
        views: Any = StereoNet(config).apply(variables, image1, image2)
        return [view.replace(features={}) for view in views]

    return jax.make_jaxpr(forward)(variables, image, image).jaxpr


def mac_counts(config: StereoConfig, height: int, width: int) -> dict[str, int]:
    """{part: MACs} of one forward pass over one pair of height x width; nothing is computed."""
    counts: Counter[str] = Counter()
    _count(program(config, height, width), 1, "", counts)
    return dict(counts)


def activation_bytes(config: StereoConfig, height: int, width: int) -> dict[str, int]:
    """{part: most bytes of activations alive at once while it runs}, of one pair, in float32.

    See `liveness.peak_bytes` for what is assumed; what an earlier part left for a later one counts
    in all parts between.
    """
    jaxpr = program(config, height, width)
    images = jaxpr.invars[-2:]
    return peak_bytes(jaxpr, images, part_of)


def _count(jaxpr: Any, times: int, scope: str, counts: Counter[str]) -> None:
    """Adds `times` the MACs of a program, whose equations lie in the named `scope`."""
    for equation in jaxpr.eqns:
        inner_scope = f"{scope}/{equation.source_info.name_stack}"
        shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars)]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            macs = math.prod(shapes[2]) * math.prod(shapes[0][i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            out_channels = shapes[1][equation.params["dimension_numbers"].rhs_spec[0]]
            macs = math.prod(shapes[2]) * math.prod(shapes[1]) // out_channels
        elif equation.primitive.name == "mul" and SHIFTED in inner_scope:
            macs = math.prod(shapes[2])  # a depthwise convolution, written as products
        else:
            repeats = times * equation.params.get("length", 1)
            for inner in inner_programs(equation):
                _count(inner, repeats, inner_scope, counts)
            continue
        if "norm" not in inner_scope:  # a mean may be written as a product
            counts[part_of(inner_scope)] += times * macs
