"""The function that is exported: two photographs in bytes, eight named arrays out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from PIL import Image

from lunar_distill_jax import api
from lunar_distill_jax.data.source import pair_sequence
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.stereo import StereoNet

INPUTS = ("image_1", "image_2")
FIELDS = ("pts3d", "conf", "desc", "desc_conf")
OUTPUTS = tuple(f"{field}_{view}" for view in (1, 2) for field in FIELDS)
# Of an output's largest value; moonlet-small as ONNX: 1.3e-5 (a descriptor), points 1e-6.
TOLERANCE = 1e-4
RENDERED = 128  # pixels of the frames that an export is checked on, before they are resized
Graph = Callable[[Any, Any], tuple]
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")


def network_graph(stereo: api.Stereo) -> Graph:
    """(image_1, image_2), uint8 [B, H, W, 3] RGB -> arrays named `OUTPUTS`, float32.

    pts3d is [B, H, W, 3] in the camera of view 1, conf and desc_conf [B, H, W], desc [B, H, W, K].
    The parameters are constants inside.
    """
    # The other formulations choose by the size of the batch, which may be open here.
    network = StereoNet(stereo.config, Compute(attention="plain"))

    def graph(image_1, image_2):
        pictures = (image.astype(jnp.float32) / 127.5 - 1 for image in (image_1, image_2))
        views: Any = network.apply(stereo.variables, *pictures)
        return tuple(getattr(view, field) for view in views for field in FIELDS)

    return graph


def straightened(graph: Graph, shape: Sequence[int]) -> Graph:
    """The same without what converters stumble over: choices between platforms (the CPU's is
    taken), own derivatives, and functions within functions.

    shape: of both images
    """
    program = jax.make_jaxpr(graph)(*[jax.ShapeDtypeStruct(tuple(shape), jnp.uint8)] * 2)
    return lambda *images: tuple(_evaluate(program.jaxpr, program.consts, images))


def _evaluate(jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
    values |= zip(jaxpr.invars, inputs, strict=True)

    def value_of(variable):
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        operands = [value_of(variable) for variable in equation.invars]
        name, params = equation.primitive.name, equation.params
        inner = next((params[k] for k in ("call_jaxpr", "fun_jaxpr", "jaxpr") if k in params), None)
        if name == "platform_index":
            platforms = params["platforms"]  # tuples of names; None: any other
            cpu = next(i for i, p in enumerate(platforms) if p is None or "cpu" in p)
            results = [np.int32(cpu)]
        elif name == "cond" and isinstance(operands[0], np.integer):
            branch = params["branches"][int(operands[0])]
            results = _evaluate(branch.jaxpr, branch.consts, operands[1:])
        elif inner is not None and name in _CALLS:
            results = _evaluate(inner.jaxpr, inner.consts, operands)
        elif name == "concatenate":
            # Rims of no width come from `jnp.pad`; ONNX would read their 0 as "as it was".
            parts = [x for x in operands if np.size(x)] or operands[:1]
            results = [equation.primitive.bind(*parts, **params)]
        else:
            results = equation.primitive.bind(*operands, **params)
            results = results if equation.primitive.multiple_results else [results]
        values |= zip(equation.outvars, results, strict=True)
    return [value_of(variable) for variable in jaxpr.outvars]


def photographs(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two views of the synthetic Moon, uint8 [1, H, W, 3]: what an export is checked on."""
    pair = pair_sequence("synthetic:stereolunar", size=RENDERED, geometries=1, seed=0)[0]
    frames = (np.rint(255 * np.clip(frame, 0, 1)).astype(np.uint8) for frame in pair.image)
    one, two = (np.asarray(Image.fromarray(f).resize((width, height)))[None] for f in frames)
    return one, two


def worst_error(found: Sequence[Any], expected: Sequence[Any]) -> tuple[float, str]:
    """The largest difference, as a share of its output's largest value, and that output's name.

    Raises:
      InputError: it is more than `TOLERANCE`, or a shape or a value is not what it should be.
    """
    worst = 0.0, OUTPUTS[0]
    for name, a, b in zip(OUTPUTS, found, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape:
            raise InputError(f"The exported network gives {name} {a.shape}, the model {b.shape}.")
        error = float(np.abs(a - b).max() / np.abs(b).max())
        if not error <= TOLERANCE:
            raise InputError(
                f"The exported network's {name} is off by {error:.1e} of its largest value, more "
                f"than the {TOLERANCE:.0e} allowed: nothing was written."
            )
        worst = max(worst, (error, name))
    return worst


def description(stereo: api.Stereo, height: int, width: int) -> dict[str, str]:
    """What a file says of itself, texts by name."""
    known = {k: stereo.meta.get(k, "unknown") for k in ("licence", "source", "trained")}
    return {
        "name": stereo.config.name,
        **known,
        "size": f"{height}x{width}",
        "inputs": "image_1, image_2: uint8 [B, H, W, 3], RGB, 0 to 255; the graph normalises them",
        "outputs": "pts3d: [B, H, W, 3] in the camera of view 1 (x right, y down, z forward), for "
        "both views; conf: [B, H, W], >= 1; desc: [B, H, W, K], unit norm; desc_conf: [B, H, W]",
        "pixels": "centres are whole numbers: the first is (0, 0)",
        "unit": "the network's own: multiply by an altitude or a baseline that is known",
        "turns": "view 2 may be rolled against view 1 by up to 45 degrees: ask at its quarter turns"
        if stereo.turns > 1
        else "none",
        "architecture": json.dumps(stereo.config.to_dict()),
    }
