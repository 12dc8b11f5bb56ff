"""Files and folders that appear complete or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from lunar_distill_jax.errors import InputError


def check_writable(folder: str | os.PathLike) -> pathlib.Path:
    """Returns `folder` if it could be written, and leaves no trace; called before long work.

    Raises:
      InputError: the folder, or the nearest folder above it that exists, cannot be written.
    """
    folder = pathlib.Path(folder)
    above = folder.absolute()
    while not above.exists():
        above = above.parent
    try:
        with tempfile.TemporaryFile(dir=above):
            return folder
    except OSError as e:
        raise InputError(
            f"Cannot write to the output folder {folder} ({e.strerror}): choose another one."
        ) from e


def check_new(folder: str | os.PathLike) -> pathlib.Path:
    """As `check_writable`, and there must be nothing in `folder` yet.

    Raises:
      InputError: `folder` is a file, holds something already, or cannot be written.
    """
    folder = pathlib.Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(
            f"The output folder {folder} is not empty: give a new one, or delete it first."
        )
    return check_writable(folder)


def make_folder(folder: str | os.PathLike) -> pathlib.Path:
    """Creates `folder` if needed and returns it.

    Raises:
      InputError: the folder cannot be created or written.
    """
    folder = check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`, renamed to `path` only if the block succeeds.

    Raises:
      InputError: the folder of `path` cannot be created or written.
    """
    path = pathlib.Path(path)
    make_folder(path.parent)
    # The suffix is kept: writers such as Pillow choose their format by it.
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling folder that replaces the empty or absent `path` on success.

    Raises:
      InputError: `path` holds something already, or cannot be written.
    """
    path = check_new(path)
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        yield part
        if path.is_dir():
            path.rmdir()  # it was there and empty
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes `data` to `path` atomically."""
    with atomic_file(path) as part:
        part.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 `text` to `path` atomically."""
    write_bytes(path, text.encode())
