"""The trials of a sweep: a config and what `get_sweep()` yields, each an experiment with a name."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections as mlc

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.runs.start import check_run
from lunar_distill_jax.train.config import check_key, read_config

OF_A_TRIAL = ("student", "decoder", "init", "calibration", "seed", "optim", "loss", "compute")


@dataclasses.dataclass(frozen=True)
class Spec:
    """One trial: its name, what it changes ({"optim.lr": 1e-4}), and its whole config."""

    name: str
    changes: Mapping[str, Any]
    config: mlc.ConfigDict


def read_sweep(source: str, overrides: Sequence[str] = ()) -> tuple[mlc.ConfigDict, list[Spec]]:
    """-> (the config that all begin with, the trials), from `FILE.py[:mode]`.

    Trials differ in their seed but see one stream of batches: that of `data_seed`, or else of the
    config's own seed.

    Raises:
      InputError: the file has no get_sweep(), it yields nothing, the same trial twice, or a key
        that the config does not have.
    """
    base = check_run(read_config(source, overrides))
    if base.data_seed < 0:
        base.data_seed = base.seed
    path, _, mode = source.partition(":")
    function = runpy.run_path(path).get("get_sweep")
    if function is None:
        raise InputError(
            f"The config {path} has no get_sweep(): let it yield a dict of changes for each trial, "
            'such as {"student": "s2", "seed": 1}.'
        )
    takes_mode = bool(inspect.signature(function).parameters)
    specs: dict[str, Spec] = {}
    for changes in function(mode) if takes_mode and mode else function():
        changes = dict(changes)
        name = str(changes.pop("name", "")) or name_of(changes)
        config = base.copy_and_resolve_references()
        for key, value in changes.items():
            _set(source, config, key, value)
        if name in specs:
            raise InputError(f"The sweep {source} has two trials {name}: let them differ.")
        specs[name] = Spec(name, changes, check_run(config))
    if not specs:
        raise InputError(f"The sweep {source} has no trial: let get_sweep() yield at least one.")
    return base, list(specs.values())


def name_of(changes: Mapping[str, Any]) -> str:
    """ "s2-svd-seed1": values, with the key's last word before numbers; safe as a folder."""
    words = []
    for key, value in changes.items():
        if isinstance(value, str) and value:
            words.append(value)
        else:
            value = "-".join(map(str, value)) if isinstance(value, list | tuple) else value
            words.append(f"{key.rpartition('.')[2]}{value}")
    return re.sub(r"[^\w.@+=-]+", "_", "-".join(words)) or "base"


def _set(source: str, config: mlc.ConfigDict, key: str, value: Any) -> None:
    *above, last = key.split(".")
    check_key(source, config, [*above, last])
    node = config
    for part in above:
        node = node[part]
    try:
        node[last] = value
    except (TypeError, ValueError) as e:
        raise InputError(f"The sweep {source} sets {key} to {value!r}: {e}") from e


def as_table(specs: Sequence[Spec]) -> dict[str, Any]:
    """{trial: its whole config} as JSON has it, by which a changed sweep is known."""
    return {spec.name: json.loads(json.dumps(spec.config.to_dict(), default=str)) for spec in specs}
