"""One self-describing safetensors file: arrays, architecture, provenance, licence."""

from __future__ import annotations

import json
import os
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import ml_dtypes
import numpy as np
import safetensors

from lunar_distill_jax.atomic import atomic_file
from lunar_distill_jax.errors import InputError, raise_all
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.fresh import array_shapes

FORMAT = "lunar-distill-jax weights 1"
ALIGN = 64  # bytes: from there XLA reads a mapped array without copying it
SPARE = 1024  # bytes of the header, for `add_meta`
_TYPES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.float64): "F64",
}


def write_weights(
    path: str | os.PathLike,
    config: StereoConfig,
    params: Any,
    meta: dict[str, str],
    written: Callable[[int], object] = lambda size: None,
) -> None:
    """Writes `params` (a nested dict of arrays) and what is needed to rebuild the network.

    Batch norms' running moments are one more branch of `params`, "batch_stats".

    The arrays go out one by one, so memory holds one copy of the largest at most, and each begins
    on a multiple of `ALIGN` where sizes allow, so that the file can be mapped.

    meta: free text by name; "licence" and "source" are expected by `info`
    written: called with the number of bytes after each array

    Raises:
      InputError: the folder cannot be written, or a number type has no place in the file.
    """
    if not all(isinstance(value, str) for value in meta.values()):
        raise TypeError(f"meta holds something other than text: {meta}")
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    names = sorted(flat, key=lambda name: (flat[name].nbytes % ALIGN != 0, name))
    text = {**meta, "format": FORMAT, "architecture": json.dumps(config.to_dict())}
    header: dict[str, Any] = {"__metadata__": text}
    end = 0
    for name in names:
        start, end = end, end + flat[name].nbytes
        header[name] = {
            "dtype": _type_name(name, flat[name].dtype),
            "shape": list(flat[name].shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header).encode()
    size = -(-(8 + len(encoded) + SPARE) // ALIGN) * ALIGN - 8
    with atomic_file(path) as part, open(part, "wb") as file:
        file.write(struct.pack("<Q", size) + encoded.ljust(size))
        for name in names:
            array = np.ascontiguousarray(flat[name])
            file.write(array.reshape(-1).view(np.uint8).data)
            written(array.nbytes)


def _type_name(name: str, dtype: np.dtype) -> str:
    if dtype not in _TYPES:
        raise InputError(
            f"{name} has the number type {dtype}: cast it to one of {', '.join(map(str, _TYPES))}."
        )
    return _TYPES[dtype]


def add_meta(path: str | os.PathLike, name: str, value: str) -> None:
    """Adds one entry to the header of a weight file in place, in the space that is kept for it."""
    with open(path, "r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        header["__metadata__"][name] = value
        encoded = json.dumps(header).encode()
        if len(encoded) > size:
            raise ValueError(f"{path} has no space for {len(value)} more characters")
        file.seek(8)
        file.write(encoded.ljust(size))


def read_weights(
    path: str | os.PathLike, encoder: Callable[[Any], Any] | None = None
) -> tuple[StereoConfig, Any, dict[str, str]]:
    """-> (config, params, meta); params are read-only windows on the file, read when used.

    A network with batch norms has their running moments in one more branch of `params`,
    "batch_stats".

    encoder: the function of a custom student's encoder, which a file cannot hold

    Raises:
      InputError: the file is absent, cut short, not one of ours, or its arrays are not those of the
        architecture that its header describes; it lists every problem.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"There is no weight file {path}: check the path.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(
                    f"{path} has format {header.get('format')!r}, expected {FORMAT!r}: it is not a "
                    "weight file of this package."
                )
            flat = _map_arrays(path)
    except safetensors.SafetensorError as e:
        raise InputError(f"{path} is not a complete safetensors file ({e}): copy it again.") from e
    meta = {k: v for k, v in header.items() if k not in ("format", "architecture")}
    try:
        values = json.loads(header["architecture"])
        if encoder is not None:
            values = _with_encoder(path, values, encoder)
        config = StereoConfig.from_dict(values)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as e:
        raise InputError(
            f"The header of {path} does not describe an architecture ({type(e).__name__}): write "
            "the file again."
        ) from e
    _require_shapes(path, config, {name: array.shape for name, array in flat.items()})
    return config, flax.traverse_util.unflatten_dict(flat, sep="/"), meta


def _with_encoder(path: pathlib.Path, values: Any, encoder: Callable[[Any], Any]) -> Any:
    model = values["encoder"].get("model", {})
    if model.get("family") != "custom":
        raise InputError(
            f"{path} holds {values['name']!r}, whose encoder is known: load it without `encoder`."
        )
    return {**values, "encoder": {**values["encoder"], "model": {**model, "function": encoder}}}


def _require_shapes(path: pathlib.Path, config: StereoConfig, found: Mapping[str, tuple]) -> None:
    want = array_shapes(config)
    problems = [
        f"{name} {shape}: "
        + (f"expected the shape {want[name]}" if name in want else "the architecture has none")
        for name, shape in found.items()
        if want.get(name) != shape
    ]
    problems += [f"{name}: missing" for name in want if name not in found]
    raise_all(problems, f"{path} does not hold the network that its header describes")


def _map_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file whose header has been checked, mapped into memory."""
    data = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__")
    types = {name: dtype for dtype, name in _TYPES.items()}
    unknown = sorted({entry["dtype"] for entry in header.values()} - set(types))
    if unknown:
        raise InputError(f"{path} has numbers of the type {', '.join(unknown)}: write it again.")
    arrays = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        window = data[start + first : start + last]
        arrays[name] = window.view(types[entry["dtype"]]).reshape(entry["shape"])
    return arrays
