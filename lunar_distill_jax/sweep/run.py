"""`lunar-distill sweep`: plans, drains the queue, and writes what came of it."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections as mlc

from lunar_distill_jax import atomic
from lunar_distill_jax.progress import say
from lunar_distill_jax.sweep import memory
from lunar_distill_jax.sweep.engine import Queue, Settings
from lunar_distill_jax.sweep.group import missing, run_group
from lunar_distill_jax.sweep.page import write_page
from lunar_distill_jax.sweep.planner import plan_groups
from lunar_distill_jax.sweep.results import add_latency, write_csv
from lunar_distill_jax.sweep.trials import Spec, as_table, read_sweep


def sweep(
    source: str,
    overrides: Sequence[str],
    workdir: str | os.PathLike,
    *,
    storage: str = "",
    command: str = "",
    work: bool = True,
) -> dict[str, dict[str, Any]]:
    """Works on a sweep until nothing of it is left -> {trial: its result}.

    Start it on more hosts with the same storage to help. Finished trials are not repeated; those
    that failed in an earlier start are tried again.

    source:  FILE.py[:mode] with get_config() and get_sweep()
    storage: a database URL; "": sqlite in the workdir, for workers of one machine
    work:    False: only writes what others have found out
    -> also written to WORKDIR/results.csv and report.html

    Raises:
      InputError: the sweep cannot be used, or it is another than the one in the storage.
      Stopped: SIGTERM came; all is saved and the group is given back.
    """
    base, specs = read_sweep(source, overrides)
    workdir = atomic.make_folder(workdir).absolute()
    queue = Queue(
        storage or f"sqlite:///{workdir / 'sweep.db'}",
        pathlib.Path(source.partition(":")[0]).stem,
        Settings(base.sweep.retries, base.sweep.heartbeat),
    )
    table = as_table(specs)
    queue.check_config(table)
    by_name = {spec.name: spec for spec in specs}

    def do(group: str, names: Sequence[str]) -> Mapping[str, Any]:
        say(f"Group {group}: {', '.join(names)}")
        return run_group([by_name[name] for name in names], workdir, group)

    k = queue.rounds()
    if k and queue.unfinished(k - 1):
        k -= 1  # join it
    todo = missing(specs, queue.results()) if k else specs
    if work and todo:
        queue.plan(k, table, planner(base, specs, todo, alone=k > 0))
        queue.drain(k, do)
    results = queue.results()
    write(workdir, base, specs, results, command)
    return results


def planner(
    base: mlc.ConfigDict, specs: Sequence[Spec], todo: Sequence[Spec], *, alone: bool
) -> Callable[[], list[list[Spec]]]:
    """alone: what has failed before gets a program of its own."""
    most = 1 if alone and len(todo) < len(specs) else max(1, base.sweep.most)
    limit = memory.limit_bytes(base.sweep.memory_gb)

    def fits(group: Sequence[Spec]) -> bool:
        return limit is None or memory.peak_bytes(group) <= limit

    return lambda: plan_groups(todo, most, fits)


def write(workdir: pathlib.Path, base, specs, results, command: str) -> None:
    """results.csv and report.html, for what there is so far."""
    if base.sweep.latency:
        add_latency(workdir, specs, results)
    write_csv(workdir / "results.csv", specs, results)
    write_page(workdir / "report.html", base, specs, results, command)


def spawn(arguments: Sequence[str], workers: int, restarts: int) -> None:
    """Workers on this machine, each a process; one that dies is started again.

    arguments: of `lunar-distill sweep` for one worker. Errors are theirs to say.
    """
    command = [sys.executable, "-m", "lunar_distill_jax", *arguments]
    running = {subprocess.Popen(command): restarts for _ in range(workers)}
    while running:
        for child in list(running):
            try:
                code = child.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
            left = running.pop(child)
            if code < 0 and left:
                say(f"A worker died of signal {-code}: another takes its place.")
                running[subprocess.Popen(command)] = left - 1
