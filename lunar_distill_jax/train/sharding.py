"""Where arrays live: a mesh of devices and one table from parameter names to its axes.

Axes: "trial" (different trials of a student), "data" (different samples), "model" (parts of the
matrices). Models know nothing of meshes: this file is the whole story.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lunar_distill_jax.errors import InputError

AXES = ("trial", "data", "model")
# The first match wins, of a whole name. Matrices come in pairs: the first splits its outputs, the
# second its inputs, so that one sum over "model" ends the pair.
RULES = (
    (r".*/(qkv|q|k|v|fc1)/kernel", P(None, "model")),
    (r".*/(qkv|q|k|v|fc1)/bias", P("model")),
    (r".*/(attn|cross_attn)/proj/kernel", P("model", None)),
    (r".*/fc2/kernel", P("model", None)),
    (r".*/unit\d/conv1/kernel", P(None, None, None, "model")),
    (r".*/unit\d/conv1/bias", P("model")),
    (r".*/unit\d/conv2/kernel", P(None, None, "model", None)),
    (r".*", P()),
)


def make_mesh(trial: int = 1, data: int = -1, model: int = 1, devices=None) -> Mesh:
    """A mesh over the devices; -1 for `data` takes those that the other axes leave.

    Raises:
      InputError: the axes need more devices than there are, or do not divide them.
    """
    devices = list(jax.devices() if devices is None else devices)
    for name, size in (("trial", trial), ("model", model), ("data", data)):
        if size < 1 and not (name == "data" and size == -1):
            raise InputError(f"mesh.{name} is {size}: give 1 or more.")
    if data == -1:
        data = len(devices) // (trial * model)
    sizes = (trial, data, model)
    needed = math.prod(sizes)
    if not needed or needed > len(devices):
        raise InputError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} needs {max(needed, trial * model)} "
            f"devices but there are {len(devices)}: make the axes smaller."
        )
    # Axis types are spelled out: in JAX 0.10 the default is Explicit, which is not what we want.
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:needed])


def spec_of(name: str, shape: tuple[int, ...], mesh: Mesh, rules=RULES) -> P:
    """The table's spec for a parameter, checked.

    Raises:
      InputError: a dimension is not a multiple of the axis that splits it.
    """
    spec = next(spec for pattern, spec in rules if re.fullmatch(pattern, name))
    for size, axis in zip(shape, spec, strict=False):  # a spec may be shorter than the shape
        if axis is not None and size % mesh.shape[axis]:
            raise InputError(
                f"Cannot shard {name} {shape} as {spec}: {size} is not a multiple of mesh.{axis} "
                f"({mesh.shape[axis]}); lower that, or give this parameter its own line in "
                "train/sharding.py:RULES."
            )
    return spec


def params_sharding(params: Any, mesh: Mesh) -> Any:
    """A tree of shardings like `params` (nested dicts of arrays or shapes), not stacked."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_of(_name(path), leaf.shape, mesh)), params
    )


def state_sharding(state: Any, mesh: Mesh) -> Any:
    """A tree of shardings like a `TrainState`: students' leaves are stacks of trials [T, ...].

    The optimizer's moments of matrices follow their parameters, as their paths end in the same
    names. Those of vectors are one vector (`optim.make_optimizer`), which every device of a trial
    holds whole, also where the vectors themselves are split over "model".

    Raises:
      InputError: the trials of a student do not divide among the mesh's.
    """

    def place(path, leaf):
        if leaf.ndim == 0:  # the step
            return NamedSharding(mesh, P())
        if leaf.shape[0] % mesh.shape["trial"]:
            raise InputError(
                f"{_name(path[1:2])} has {leaf.shape[0]} trials, which mesh.trial "
                f"({mesh.shape['trial']}) does not divide: change one of them."
            )
        spec = spec_of(_name(path), leaf.shape[1:], mesh) if leaf.ndim > 1 else P()
        return NamedSharding(mesh, P("trial", *spec))

    return jax.tree_util.tree_map_with_path(place, state)


def batch_spec(mesh: Mesh, rows: int, *, every_device: bool) -> P:
    """How the samples of a batch are split; `every_device`: over "trial" too, where that divides.

    The teacher has no trials: its share of the batch is a part of that of one data column.
    """
    both = mesh.shape["data"] * mesh.shape["trial"]
    return P(("data", "trial")) if every_device and rows % both == 0 else P("data")


def check_batch(rows: int, mesh: Mesh, accumulate: int) -> None:
    """Raises InputError unless the batch divides among micro-batches and the "data" axis."""
    parts = mesh.shape["data"] * accumulate
    if rows % parts:
        raise InputError(
            f"The batch has {rows} pairs, which mesh.data ({mesh.shape['data']}) times accumulate "
            f"({accumulate}) does not divide: give a multiple of {parts}."
        )


def put(tree: Any, shardings: Any) -> Any:
    """Host arrays, the same on every process, as arrays of the mesh."""
    return jax.tree.map(
        lambda a, s: jax.make_array_from_callback(np.shape(a), s, lambda i: np.asarray(a)[i]),
        tree,
        shardings,
    )


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
