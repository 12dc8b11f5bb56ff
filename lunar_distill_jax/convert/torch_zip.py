"""The zip archive around a torch checkpoint, mapped into memory and checked before it is used.

The members of such an archive are stored, not compressed, so a tensor is a window on the file.
Layout after PKWARE's APPNOTE: local headers with the data, the central directory, the end records.
"""

import contextlib
import os
import pathlib
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from lunar_distill_jax.errors import InputError

MAX_ENTRIES = 200_000  # a teacher with its optimizer has 4,000
MAX_DIRECTORY = 2**26  # bytes
CHUNK = 2**24  # bytes between two reports of progress
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64, _LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"
_ABSENT32 = 0xFFFFFFFF  # "look into the zip64 extra field"


class Refusal(ValueError):
    """Why a file is refused: a predicate, to which `refusals_name` adds the name of the file."""


def shown(text: object, limit: int = 80) -> str:
    """Returns text out of a file, cut and without control characters: safe on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:limit])


class Entry(NamedTuple):
    """Where the bytes of one archive member lie in the file."""

    start: int
    size: int
    crc32: int  # 0: not computed, by a documented option of torch.save


@contextlib.contextmanager
def refusals_name(path: str | os.PathLike) -> Iterator[None]:
    """The one place where whatever goes wrong with the bytes of `path` becomes an `InputError`.

    Raises:
      InputError: instead of any exception of the block.
    """
    try:
        yield
    except InputError:
        raise
    except Refusal as e:
        raise InputError(f"{path} {e}") from e
    except OSError as e:
        raise InputError(f"Cannot read {path} ({e.strerror}): check the path.") from e
    except Exception as e:  # hostile bytes can fail anywhere; none of it is a bug to show to a user
        reason = shown(f"{type(e).__name__}: {e}", 200)
        raise InputError(
            f"{path} is damaged ({reason}): download or save it again, and compare its checksum."
        ) from e


def map_file(path: str | os.PathLike) -> np.ndarray:
    """Returns the bytes of a file as a read-only uint8 array that stays on the disk until used."""
    if pathlib.Path(path).stat().st_size == 0:
        raise Refusal("is empty (0 bytes): download or save it again.")
    return np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)


def read_entries(data: np.ndarray) -> dict[str, Entry]:
    """Returns the members of the archive whose bytes are `data`, by name.

    Raises:
      Refusal: the archive is cut, compressed, encrypted, or contradicts itself.
    """
    count, start, end = _central_directory(data)
    if count > MAX_ENTRIES or end - start > MAX_DIRECTORY:
        raise Refusal(
            f"declares {count} members in {end - start} bytes: too many for a checkpoint."
        )
    entries: dict[str, Entry] = {}
    directory, pos = data[start:end].tobytes(), 0
    for _ in range(count):
        name, entry, pos = _central_entry(data, directory, pos, limit=start)
        if name in entries:
            raise Refusal(f"holds the member {name[:80]!r} twice: save it again with torch.save.")
        entries[name] = entry
    _require_disjoint(entries)
    return entries


def require_checksum(
    name: str, entry: Entry, data: np.ndarray, read: Callable[[int], object] = lambda size: None
) -> None:
    """Raises `Refusal` if a member's bytes do not have the CRC-32 that the archive declares.

    read: called with the number of bytes after each piece
    """
    found, end = 0, entry.start + entry.size
    for start in range(entry.start, end, CHUNK):
        piece = data[start : min(start + CHUNK, end)]
        found = zlib.crc32(piece.data, found)
        read(len(piece))
    if entry.crc32 and found != entry.crc32:
        raise Refusal(
            f"is damaged: the checksum of its member {name[:80]!r} is wrong; download it again."
        )


def _central_directory(data: np.ndarray) -> tuple[int, int, int]:
    """Returns the number of members and the [start, end) of their directory."""
    tail_start = max(0, len(data) - 22 - 0xFFFF)
    tail = data[tail_start:].tobytes()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise Refusal(
            "has no end-of-archive record: it is cut (an unfinished download?); download it again."
        )
    _, _, _, count, size, start, comment = struct.unpack_from("<4H2LH", tail, at + 4)
    end = tail_start + at
    if end + 22 + comment != len(data):
        raise Refusal("has bytes after its end-of-archive record: it is damaged.")
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR64:
        (end,) = struct.unpack_from("<Q", tail, at - 12)
        record = data[end : end + 56].tobytes() if end < len(data) else b""
        if record[:4] != _END64:
            raise Refusal("has a zip64 locator that points nowhere: it is damaged.")
        count, size, start = struct.unpack_from("<3Q", record, 32)
    if start + size > end or count * 46 > size:
        raise Refusal("has a directory outside of its bytes: it is damaged or cut.")
    return count, start, start + size


def _central_entry(data: np.ndarray, directory: bytes, pos: int, limit: int):
    """Returns (name, entry, next position) of the directory record at `pos`."""
    if directory[pos : pos + 4] != _CENTRAL:
        raise Refusal("has a damaged directory: download or save it again.")
    flags, method = struct.unpack_from("<2H", directory, pos + 8)
    crc32, packed, size, *lengths = struct.unpack_from("<3L3H", directory, pos + 16)
    (header,) = struct.unpack_from("<L", directory, pos + 42)
    after_name = pos + 46 + lengths[0]
    raw_name = directory[pos + 46 : after_name]
    name = raw_name.decode("utf-8")
    extra = directory[after_name : after_name + lengths[1]]
    size, packed, header = _zip64_fields(extra, size, packed, header)
    if flags & 1:
        raise Refusal(f"has the encrypted member {name[:80]!r}: decrypt it first.")
    if method != 0 or packed != size:
        raise Refusal(
            f"has the compressed member {name[:80]!r}, which torch.save never writes: "
            "unpack it and pack it again with `zip -0`, or save it again with torch.save."
        )
    local = data[header : header + 30].tobytes() if header < limit else b""
    if local[:4] != _LOCAL:
        raise Refusal(f"has no data for its member {name[:80]!r}: it is damaged or cut.")
    name_length, extra_length = struct.unpack_from("<2H", local, 26)
    start = header + 30 + name_length + extra_length
    if data[header + 30 : header + 30 + name_length].tobytes() != raw_name or start + size > limit:
        raise Refusal(f"contradicts itself about its member {name[:80]!r}: it is damaged.")
    return name, Entry(start, size, crc32), pos + 46 + sum(lengths)


def _zip64_fields(extra: bytes, size: int, packed: int, header: int) -> list[int]:
    """Returns the three numbers, taken from the zip64 extra field where they say "absent"."""
    fields = [size, packed, header]
    if _ABSENT32 not in fields:
        return fields
    pos = 0
    while pos + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, pos)
        if kind == 1:
            absent = [i for i, v in enumerate(fields) if v == _ABSENT32]
            for i, value in zip(
                absent, struct.unpack_from(f"<{len(absent)}Q", extra, pos + 4), strict=True
            ):
                fields[i] = value
            return fields
        pos += 4 + length
    return fields


def _require_disjoint(entries: dict[str, Entry]) -> None:
    """Refuses members that share bytes, as zip bombs do."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start < end:
            raise Refusal(f"has members that overlap at {name[:80]!r}: it is damaged or hostile.")
        end = entry.start + entry.size
