"""ONNX by jax2onnx, checked in onnxruntime; both are tools of `make export`, not of the core."""

from __future__ import annotations

import importlib
import logging
import os
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax import api, atomic
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.export.graph import (
    INPUTS,
    OUTPUTS,
    description,
    network_graph,
    photographs,
    straightened,
    worst_error,
)

OPSET = 23


def converter() -> tuple[Any, Any]:
    """jax2onnx and onnxruntime.

    Raises:
      InputError: one of them is not installed.
    """
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)  # names each library that it could use
    try:
        modules = importlib.import_module("jax2onnx"), importlib.import_module("onnxruntime")
    except ImportError as error:
        raise InputError(
            f"ONNX needs {error.name}, which is not installed: run `make export` in the project's "
            "folder, or see docs/export.md."
        ) from error
    return modules


def write_onnx(
    stereo: api.Stereo, path: str | os.PathLike, height: int, width: int
) -> tuple[float, str]:
    """Writes PATH, for one pair at a time -> the worst error and its output.

    Raises:
      InputError: a converter is missing, it does not know a part of this network, onnxruntime
        refuses its file, or what comes out of it is not what comes out of the network.
    """
    jax2onnx, onnxruntime = converter()
    graph = network_graph(stereo)
    shape = (1, height, width, 3)
    try:
        model = jax2onnx.to_onnx(
            straightened(graph, shape),
            inputs=[jax.ShapeDtypeStruct(shape, jnp.uint8)] * 2,
            model_name=stereo.config.name,
            opset=OPSET,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
        )
    except NotImplementedError as error:
        raise InputError(
            f"jax2onnx cannot convert {stereo.config.name}: {str(error).splitlines()[0]} Export it "
            "as stablehlo."
        ) from error
    for key, text in description(stereo, height, width).items():
        model.metadata_props.add(key=key, value=text)
    images = photographs(height, width)
    with tempfile.TemporaryDirectory() as folder:
        draft = os.path.join(folder, "draft.onnx")
        with open(draft, "wb") as file:
            file.write(model.SerializeToString())
        try:
            session = onnxruntime.InferenceSession(draft, providers=["CPUExecutionProvider"])
        except Exception as error:  # of onnxruntime's own kinds, which share no base
            raise InputError(
                f"onnxruntime cannot run what jax2onnx made of {stereo.config.name}: "
                f"{' '.join(str(error).split())} Export it as stablehlo."
            ) from error
    found = session.run(list(OUTPUTS), dict(zip(INPUTS, images, strict=True)))
    worst = worst_error(found, [np.asarray(a) for a in jax.jit(graph)(*images)])
    atomic.write_bytes(path, model.SerializeToString())
    return worst
