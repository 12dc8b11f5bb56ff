"""One record of the teacher cache: named arrays <-> bytes, small and near enough.

Smooth maps become 16-bit fixed point, 65536 steps between the least and the largest number of a
channel, then differences of neighbours, low bytes before high bytes: what zstd compresses well.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

LEVELS = 65535
# How an array is kept, by the first word of its name; "exact" keeps all as they are.
KINDS = {"points": "warped", "conf": "log", "tokens": "half", "decoder": "half", "last": "half"}


def pack(arrays: Mapping[str, np.ndarray], *, exact: bool, images: int = 0) -> bytes:
    """{name: float array} -> bytes; `KINDS` knows the names. `images`: their `fingerprint`.

    "warped": points moved to length log1p, so that far ones do not take all the steps; "log": of
    the logarithm of positive numbers; "half": float16. An array that its kind cannot hold (not
    finite, too large) is kept exactly.
    """
    header: dict[str, Any] = {"images": images}
    parts = []
    for name, array in arrays.items():
        array = np.asarray(array, np.float32)
        kind = "exact" if exact or not np.isfinite(array).all() else KINDS[name.split("_")[0]]
        if kind == "half" and np.abs(array).max() > np.finfo(np.float16).max:
            kind = "exact"
        if kind == "half":
            data, extra = array.astype(np.float16), {}
        elif kind == "exact":
            data, extra = array, {}
        else:
            data, extra = _fixed(_warp(array) if kind == "warped" else np.log(array))
        parts.append(_byte_planes(data))
        header[name] = {"shape": array.shape, "kind": kind, "bytes": len(parts[-1]), **extra}
    head = json.dumps(header).encode()
    return b"".join([struct.pack("<I", len(head)), head, *parts])


def unpack(record: bytes) -> tuple[dict[str, np.ndarray], int]:
    """Inverse of `pack`, within what its kinds keep: (arrays in float32, or float16 of "half";
    the fingerprint of the images)"""
    (size,) = struct.unpack_from("<I", record)
    header, at, out = json.loads(record[4 : 4 + size]), 4 + size, {}
    images = header.pop("images")
    for name, about in header.items():
        shape, kind, part = about["shape"], about["kind"], record[at : at + about["bytes"]]
        at += about["bytes"]
        if kind in ("warped", "log"):
            x = _from_fixed(_from_byte_planes(part, np.uint16, shape), about)
            out[name] = _unwarp(x) if kind == "warped" else np.exp(x)
        else:
            dtype = np.float16 if kind == "half" else np.float32
            out[name] = _from_byte_planes(part, dtype, shape)
    return out, images


def fingerprint(image1: np.ndarray, image2: np.ndarray) -> int:
    """Of a sample's images in [-1, 1], to 8 bits a channel: what the teacher was shown."""
    levels = (np.round((np.asarray(i) + 1) * 127.5).astype(np.uint8) for i in (image1, image2))
    return zlib.crc32(b"".join(x.tobytes() for x in levels))


def _warp(points):
    length = np.maximum(np.linalg.norm(points, axis=-1, keepdims=True), 1e-8)
    return points / length * np.log1p(length)


def _unwarp(points):
    length = np.maximum(np.linalg.norm(points, axis=-1, keepdims=True), 1e-8)
    return points / length * np.expm1(length)


def _fixed(x):
    """[..., H, W, C] -> (uint16 differences along W, {"low", "step"} of each map and channel)"""
    low = x.min((-3, -2), keepdims=True).astype(np.float64)
    step = (x.max((-3, -2), keepdims=True) - low) / LEVELS
    levels = np.round((x - low) / np.where(step > 0, step, 1)).astype(np.uint16)
    return (
        np.diff(levels, axis=-2, prepend=np.uint16(0)),  # modulo 2^16
        {"low": low.ravel().tolist(), "step": step.ravel().tolist()},
    )


def _from_fixed(differences, about):
    levels = np.cumsum(differences, axis=-2, dtype=np.uint16)
    shape = (*levels.shape[:-3], 1, 1, levels.shape[-1])
    low, step = (np.array(about[k]).reshape(shape).astype(np.float32) for k in ("low", "step"))
    return levels * step + low


def _byte_planes(x: np.ndarray) -> bytes:
    """All first bytes of the numbers, then all second ones, and so on."""
    x = np.ascontiguousarray(x)
    return np.ascontiguousarray(x.view(np.uint8).reshape(-1, x.itemsize).T).tobytes()


def _from_byte_planes(data: bytes, dtype, shape) -> np.ndarray:
    size = np.dtype(dtype).itemsize
    planes = np.frombuffer(data, np.uint8).reshape(size, -1)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(shape)
