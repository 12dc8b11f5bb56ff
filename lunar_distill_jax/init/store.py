"""Activations of all calibration pairs between passes: in memory, or in files that stay."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from lunar_distill_jax import atomic
from lunar_distill_jax.errors import InputError

RUN = "run.json"


class Store:
    """Arrays by name, one a file in a folder where there is one, and the stages that are done.

    In a folder the arrays are memory-mapped: what a pass reads comes from the disk batch by batch,
    so that memory does not grow with the number of pairs, and a run that was killed goes on after
    the last stage that it has finished.
    """

    def __init__(self, folder: str | os.PathLike | None = None, key: str = ""):
        """folder: of one run; key: of everything that the run's result depends on

        Raises:
          InputError: the folder cannot be written, or holds a run with another key.
        """
        self._folder = None if folder is None else atomic.make_folder(folder)
        self._held: dict[str, int] = {}
        self.peak_bytes = 0
        if self._folder is None:
            return
        path = self._folder / RUN
        if not path.is_file():
            if any(self._folder.iterdir()):
                raise InputError(
                    f"The workdir {folder} is not empty and holds no calibration: give a new one."
                )
            atomic.write_text(path, json.dumps({"key": key}) + "\n")
        elif (found := json.loads(path.read_text()).get("key")) != key:
            raise InputError(
                f"The workdir {folder} holds the calibration {found} and this one is {key}: it has "
                "other networks, images or settings; give a new workdir."
            )

    @property
    def on_disk(self) -> bool:
        return self._folder is not None

    def empty(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A new float32 array. A name is used once in a run."""
        self._held[name] = 4 * int(np.prod(shape))
        self.peak_bytes = max(self.peak_bytes, sum(self._held.values()))
        if self._folder is None:
            return np.empty(shape, np.float32)
        path = self._path(name)
        path.unlink(missing_ok=True)  # of a run that was killed
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)

    def open(self, name: str) -> np.ndarray:
        """An array of an earlier run, to read and write."""
        array = np.lib.format.open_memmap(self._path(name), mode="r+")
        self._held[name] = array.nbytes
        return array

    def drop(self, kept: Collection[str]) -> None:
        """Forgets all arrays but those of which the name begins with one in `kept`."""
        self._held = {n: b for n, b in self._held.items() if n.startswith(tuple(kept))}
        if self._folder is not None:
            for path in self._folder.glob("*.npy"):
                if not path.stem.startswith(tuple(k.replace("/", ".") for k in kept)):
                    path.unlink()  # a map that is still open stays readable

    def save(self, stage: str, arrays: Mapping[str, np.ndarray], notes: Any = None) -> None:
        """Marks a stage as done, with its results; the arrays written before are as on disk."""
        if self._folder is None:
            return
        with atomic.atomic_file(self._folder / f"{stage}.npz") as part, open(part, "wb") as file:
            text = np.frombuffer(json.dumps(notes).encode(), np.uint8)
            np.savez(file, allow_pickle=False, **{"notes": text, **arrays})

    def load(self, stage: str) -> tuple[dict[str, np.ndarray], Any] | None:
        """-> (arrays, notes) of a stage that an earlier run has finished, else None.

        Raises:
          InputError: the file cannot be read.
        """
        if self._folder is None:
            return None
        path = self._folder / f"{stage}.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path) as file:
                arrays = dict(file)
            return arrays, json.loads(arrays.pop("notes").tobytes())
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
            raise InputError(
                f"Cannot read {path} ({e}): delete the workdir and start again."
            ) from e

    def _path(self, name: str) -> pathlib.Path:
        assert self._folder is not None
        return self._folder / f"{name.replace('/', '.')}.npy"


def digest(*parts: Any) -> str:
    """A short key of arrays by name, and of what JSON can hold."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Mapping) and all(isinstance(v, np.ndarray) for v in part.values()):
            for name in sorted(part):
                total.update(name.encode())
                total.update(np.ascontiguousarray(part[name]).tobytes())
        else:
            total.update(json.dumps(part, sort_keys=True, default=str).encode())
    return total.hexdigest()[:16]
