"""Networks out of a state: their files, and the best of each data set."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lunar_distill_jax import api
from lunar_distill_jax.train.state import Student, TrainState
from lunar_distill_jax.train.watching import Log, Watcher

BEST = "best"


def networks_of(
    state: TrainState,
    begun: Mapping[str, Sequence[api.Stereo]],
    compiled: Mapping[str, Student],
    folders: Mapping[str, tuple[str, int]],
) -> dict[str, dict[str, api.Stereo]]:
    """{"raw": {folder: network}, "ema": the same of those with a running mean, if any has one}

    A student without a running mean is in "ema" with what it has.
    """
    state = on_host(state)
    out: dict[str, dict[str, api.Stereo]] = {}
    averaged = any(student.optim.ema for student in compiled.values())
    for weights in ("raw", *(("ema",) if averaged else ())):
        out[weights] = {}
        for folder, (name, trial) in folders.items():
            params, stats = state.network(name, trial, ema=weights == "ema")
            given = begun[name][trial]
            out[weights][folder] = api.Stereo(given.config, params, given.meta, stats)
    return out


def on_host(tree: Any) -> Any:
    """Whole arrays on this process, also of what other processes hold a part of."""

    def fetch(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            if not leaf.is_fully_replicated:
                whole = NamedSharding(leaf.sharding.mesh, P())  # pyright: ignore
                leaf = jax.jit(lambda x: x, out_shardings=whole)(leaf)
            return np.asarray(leaf.addressable_data(0))
        return leaf

    return jax.tree.map(fetch, tree)


def write_networks(
    workdir: pathlib.Path,
    networks: Mapping[str, api.Stereo],
    file: str,
    teacher: api.Stereo | None,
    note: str,
) -> dict[str, api.Stereo]:
    """Writes WORKDIR/FOLDER/`file` for each; -> the networks as written, with their licence."""
    out = {}
    for folder, network in networks.items():
        meta = {**network.meta, "trained": note}
        if teacher is not None:
            # A student is a derived work of its teacher.
            meta["teacher"] = teacher.meta.get("source", teacher.config.name)
            meta["licence"] = teacher.meta.get("licence", "unknown")
            # Rolls that its teacher does not know it has not learned either.
            meta |= {k: teacher.meta[k] for k in ("turns",) if k in teacher.meta}
        out[folder] = dataclasses.replace(network, meta=meta)
        if jax.process_index() == 0:
            api.save(out[folder], workdir / folder / file)
    return out


class Best:
    """The best of each data set so far; data sets are never mixed.

    table: {data set: {"step", "value", "folders": {folder: {"step", "value", "weights"}}}}; the
           outer ones are of the mean over all trials of the run, and choose the checkpoint that
           stays; the inner ones choose WORKDIR/FOLDER/best/SET.safetensors
    """

    def __init__(
        self, table: Mapping[str, Any], metric: str, sign: int, teacher: api.Stereo | None
    ):
        self.table, self._metric, self._sign = dict(table), metric, sign
        self._teacher = teacher
        self.steps = {name: found["step"] for name, found in self.table.items()}

    def evaluate(
        self,
        watcher: Watcher,
        log: Log,
        workdir: pathlib.Path,
        step: int,
        networks: Mapping[str, Mapping[str, api.Stereo]],
    ) -> None:
        """Evaluates raw and averaged weights on every set; keeps what is better than before."""
        assert watcher.evaluate is not None
        values: dict[str, dict[str, list[float]]] = {}
        for weights, of in networks.items():
            for name, results in watcher.evaluate(of).items():
                for folder, metrics in results.items():
                    log.evaluation(folder, name, weights, step, metrics)
                    value = float(metrics[self._metric])
                    values.setdefault(name, {}).setdefault(folder, []).append(value)
                    table = self.table.setdefault(name, {"step": 0, "value": None, "folders": {}})
                    if self._better(value, table["folders"].get(folder, {}).get("value")):
                        found = {"step": step, "value": value, "weights": weights}
                        table["folders"][folder] = found
                        note = f"step {step}, {weights} weights, the best on {name}"
                        file = f"{BEST}/{name}.safetensors"
                        write_networks(workdir, {folder: of[folder]}, file, self._teacher, note)
        for name, by_folder in values.items():
            mean = float(
                np.mean([self._sign * max(self._sign * v for v in vs) for vs in by_folder.values()])
            )
            if self._better(mean, self.table[name]["value"]):
                self.table[name] |= {"step": step, "value": mean}
                self.steps[name] = step

    def _better(self, value: float, before: float | None) -> bool:
        if not np.isfinite(value):
            return False
        return before is None or self._sign * value > self._sign * before
