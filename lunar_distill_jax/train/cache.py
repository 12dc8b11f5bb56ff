"""The teacher cache on disk: ArrayRecord files of its outputs, and a manifest of whose they are.

A record is one training sample. Where nothing is drawn at random (`Samples.by` is "pair") it is a
pair of the data, and serves every epoch. Where samples are augmented ("step") it is one row of one
step's batch, and a run longer than the cache starts over: it sees the same augmentations again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from lunar_distill_jax import api, atomic
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.stereo import StereoNet
from lunar_distill_jax.progress import COMPILING, Progress
from lunar_distill_jax.train import cache_record
from lunar_distill_jax.train.cached import CACHED, kept_outputs

MANIFEST = "cache.json"
SHARD = 32  # records of a file
OPTIONS = "group_size:1,zstd:1"  # groups of one record: random access
LABELS = {  # what a cache belongs to -> how an error says it
    "teacher": "teacher (its architecture and weights, by digest)",
    "compute": "teacher_compute.dtype",
    "symmetric": "symmetric",
    "frame": "frame size",
    "pairs": "training pairs (their names, by digest)",
    "augmentation": "order and augmentation of the pairs",
}


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples that a cache holds.

    by:       "pair" or "step", see above
    count:    how many
    batch:    samples that `make` yields
    make:     n -> a batch with "image1", "image2" of samples n batch ... (n + 1) batch - 1; those
              past `count` are of no interest
    identity: {"frame", "pairs", "augmentation"} -> text that says which samples these are
    """

    by: str
    count: int
    batch: int
    make: Callable[[int], Mapping[str, np.ndarray]]
    identity: Mapping[str, str]


def teacher_digest(teacher: api.Stereo) -> str:
    """Of its architecture and every parameter: 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(teacher.config.to_dict(), sort_keys=True).encode())
    flat = flax.traverse_util.flatten_dict(teacher.arrays, sep="/")
    for name in sorted(flat):
        array = np.ascontiguousarray(flat[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).reshape(-1).data)
    return digest.hexdigest()[:16]


def identity_of(
    teacher: api.Stereo, samples: Samples, compute: Compute, symmetric: bool
) -> dict[str, Any]:
    """What two runs must share to share a cache."""
    return {
        "teacher": teacher_digest(teacher),
        "compute": compute.dtype,
        "symmetric": symmetric,
        **samples.identity,
    }


def write_cache(
    folder: str | os.PathLike,
    teacher: api.Stereo,
    samples: Samples,
    fields: Collection[str],
    *,
    compute: Compute,
    symmetric: bool,
    exact: bool = False,
) -> dict[str, Any]:
    """Runs the teacher over the samples and writes what it says; goes on where a run was stopped.

    fields: as `cached.kept_fields`; exact: float32 as it is, instead of 16 bits a number
    -> the manifest, with "bytes_per_pair" of the files

    Raises:
      InputError: the folder holds another cache or cannot be written, or the disk is too small.
    """
    folder = atomic.make_folder(folder)
    about = {
        "version": 1,
        "identity": identity_of(teacher, samples, compute, symmetric),
        "by": samples.by,
        "count": samples.count,
        "batch": samples.batch,
        "fields": sorted(fields),
        "exact": exact,
        "shard": SHARD,
    }
    _check_begun(folder, about)
    atomic.write_text(folder / MANIFEST, json.dumps({**about, "complete": False}, indent=1))
    net = StereoNet(teacher.config, compute)

    @jax.jit
    def outputs(variables, image1, image2):
        predictions: Any = net.apply(variables, image1, image2, symmetric=symmetric)
        return kept_outputs(predictions, fields, teacher.config.hooks, symmetric=symmetric)

    variables = jax.device_put(teacher.variables)

    def records(first: int) -> Iterator[bytes]:
        for n in range(first // samples.batch, -(-samples.count // samples.batch)):
            batch = samples.make(n)
            images = batch["image1"], batch["image2"]
            said = jax.device_get(outputs(variables, *images))
            for row in range(samples.batch):
                if first <= n * samples.batch + row < samples.count:
                    seen = cache_record.fingerprint(images[0][row], images[1][row])
                    arrays = {k: v[row] for k, v in said.items()}
                    yield cache_record.pack(arrays, exact=exact, images=seen)

    shards = -(-samples.count // SHARD)
    done = next(i for i in range(shards + 1) if i == shards or not shard_path(folder, i).is_file())
    with Progress(
        samples.count, "cache", done=min(done * SHARD, samples.count), first=COMPILING
    ) as progress:
        source = records(done * SHARD)
        for shard in range(done, shards):
            rows = min(SHARD, samples.count - shard * SHARD)
            _write_shard(shard_path(folder, shard), source, rows, samples.count, progress)
    size = sum(shard_path(folder, i).stat().st_size for i in range(shards))
    about |= {"bytes_per_pair": round(size / samples.count), "complete": True}
    atomic.write_text(folder / MANIFEST, json.dumps(about, indent=1))
    return about


def shard_path(folder: pathlib.Path, index: int) -> pathlib.Path:
    return folder / f"targets-{index:05d}.array_record"


def _write_shard(path, source: Iterator[bytes], rows: int, count: int, progress: Progress) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter  # here: slow to import

    try:
        with atomic.atomic_file(path) as part:
            writer = ArrayRecordWriter(str(part), OPTIONS)
            for row in range(rows):
                record = next(source)
                if row == 0 and not int(path.stem.split("-")[1]):
                    _check_space(path.parent, len(record), count)
                writer.write(record)
                progress.update(1)
            writer.close()
    except OSError as e:
        raise InputError(
            f"Cannot write {path} ({e.strerror}): free some space, or cache less with --steps; the "
            "same command goes on from here."
        ) from e


def _check_space(folder: pathlib.Path, record: int, count: int) -> None:
    free = shutil.disk_usage(folder).free
    if record * count // 4 > free:  # zstd seldom takes away more than that
        raise InputError(
            f"The cache of {count} samples needs up to {record * count / 1e9:.1f} GB, but {folder} "
            f"has {free / 1e9:.1f} GB left: cache less with --steps, or give another folder."
        )


def _check_begun(folder: pathlib.Path, about: Mapping[str, Any]) -> None:
    """Raises InputError unless the folder is empty or holds a part of this very cache."""
    if not (folder / MANIFEST).is_file():
        if any(folder.iterdir()):
            raise InputError(f"The folder {folder} holds files that are no cache: give a new one.")
        return
    begun = _read_manifest(folder)
    _check_identity(folder, begun["identity"], about["identity"], "delete it, or give a new folder")
    for key in ("by", "count", "batch", "fields", "exact", "shard"):
        if begun.get(key) != about[key]:
            raise InputError(
                f"The cache in {folder} was begun with {key} {begun.get(key)}, and now it is "
                f"{about[key]}: delete it, or give a new folder."
            )


def _read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        about = json.loads(path.read_text())
        if about["version"] == 1 and isinstance(about["identity"], dict):
            return about
    except FileNotFoundError as e:
        raise InputError(
            f"There is no teacher cache in {folder}: write one with `lunar-distill cache`."
        ) from e
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path} is no manifest of a teacher cache: write the cache again.")


def _check_identity(folder, theirs: Mapping[str, Any], ours: Mapping[str, Any], remedy: str):
    for key, label in LABELS.items():
        if theirs.get(key) != ours.get(key):
            raise InputError(
                f"The cache in {folder} is of another {label}: {theirs.get(key)}, but this run has "
                f"{ours.get(key)}: {remedy}."
            )


class TeacherCache:
    """A complete cache, read with grain's ArrayRecord source.

    Raises:
      InputError: there is none, it is not complete, or it is of another teacher, other samples or
        without outputs that a loss needs; the error says which.
    """

    def __init__(
        self, folder: str | os.PathLike, identity: Mapping[str, Any], fields: Collection[str]
    ):
        import grain  # here: seconds to import

        self.folder = pathlib.Path(folder)
        self.about = about = _read_manifest(self.folder)
        remedy = "use the teacher and settings of the cache, or write another with `cache`"
        _check_identity(self.folder, about["identity"], identity, remedy)
        if not about["complete"]:
            raise InputError(
                f"The cache in {folder} is not complete: run `lunar-distill cache` again, it goes "
                "on where it stopped."
            )
        if missing := sorted(set(fields) - set(about["fields"])):
            raise InputError(
                f"The cache in {folder} holds {', '.join(about['fields'])}, but the losses also "
                f"need {', '.join(missing)}: write another with this config."
            )
        shards = range(-(-about["count"] // about["shard"]))
        paths = [shard_path(self.folder, i) for i in shards]
        if lost := [p.name for p in paths if not p.is_file()]:
            raise InputError(f"The cache in {folder} has lost {lost[0]}: run `cache` again.")
        self._records = grain.sources.ArrayRecordDataSource([str(p) for p in paths])
        if len(self._records) != about["count"]:
            raise InputError(
                f"The cache in {folder} has {len(self._records)} records, expected "
                f"{about['count']}: write it again."
            )
        self._fields = tuple(fields)

    def step_of(self, step: int) -> int:
        """The step whose batch a step sees: another one where the cache starts over."""
        if self.about["by"] == "pair":
            return step
        return step % (self.about["count"] // self.about["batch"])

    def with_targets(
        self, batch: Mapping[str, np.ndarray], rows: Sequence[int] | np.ndarray
    ) -> dict[str, np.ndarray]:
        """The batch and what the teacher says of it.

        rows: which record belongs to each sample: pairs' numbers, or step_of(step) batch + row

        Raises:
          InputError: a sample's images are not those the teacher was shown.
        """
        found = []
        for index, record in enumerate(self._records.__getitems__([int(r) for r in rows])):
            arrays, images = cache_record.unpack(record)
            if images != cache_record.fingerprint(batch["image1"][index], batch["image2"][index]):
                raise InputError(
                    f"The cache in {self.folder} was written for other images than those of record "
                    f"{rows[index]}: the data has changed, write the cache again."
                )
            found.append({k: v for k, v in arrays.items() if k.split("_")[0] in self._fields})
        stacked = {CACHED + k: np.stack([f[k] for f in found]) for k in found[0]}
        return {**batch, **stacked}
