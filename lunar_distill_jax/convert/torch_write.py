"""Writes PyTorch checkpoints without torch: the released `.pth` layout and the Hugging Face layout.

Tensors are written one after the other, so memory holds one of them at most besides what the caller
holds. Equal input gives equal bytes. Tensors that are the same view of the same memory are written
once: torch loads them as one storage, and the safetensors file names the dropped ones.
"""

import json
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from lunar_distill_jax.atomic import atomic_file, atomic_folder
from lunar_distill_jax.convert.torch_file import SAFETENSORS_DTYPES
from lunar_distill_jax.convert.torch_pickle import DTYPES
from lunar_distill_jax.errors import InputError

ALIGN = 64  # bytes, as torch does, so that tensors can be mapped
_ROOT = "archive"
_ZIP64_FROM = zipfile.ZIP64_LIMIT / 1.05  # beyond this, zipfile adds 20 bytes to the local header
_STORAGES = {dtype: name for name, (_, dtype) in DTYPES.items()}
_SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


def write_pth(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    args: Mapping[str, Any],
    written: Callable[[int], object] = lambda size: None,
) -> None:
    """Writes {'args': Namespace(**args), 'model': OrderedDict(tensors)} as `torch.save` does.

    `args["model"]` is the model string. The values of `args` are None, bool, int, float, str, list,
    tuple or dict; torch >= 2.6 needs `weights_only=False` to load any such file. `written` is
    called with the number of bytes after each tensor.

    Raises:
      InputError: the folder cannot be written, or a dtype or an argument has no place in the file.
    """
    kept = _kept_names(tensors)
    owners = [name for name in tensors if kept[name] == name]
    keys = {name: str(i) for i, name in enumerate(owners)}
    stream = _pickle(tensors, {name: keys[kept[name]] for name in tensors}, args)
    with atomic_file(path) as part, zipfile.ZipFile(part, "w") as archive:
        _add(archive, "data.pkl", stream)
        _add(archive, "byteorder", b"little")
        for name in owners:
            _add(archive, f"data/{keys[name]}", _bytes_view(tensors[name]))
            written(tensors[name].nbytes)
        _add(archive, "version", b"3\n")


def write_hugging_face(
    folder: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    written: Callable[[int], object] = lambda size: None,
) -> None:
    """Writes `config.json` and `model.safetensors` into a new folder, as `save_pretrained` does.

    Infinities are the bare tokens Infinity and -Infinity; `metadata` is added to the safetensors
    header, which also maps each dropped alias to the name that was kept; `written` is as above.

    Raises:
      InputError: the folder is not empty or cannot be written, or a dtype has no place in the file.
    """
    kept = _kept_names(dict(sorted(tensors.items())))
    header: dict[str, Any] = {"format": "pt", **(metadata or {})}
    header |= {name: kept[name] for name in sorted(tensors) if kept[name] != name}
    header = {"__metadata__": header}
    owners = [name for name in tensors if kept[name] == name]
    owners.sort(key=lambda name: (-tensors[name].dtype.itemsize, name))  # keeps wide types aligned
    end = 0
    for name in owners:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _named(_SAFETENSORS_NAMES, name, tensors[name]),
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_folder(folder) as part:
        _write_config(part / "config.json", config)
        with open(part / "model.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in owners:
                file.write(_bytes_view(tensors[name]))
                written(tensors[name].nbytes)


def _write_config(path: pathlib.Path, config: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(config), indent=2, sort_keys=True), encoding="utf-8")


def _kept_names(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns, for each name, the first name of the same view of the same memory."""
    first: dict[Any, str] = {}
    kept = {}
    for name, tensor in tensors.items():
        pointer = tensor.__array_interface__["data"][0]
        view = (pointer, tensor.shape, tensor.strides, tensor.dtype)
        kept[name] = first.setdefault(view if tensor.size else name, name)
    return kept


def _named(names: Mapping[np.dtype, str], name: str, tensor: np.ndarray) -> str:
    if tensor.dtype not in names:
        raise InputError(
            f"{name} has the type {tensor.dtype}, which a PyTorch file cannot hold here: "
            f"cast it to one of {', '.join(map(str, names))}."
        )
    return names[tensor.dtype]


def _bytes_view(tensor: np.ndarray) -> memoryview:
    """Returns the bytes of a tensor in row-major order; copies only what is not so already."""
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Adds one stored member whose first byte lies on a multiple of `ALIGN`."""
    info = zipfile.ZipInfo(f"{_ROOT}/{name}")  # dated 1980: equal input, equal bytes
    info.create_system, info.external_attr = 3, 0o644 << 16
    info.file_size = memoryview(data).nbytes
    start = archive.fp.tell() + 30 + len(info.filename)  # pyright: ignore[reportOptionalMemberAccess]
    start += 20 if info.file_size > _ZIP64_FROM else 0
    padding = -(start + 4) % ALIGN
    info.extra = struct.pack("<2s H", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w") as member:
        member.write(data)


def _pickle(tensors: Mapping[str, np.ndarray], keys: Mapping[str, str], args) -> bytes:
    """Returns the pickle (protocol 2) of the whole file; `keys` gives each tensor its storage."""
    parts = [b"\x80\x02}(", _value("args"), b"cargparse\nNamespace\n)\x81"]
    parts += [_value(dict(args)), b"b", _value("model"), b"ccollections\nOrderedDict\n)R("]
    for name, tensor in tensors.items():
        parts += [_value(name), *_tensor(name, tensor, keys[name])]
    return b"".join([*parts, b"uu."])


def _tensor(name: str, tensor: np.ndarray, key: str) -> Iterator[bytes]:
    """Yields `_rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict())`."""
    kind = _named(_STORAGES, name, tensor)
    row_major = [1]
    for n in tensor.shape[:0:-1]:
        row_major.insert(0, row_major[0] * max(n, 1))
    yield b"ctorch._utils\n_rebuild_tensor_v2\n(("
    yield _value("storage") + f"ctorch\n{kind}Storage\n".encode()
    yield _value(key) + _value("cpu") + _value(tensor.size) + b"tQ"
    yield _value(0) + _value(tensor.shape) + _value(tuple(row_major[: tensor.ndim]))
    yield b"\x89ccollections\nOrderedDict\n)RtR"


def _value(value: Any) -> bytes:
    """Returns the pickle opcodes of a plain value."""
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int) and -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_value, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_value, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_value(x) for pair in value.items() for x in pair) + b"u"
    raise InputError(
        f"A training argument is a {type(value).__name__}: only plain values are written."
    )
