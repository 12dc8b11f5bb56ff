"""Reads PyTorch checkpoints without torch: `.pth` archives, `.safetensors`, Hugging Face folders.

The tensors are read-only windows on the file (memory-mapped): opening 2.75 GB takes a tenth of a
second and no memory. Nothing in a file is ever executed; whatever is wrong with its bytes is an
`InputError`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from lunar_distill_jax.convert import torch_pickle
from lunar_distill_jax.convert.torch_zip import (
    Refusal,
    map_file,
    read_entries,
    refusals_name,
    require_checksum,
    shown,
)
from lunar_distill_jax.errors import InputError

MAX_PICKLE = 2**24  # bytes; a teacher's is 250 kB
MAX_HEADER = 2**23  # bytes of a safetensors header or a config; a teacher's is 100 kB
MAX_DIMS = 32
_UNFOLD = 2**24  # bytes that overlapping strides may unfold to, in a file smaller than that
_STATE_DICTS = ("model", "state_dict", "model_state_dict")  # where files keep their tensors
_ADAPTER = re.compile(
    r"(.*[._])?(lora_(A|B|a|b|down|up|embedding_[AB]|magnitude_vector)|hada_w\d\w*|lokr_w\d\w*)(\..*)?"
)
SAFETENSORS_DTYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_OTHER_FILES = (  # first bytes, what it is and what to do
    (
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        "is in the format of torch < 1.6, which cannot be read without running it: load it with "
        "torch in a sandbox, if you trust its author, and save it again with torch >= 1.6.",
    ),
    (
        b"\x80",
        "is a plain pickle, not a torch archive: save its tensors with torch.save of torch >= 1.6.",
    ),
    (b"version https://git-lfs", "is a Git LFS pointer, not the weights: run `git lfs pull`."),
    (b"<", "is a web page, not the weights: download the file itself."),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first."),
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file of PyTorch weights holds.

    path:         the file or folder it was read from
    tensors:      {torch name: read-only array}; names that shared memory in torch still share it
    model_string: "AsymmetricMASt3R(...)", from the training arguments of a `.pth`; else None
    config:       the `config.json` of a Hugging Face folder; else None
    args:         training arguments of a `.pth`, as plain containers
    """

    path: pathlib.Path
    tensors: Mapping[str, np.ndarray]
    model_string: str | None = None
    config: Mapping[str, Any] | None = None
    args: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Returns the checkpoint in a `.pth`, a `.safetensors` or a Hugging Face folder, memory-mapped.

    Raises:
      InputError: the file is absent, damaged, hostile, of another format, or an adapter (LoRA).
    """
    path = pathlib.Path(path)
    with refusals_name(path):
        if path.is_dir():
            return _read_folder(path)
        data = map_file(path)
        if bytes(data[:4]) == b"PK\x03\x04":
            checkpoint = _read_archive(path, data)
        elif bytes(data[8:9]) == b"{":
            checkpoint = Checkpoint(path, _read_safetensors(data))
        else:
            raise Refusal(_what_it_is(data))
        require_full_checkpoint(checkpoint.tensors, path)
        return checkpoint


def require_full_checkpoint(names: Iterable[str], path: str | os.PathLike) -> None:
    """Refuses adapters: they hold only a correction to weights that are somewhere else.

    Raises:
      InputError: some name is one of a LoRA, LoHa or LoKr adapter.
    """
    found = [name for name in names if _ADAPTER.fullmatch(name)]
    if found:
        raise InputError(
            f"{path} is an adapter (it has {found[0][:120]!r}), not a full checkpoint: merge it "
            "into its base model in PyTorch (peft: merge_and_unload) and save that."
        )


def require_checksums(
    path: str | os.PathLike, read: Callable[[int], object] = lambda size: None
) -> None:
    """Reads the whole of a `.pth` and compares each member with its CRC-32; other files have none.

    read: called with the number of bytes after each piece

    Raises:
      InputError: the bytes of a member have changed since it was written.
    """
    with refusals_name(path):
        data = map_file(path)
        if bytes(data[:4]) == b"PK\x03\x04":
            entries = read_entries(data)
            read(len(data) - sum(entry.size for entry in entries.values()))  # names and padding
            for name, entry in entries.items():
                require_checksum(name, entry, data, read)


def _what_it_is(data: np.ndarray) -> str:
    """Returns why a file that is neither an archive nor safetensors is refused, as a predicate."""
    head = data[:64].tobytes()
    for start, sentence in _OTHER_FILES:
        if head.startswith(start):
            return sentence
    return (
        f"is not a PyTorch checkpoint (it starts with {head[:8]!r}): expected a .pth written by "
        "torch >= 1.6, a .safetensors, or a folder with config.json and model.safetensors."
    )


def _read_archive(path: pathlib.Path, data: np.ndarray) -> Checkpoint:
    entries = read_entries(data)
    roots = [name[: -len("data.pkl")] for name in entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(roots) != 1:
        raise Refusal("is a zip file but not a torch archive: it has no single <name>/data.pkl.")
    (root,) = roots
    if f"{root}constants.pkl" in entries:
        raise Refusal("is a TorchScript program: save model.state_dict() with torch.save instead.")
    order = entries.get(f"{root}byteorder")
    if (
        order
        and (found := data[order.start : order.start + min(order.size, 16)].tobytes()) != b"little"
    ):
        raise Refusal(f"has the byte order {found!r}: save it again on a little-endian machine.")
    pickle_entry = entries[f"{root}data.pkl"]
    if pickle_entry.size > MAX_PICKLE:
        raise Refusal(
            f"has a pickle of {pickle_entry.size} bytes, too large for a list of tensors."
        )
    require_checksum(f"{root}data.pkl", pickle_entry, data)

    def find_storage(key: str) -> np.ndarray:
        entry = entries.get(f"{root}data/{key}")
        if entry is None:
            raise Refusal(f"has no bytes for storage {key[:20]!r}: it is cut or damaged.")
        return data[entry.start : entry.start + entry.size]

    stream = data[pickle_entry.start : pickle_entry.start + pickle_entry.size].tobytes()
    value = torch_pickle.load(stream, find_storage, limit=max(len(data), _UNFOLD))
    args = _plain_args(value)
    text = args.get("model")
    return Checkpoint(path, _state_dict(value), text if isinstance(text, str) else None, None, args)


def _state_dict(value) -> dict[str, np.ndarray]:
    """Returns {name: tensor} from what the pickle held: bare, or under one of the usual keys."""
    if not isinstance(value, dict):
        raise Refusal(f"holds a {type(value).__name__}, not a dictionary of tensors.")
    for key in _STATE_DICTS:
        if isinstance(value.get(key), dict):
            value = value[key]
            break
    wrong = [
        shown(k, 60) for k, v in value.items() if not (type(k) is str and isinstance(v, np.ndarray))
    ]
    if wrong or not value:
        raise Refusal(
            f"has no dictionary of tensors: {len(wrong)} of its {len(value)} entries are something "
            f"else, such as {', '.join(wrong[:5]) or 'nothing'}; expected 'model' or 'state_dict'."
        )
    return dict(value)


def _plain_args(value) -> dict[str, Any]:
    """Returns the training arguments as plain containers; anything else becomes its type's name."""
    args = value.get("args") if isinstance(value, dict) else None
    budget = 10_000

    def plain(item, depth) -> Any:
        nonlocal budget
        budget -= 1
        if budget < 0 or depth > 16:
            raise Refusal("has training arguments without end: it is damaged or hostile.")
        if isinstance(item, torch_pickle.Namespace):
            item = item.fields
        if isinstance(item, dict):
            return {str(k): plain(v, depth + 1) for k, v in item.items()}
        if isinstance(item, list | tuple):
            return type(item)(plain(v, depth + 1) for v in item)
        if isinstance(item, str | int | float | type(None)):
            return item
        return f"<{type(item).__name__}>"

    return plain(args, 0) if isinstance(args, dict | torch_pickle.Namespace) else {}


def _read_folder(path: pathlib.Path) -> Checkpoint:
    """Reads a Hugging Face folder."""
    if (path / "adapter_config.json").exists():
        raise Refusal(
            "is an adapter (it has adapter_config.json), not a full checkpoint: merge it into its "
            "base model in PyTorch (peft: merge_and_unload) and save that."
        )
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise Refusal(
                f"has no {name}: expected a Hugging Face folder (config.json, model.safetensors); "
                "give the .pth or .safetensors file itself otherwise."
            )
    with refusals_name(path / "config.json"):
        config = _read_json(map_file(path / "config.json"))
    checkpoint = read_checkpoint(path / "model.safetensors")
    return dataclasses.replace(checkpoint, path=path, config=config)


def _read_json(data: np.ndarray) -> dict[str, Any]:
    """Returns a JSON object; Infinity and -Infinity are accepted, a key given twice is not."""

    def unique(pairs):
        keys = [k for k, _ in pairs]
        if len(set(keys)) != len(keys):
            raise Refusal("has JSON with a key given twice: it is damaged.")
        return dict(pairs)

    if len(data) > MAX_HEADER:
        raise Refusal(f"has {len(data)} bytes of JSON, more than the {MAX_HEADER} allowed here.")
    value = json.loads(data.tobytes().decode("utf-8"), object_pairs_hook=unique)
    if not isinstance(value, dict):
        raise Refusal(f"holds a JSON {type(value).__name__}, expected an object.")
    return value


def _read_safetensors(data: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file, with the aliases that its metadata names."""
    size = int.from_bytes(data[:8].tobytes(), "little")
    if size > min(MAX_HEADER, len(data) - 8):
        raise Refusal(
            f"declares a header of {size} bytes but has {len(data)}: it is cut or damaged."
        )
    header, body = _read_json(data[8 : 8 + size]), data[8 + size :]
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise Refusal("has safetensors metadata that is not an object: it is damaged.")
    tensors = {name: _safetensor(name, entry, body) for name, entry in header.items()}
    spans = sorted(entry["data_offsets"] for entry in header.values())
    edges = [0, *(edge for span in spans for edge in span), len(body)]
    if edges[::2] != edges[1::2]:
        raise Refusal(
            "has tensors that overlap or bytes that no tensor owns: it is cut or damaged."
        )
    for dropped, kept in metadata.items():  # so does save_pretrained say what shared memory
        if dropped not in tensors and isinstance(kept, str) and kept in header:
            tensors[dropped] = tensors[kept]
    if not tensors:
        raise Refusal("holds no tensors: download or save it again.")
    return tensors


def _safetensor(name: str, entry, body: np.ndarray) -> np.ndarray:
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise Refusal(
            f"has {name[:80]!r} of type {shown(entry['dtype'], 20)}, which is not read here: "
            f"save it as one of {', '.join(SAFETENSORS_DTYPES)}."
        )
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    if len(shape) > MAX_DIMS or any(type(n) is not int or n < 0 for n in (*shape, start, end)):
        raise Refusal(f"has {name[:80]!r} with the shape or place {shown(entry)}.")
    if math.prod(shape) * dtype.itemsize != end - start or end > len(body):
        raise Refusal(
            f"has {name[:80]!r} of shape {str(shape)[:80]} in {end - start} bytes of the "
            f"{len(body)} there are: it is cut or damaged."
        )
    return body[start:end].view(dtype).reshape(shape)
