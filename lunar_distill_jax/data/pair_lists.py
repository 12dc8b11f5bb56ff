"""Pair lists: npz of `scenes`, `images`, `pairs`, as MegaDepth, MASt3R and StereoLunar have them.

`pairs` has a row (scene, image 1, image 2, score) for each pair, as a structured array, a plain one
or one of objects. An array of objects is a pickle inside the npz; it is read by an unpickler that
can build nothing but numpy arrays and numbers.
"""

from __future__ import annotations

import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from lunar_distill_jax.data import frames
from lunar_distill_jax.errors import InputError

KEYS = ("scenes", "images", "pairs")
_HARMLESS = {
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how protocol 2 writes bytes
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) in _HARMLESS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_array(file) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
        version, np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        return np.asarray(_ArrayUnpickler(file).load()).reshape(shape)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def read_pair_list(path: pathlib.Path) -> dict[str, np.ndarray]:
    """`scenes` [S], `images` [N] and `pairs` [P] of a pair list.

    Raises:
      InputError: the file is unreadable, or lacks a key.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            missing = [key for key in KEYS if key not in members]
            if missing:
                raise InputError(
                    f"The split file {path} has no key {missing[0]!r} (found {sorted(members)}, "
                    f"expected {list(KEYS)}): write it again."
                )
            arrays = {}
            for key in KEYS:
                with archive.open(members[key]) as file:
                    arrays[key] = np.atleast_1d(_read_array(file))
            return arrays
    except (*frames.NPZ_ERRORS, pickle.UnpicklingError, AttributeError, IndexError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(
            f"The split file {path} is not a readable npz of scenes, images and pairs (found "
            f"{type(e).__name__}: {e}): copy it again from its source."
        ) from e


def pairs_of_list(
    root: pathlib.Path, path: pathlib.Path, fail: Callable[[InputError], None]
) -> Iterator[tuple[pathlib.Path, tuple[str, str]]]:
    """Yields (folder, (stem 1, stem 2)) for each row of a pair list; `fail` gets bad rows."""
    arrays = read_pair_list(path)
    scenes, stems = (arrays[key].tolist() for key in ("scenes", "images"))
    for number, row in enumerate(arrays["pairs"].tolist()):
        try:
            scene, first, second = (int(index) for index in tuple(row)[:3])
            if min(scene, first, second) < 0:
                raise IndexError
            folder = root / str(scenes[scene])
            pair = str(stems[first]), str(stems[second])
        except (IndexError, TypeError, ValueError):
            fail(
                InputError(
                    f"Row {number} of `pairs` in the split file {path} is {row}, expected (scene < "
                    f"{len(scenes)}, image < {len(stems)}, image < {len(stems)}, score): build the "
                    "file again."
                )
            )
            continue
        if not folder.is_dir():
            fail(
                InputError(
                    f"The scene folder {folder} named by the split file {path.name} does not "
                    "exist: restore it, or remove its pairs from the split file."
                )
            )
            continue
        yield folder, (pair[0].removesuffix(".jpg"), pair[1].removesuffix(".jpg"))
