"""One self-describing safetensors file: arrays, architecture, provenance, licence."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy

from lunar_distill_jax.atomic import atomic_file
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.config import StereoConfig

FORMAT = "lunar-distill-jax weights 1"


def write_weights(
    path: str | os.PathLike, config: StereoConfig, params: Any, meta: dict[str, str]
) -> None:
    """Writes `params` (a nested dict of arrays) and what is needed to rebuild the network.

    meta: free text by name; "licence" and "source" are expected by `info`
    """
    flat = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
    arrays = {name: np.ascontiguousarray(a) for name, a in flat.items()}
    header = {**meta, "format": FORMAT, "architecture": json.dumps(config.to_dict())}
    with atomic_file(path) as part:
        safetensors.numpy.save_file(arrays, part, metadata=header)


def read_weights(path: str | os.PathLike) -> tuple[StereoConfig, Any, dict[str, str]]:
    """-> (config, params, meta)

    Raises:
      InputError: the file is absent, cut short, or not one of ours.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"There is no weight file {path}: check the path.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(
                    f"{path} has format {header.get('format')!r}, expected {FORMAT!r}: it is not a weight "
                    "file of this package."
                )
            flat = {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as e:
        raise InputError(f"{path} is not a complete safetensors file ({e}): copy it again.") from e
    meta = {k: v for k, v in header.items() if k not in ("format", "architecture")}
    try:
        config = StereoConfig.from_dict(json.loads(header["architecture"]))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as e:
        raise InputError(
            f"The header of {path} does not describe an architecture ({type(e).__name__}): write the "
            "file again."
        ) from e
    return config, flax.traverse_util.unflatten_dict(flat, sep="/"), meta
