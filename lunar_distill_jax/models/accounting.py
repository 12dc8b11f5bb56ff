"""What a network costs: parameters, and multiply-accumulates of a pair, part by part.

1 MAC = 2 FLOP. MACs are those of matrix products and convolutions in the program as it is traced;
norms, activations, softmax and resizing are not counted.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.fresh import parameter_shapes
from lunar_distill_jax.models.stereo import StereoNet

PARTS = ("encoder", "decoder", "dpt", "local_features")
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where an equation keeps the program it runs


def part_of(path: str) -> str:
    """The part that a parameter or a scope belongs to; its names are joined by "/"."""
    words = path.split("/")
    for part in ("unused", "encoder", "decoder", "local_features", "plane", "dpt"):
        if part in words:
            return part
    return "other"


def parameter_counts(config: StereoConfig) -> dict[str, int]:
    """{part: parameters}; "unused" are those of a released file that no computation reads."""
    counts: Counter[str] = Counter()
    for name, shape in parameter_shapes(config).items():
        counts[part_of(name)] += math.prod(shape)
    return dict(counts)


def mac_counts(config: StereoConfig, height: int, width: int) -> dict[str, int]:
    """{part: MACs} of one forward pass over one pair of height x width; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    shapes = parameter_shapes(config).items()
    flat = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes}
    params = {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}
    counts: Counter[str] = Counter()
    _count(jax.make_jaxpr(StereoNet(config).apply)(params, image, image).jaxpr, 1, "", counts)
    return dict(counts)


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
        else:
            repeats = times * equation.params.get("length", 1)
            for inner in _programs(equation.params):
                _count(inner, repeats, inner_scope, counts)
            continue
        if "norm" not in inner_scope:  # a mean may be written as a product
            counts[part_of(inner_scope)] += times * macs


def _programs(params: dict[str, Any]):
    """Yields the programs in an equation's parameters; of a condition's branches, the first."""
    for value in (*(params.get(key) for key in _INNER), *params.get("branches", ())[:1]):
        if value is not None:
            yield getattr(value, "jaxpr", value)
