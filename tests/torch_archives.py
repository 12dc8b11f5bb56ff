"""Builds torch archives and safetensors files byte by byte, for the tests of the reader."""

import json
import pickle
import struct
import zipfile

import numpy as np


def plain(value) -> bytes:
    """The pickle opcodes of a plain value, without the frame around them."""
    return pickle.dumps(value, protocol=2)[2:-1]


def call(name: str, *args: bytes) -> bytes:
    """Calls the global "module.name" with values that are pickled already."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n(".encode() + b"".join(args) + b"tR"


def storage(kind: str, key: str, count: int) -> bytes:
    """What the pickle says of a storage; `kind` is for example "torch\\nFloatStorage"."""
    head = plain("storage") + f"c{kind}\n".encode()
    return b"(" + head + plain(key) + plain("cpu") + plain(count) + b"tQ"


def tensor(kind: str, key: str, count: int, offset, size, stride) -> bytes:
    """A tensor as torch.save writes it; `kind` is for example "Float"."""
    return call(
        "torch._utils._rebuild_tensor_v2",
        storage(f"torch\n{kind}Storage", key, count),
        *(plain(offset), plain(size), plain(stride), plain(False)),
        call("collections.OrderedDict"),
    )


def dictionary(**values: bytes) -> bytes:
    return b"}(" + b"".join(plain(k) + v for k, v in values.items()) + b"u"


def write_archive(path, pickled: bytes, storages=(), extra=(), compression=zipfile.ZIP_STORED):
    """Writes <stem>/data.pkl = `pickled` in its protocol frame, and <stem>/data/0, 1, ..."""
    members = {"data.pkl": b"\x80\x02" + pickled + b".", "byteorder": b"little", "version": b"3\n"}
    members |= {f"data/{i}": np.ascontiguousarray(s).tobytes() for i, s in enumerate(storages)}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in (members | dict(extra)).items():
            archive.writestr(zipfile.ZipInfo(f"{path.stem}/{name}"), data, compression)
    return path


def write_safetensors(path, header, body: bytes = b"", size: int | None = None):
    """Writes a safetensors file; `header` may be text, and `size` may lie."""
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + body)
    return path
