"""StableHLO by `jax.export`: one file for CPUs, CUDA and TPUs, any number of pairs at a time.

exported = jax.export.deserialize(bytearray(pathlib.Path("small.stablehlo").read_bytes()))
outputs = exported.call(image_1, image_2)   # uint8 [B, H, W, 3]; `graph.OUTPUTS` in order
"""

from __future__ import annotations

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from lunar_distill_jax import api, atomic
from lunar_distill_jax.export.graph import (
    OUTPUTS,
    description,
    network_graph,
    photographs,
    worst_error,
)

PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(
    stereo: api.Stereo, path: str | os.PathLike, height: int, width: int
) -> tuple[float, str]:
    """Writes PATH and, beside it, PATH.json with what it is -> the worst error and its output.

    Raises:
      InputError: what comes out of the file is not what comes out of the network.
    """
    path = pathlib.Path(path)
    graph = network_graph(stereo)
    (pairs,) = export.symbolic_shape("pairs")
    images = [jax.ShapeDtypeStruct((pairs, height, width, 3), jnp.uint8)] * 2
    exported = export.export(jax.jit(graph), platforms=PLATFORMS)(*images)
    data = exported.serialize()
    one, two = photographs(height, width)
    both = np.concatenate([one, two]), np.concatenate([two, one])
    found = export.deserialize(bytearray(data)).call(*both)
    worst = worst_error(found, jax.jit(graph)(*both))
    facts = description(stereo, height, width)
    facts |= {"order of outputs": ", ".join(OUTPUTS), "platforms": ", ".join(PLATFORMS)}
    facts |= {
        "jax": jax.__version__,
        "calling convention": str(exported.calling_convention_version),
    }
    beside = path.with_name(f"{path.name}.json")
    atomic.write_text(beside, json.dumps(facts, indent=2) + "\n")
    try:
        atomic.write_bytes(path, bytes(data))
    except OSError:  # such as a full disk: no description without its file
        beside.unlink()
        raise
    return worst
