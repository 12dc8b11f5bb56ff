"""A workdir belongs to one run at a time, and to one config for ever."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax

from lunar_distill_jax import atomic
from lunar_distill_jax.errors import InputError

LOCK, CONFIG = ".lock", "run.json"  # config.json would be Hugging Face's
# How much of a machine is used, and for how many trials at once: no result depends on it.
OF_THE_MACHINE = ("mesh", "pipeline.threads", "pipeline.workers", "sweep")
# What may change between the parts of a run: none of it moves a parameter.
FREE = (
    *OF_THE_MACHINE,
    *("log_every", "checkpoint_every", "keep_last", "keep_every", "pictures_every"),
    *("evaluate_every", "sets", "best_by", "profile", "tensorboard"),
)


@contextlib.contextmanager
def locked(workdir: str | os.PathLike) -> Iterator[None]:
    """Holds the workdir; the system lets go of it when this process ends, however it ends.

    Of several processes of one run, the first one holds it for all.

    Raises:
      InputError: another run holds it.
    """
    if jax.process_index():
        yield
        return
    with open(pathlib.Path(workdir) / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(
                f"The workdir {workdir} is in use by {holder}: wait until that run ends, or give "
                "another --workdir."
            ) from e
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def check_free(workdir: str | os.PathLike) -> None:
    """Raises InputError if another run holds the workdir; called before long work."""
    if (pathlib.Path(workdir) / LOCK).is_file():
        with locked(workdir):
            pass


def check_config(
    workdir: str | os.PathLike, config: Mapping[str, Any], *, write: bool = True
) -> None:
    """Compares the config with the workdir's; where there is none yet, it is written, or nothing
    is done.

    Raises:
      InputError: the run in `workdir` was begun with other settings; the first is named with both
        values.
    """
    path = pathlib.Path(workdir) / CONFIG
    now = flat(json.loads(json.dumps(config, default=str)))
    if path.is_file():
        before = flat(json.loads(path.read_text()))
        for key, old, new in changes(before, now, FREE):
            raise InputError(
                f"The run in {workdir} was begun with {key} = {old}, and now it is {new}: give "
                f"--config.{key}={old} to go on with it, or another --workdir."
            )
    text = json.dumps(config, indent=2, default=str) + "\n"
    if write and jax.process_index() == 0 and (not path.is_file() or path.read_text() != text):
        atomic.write_text(path, text)


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str]
) -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value now) of each key that differs and is not free to.

    before, now: of `flat`; free: keys, or tables of which every key is free
    """
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, "absent"), now.get(key, "absent")
        if old != new and not any(key == f or key.startswith(f"{f}.") for f in free):
            yield key, old, new


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested tables; a list is one value."""
    out: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
