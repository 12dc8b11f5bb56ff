"""What a run leaves for people to look at: rows of numbers, TensorBoard events, a profile."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np

from lunar_distill_jax import api, atomic

METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
EVENTS, PROFILE, REQUEST = "tensorboard", "profile", "profile.request"
Networks = Mapping[str, api.Stereo]


@dataclasses.dataclass(frozen=True)
class Watcher:
    """What those above the training loop add to it; each may be left out.

    on_log:   every row of every trial at every log step
    evaluate: networks by folder -> {data set: {folder: {metric: value}}}
    best_by:  the metric that chooses the best, and +1 where higher is better or -1
    pictures: networks by folder -> {folder: {name: PNG}}
    refresh:  after rows were written: the run's page
    """

    on_log: Callable[[dict[str, float]], None] = lambda row: None
    evaluate: Callable[[Networks], Mapping[str, Mapping[str, dict]]] | None = None
    best_by: tuple[str, int] = ("point_error_pct", -1)
    pictures: Callable[[Networks], Mapping[str, Mapping[str, bytes]]] | None = None
    refresh: Callable[[bool], None] = lambda finished: None


class Log:
    """Rows and events of a run's folders; only the first process writes.

    start: the step that the run goes on from; what an earlier part of it wrote of later steps is
           dropped, as it comes again
    """

    def __init__(
        self, workdir: pathlib.Path, folders: Collection[str], start: int, *, tensorboard: bool
    ):
        self._workdir, self._writers = workdir, {}
        self._on = jax.process_index() == 0
        for folder in folders if self._on else ():
            atomic.make_folder(workdir / folder)
            for name in (METRICS, EVALUATIONS):
                _forget_after(workdir / folder / name, start)
            if tensorboard:
                from tensorboardX import SummaryWriter  # here: only who writes events pays for it

                self._writers[folder] = SummaryWriter(
                    str(workdir / folder / EVENTS), purge_step=start + 1, flush_secs=30
                )

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_) -> None:
        for writer in self._writers.values():
            writer.close()

    def row(self, folder: str, row: Mapping[str, float]) -> None:
        self._append(folder, METRICS, row)
        self._scalars(folder, "train", int(row["step"]), row)

    def evaluation(self, folder: str, name: str, weights: str, step: int, values: Mapping) -> None:
        """One data set's metrics of one trial; weights: "raw" or "ema"."""
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
        row = {"step": step, "set": name, "weights": weights, **numbers}
        self._append(folder, EVALUATIONS, row)
        self._scalars(folder, f"{name}/{weights}", step, numbers)

    def picture(self, folder: str, name: str, step: int, png: bytes) -> None:
        if not self._on:
            return
        atomic.write_bytes(self._workdir / folder / "pictures" / f"step{step}_{name}.png", png)
        if folder in self._writers:
            from PIL import Image

            pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
            self._writers[folder].add_image(name, pixels, step, dataformats="HWC")

    def _append(self, folder: str, name: str, row: Mapping[str, Any]) -> None:
        if self._on:
            with open(self._workdir / folder / name, "a") as file:
                file.write(json.dumps(row) + "\n")

    def _scalars(self, folder: str, prefix: str, step: int, values: Mapping[str, float]) -> None:
        if folder in self._writers:
            for key, value in values.items():
                if key != "step" and np.isfinite(value):
                    self._writers[folder].add_scalar(f"{prefix}/{key}", value, step)


class Profiler:
    """A trace of some steps into WORKDIR/profile, at a set step or when REQUEST appears."""

    def __init__(self, workdir: pathlib.Path, start: int, steps: int):
        self._workdir, self._start, self._steps = workdir, start, steps
        self._until: int | None = None

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_) -> None:
        if self._until is not None:
            jax.profiler.stop_trace()

    def after(self, step: int, result: Any, *, look: bool) -> None:
        """Called after each step with something that it computed; `look` for the request's file."""
        if self._until is not None and step >= self._until:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._until = None
        elif self._until is None:
            request = self._workdir / REQUEST
            asked = look and request.exists()
            if asked:
                request.unlink(missing_ok=True)
            if asked or (self._start and step == self._start):
                jax.block_until_ready(result)
                jax.profiler.start_trace(str(self._workdir / PROFILE))
                self._until = step + self._steps


def read_history(workdir: str | os.PathLike, name: str = METRICS) -> list[dict[str, Any]]:
    """The logged rows of a run, oldest first."""
    path = pathlib.Path(workdir) / name
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the run was killed while it wrote this line
            break
    return rows


def _forget_after(path: pathlib.Path, step: int) -> None:
    if path.is_file():
        kept = [row for row in read_history(path.parent, path.name) if row["step"] <= step]
        atomic.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
