"""Config files: Python with `get_config(mode) -> ConfigDict`, its keys locked, set by flags."""

from __future__ import annotations

import difflib
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections as mlc
from absl import flags
from ml_collections import config_flags

from lunar_distill_jax.errors import InputError


def read_config(source: str, overrides: Sequence[str] = ()) -> mlc.ConfigDict:
    """Reads `FILE.py[:mode]` and applies overrides such as "--config.optim.lr=1e-4".

    Raises:
      InputError: there is no such file or mode, it does not define a config, or an override names a
        key that the config does not have, or a value of another type.
    """
    path = pathlib.Path(source.partition(":")[0])
    if not path.is_file():
        raise InputError(
            f"There is no config file {path}: give the path of a .py with get_config()."
        )
    wrong = [o for o in overrides if not re.fullmatch(r"--config(\.\w+)+=.*", o)]
    if wrong:
        raise InputError(f"Cannot read {wrong[0]!r}: overrides look like --config.optim.lr=1e-4.")
    config = _parse(source, ())
    if not isinstance(config, mlc.ConfigDict):
        raise InputError(
            f"{path}: get_config() returned {type(config).__name__}, expected a ConfigDict."
        )
    for override in overrides:
        check_key(source, config, override.partition("=")[0].split(".")[1:])
    return _parse(source, overrides) if overrides else config


def _parse(source: str, overrides: Sequence[str]) -> Any:
    values = flags.FlagValues()
    argv = ["train", f"--config={source}", *overrides]
    # Without sys_argv it looks for the overrides in the command line of the process.
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=argv)
    try:
        values(argv)
        return values["config"].value
    except Exception as e:  # the file is the user's program: whatever it raises is about that file
        kind = "" if isinstance(e, flags.Error) else f"{type(e).__name__}: "
        last = (
            kind + (str(e).strip().splitlines() or [""])[-1]
        )  # a flags.Error may hold a traceback
        raise InputError(f"The config {source} cannot be used: {last}") from e


def check_key(source: str, config: mlc.ConfigDict, key: Sequence[str]) -> None:
    """Raises InputError for a key that the config does not have.

    What is suggested: that key in another table, else the nearest of its table, else of any other.
    """
    node: Any = config
    for depth, part in enumerate(key):
        known = sorted(node) if isinstance(node, mlc.ConfigDict) else []
        if part not in known:
            paths = [path.split(".") for path in _paths(config)]
            close = difflib.get_close_matches(part, known, 1)
            closest = difflib.get_close_matches(part, {path[-1] for path in paths}, 1)
            near = [".".join(path) for path in paths if path[-1] == part] or close
            near = near or [".".join(path) for path in paths if path[-1] in closest]
            hint = f"there is {', '.join(known) or 'none'}."
            if near:
                hint = f"did you mean {' or '.join(near)}?"
            where = ".".join(("config", *key[:depth]))
            raise InputError(f"The config {source} has no key {part} in {where}: {hint}")
        node = node[part]


def _paths(table: mlc.ConfigDict, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys, tables among them."""
    for key, value in table.items():
        yield f"{prefix}{key}"
        if isinstance(value, mlc.ConfigDict):
            yield from _paths(value, f"{prefix}{key}.")
