"""Config files: Python with `get_config(mode) -> ConfigDict`, its keys locked, set by flags."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

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
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
    try:
        values(["train", f"--config={source}", *overrides])
        config = values["config"].value
    except Exception as e:  # the file is the user's program: whatever it raises is about that file
        first = " ".join(str(e).split()) or type(e).__name__
        raise InputError(f"The config {source} cannot be used: {first}") from e
    if not isinstance(config, mlc.ConfigDict):
        raise InputError(
            f"{path}: get_config() returned {type(config).__name__}, expected a ConfigDict."
        )
    return config
