"""The training loop: read this first."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lunar_distill_jax import api, atomic
from lunar_distill_jax.data.batches import check_pairs, training_batches
from lunar_distill_jax.progress import Progress
from lunar_distill_jax.train import forward, sharding
from lunar_distill_jax.train.cache_samples import cached_batches, open_cache
from lunar_distill_jax.train.checkpoint import Checkpoints
from lunar_distill_jax.train.plan import check_settings, complete
from lunar_distill_jax.train.state import Student, TrainState, Trial, init_state
from lunar_distill_jax.train.step import make_train_step
from lunar_distill_jax.types import StereoPair

METRICS = "metrics.jsonl"
STUDENT = "student.safetensors"


def train(
    config,
    workdir: str | os.PathLike,
    pairs: Sequence[StereoPair],
    *,
    teacher: api.Stereo | None,
    student: api.Stereo,
    on_log: Callable[[dict[str, float]], None] = lambda row: None,
) -> api.Stereo:
    """Trains one student in one run: `train_together` of a family of one, written to `workdir`."""
    (trained,) = train_together(
        config, workdir, pairs, teacher=teacher, students={"": [student]}, on_log=on_log
    ).values()
    return trained


def train_together(
    config,
    workdir: str | os.PathLike,
    pairs: Sequence[StereoPair],
    *,
    teacher: api.Stereo | None,
    students: Mapping[str, Sequence[api.Stereo]],
    on_log: Callable[[dict[str, float]], None] = lambda row: None,
) -> dict[str, api.Stereo]:
    """Trains students on the teacher's outputs for `pairs`; without a teacher, on ground truth.

    All of them see the same batches, and the teacher runs once for all.

    config:   ConfigDict, see `plan.base_config`; what it leaves out has the default there
    workdir:  gets checkpoints/ and, in a folder for each student NAME, and in it for each trial
              trialK where there are several, metrics.jsonl and at the end student.safetensors;
              where it holds checkpoints of an unfinished run, that run goes on. The name "" is the
              workdir itself
    students: {name: the networks that its trials begin with}, one for each of `config.trials`, or
              one for all of them
    on_log:   called with {"step", "loss", terms, "lr", "grad_norm", "skipped"} of every trial at
              every log step
    -> {folder: trained network}

    Raises:
      InputError: a setting cannot be used, there are no pairs or they differ in size, or `workdir`
        cannot be written or holds checkpoints of another network.
      FloatingPointError: no trial has a finite loss any more.
    """
    plan = check_settings(config, has_teacher=teacher is not None)
    config = complete(config)
    check_pairs(pairs)
    mesh = _mesh(config)
    compiled, firsts = {}, {}
    for name, networks in students.items():
        compiled[name] = Student(networks[0].config, plan.optim, plan.on, plan.compute)
        begun = networks if len(networks) > 1 else list(networks) * len(plan.runs)
        firsts[name] = [
            Trial(net.params, run.weights, run.lr, run.seed, net.batch_stats)
            for net, run in zip(begun, plan.runs, strict=True)
        ]

    # The state. Resume order: the workdir's checkpoint, then the students as given.
    state = init_state(
        {name: (compiled[name], firsts[name]) for name in students},
        teacher and teacher.config.encoder.width,
    )
    teacher_variables = None if teacher is None else jax.tree.map(np.asarray, teacher.variables)

    # The step: one program with the teacher and every student inside.
    cache = None
    if teacher is not None and config.cache:
        cache, target_fn, teacher_variables = open_cache(config, plan, teacher, pairs)
    elif teacher is None:
        target_fn = forward.ground_truth(plan.on, symmetric=config.symmetric)
    else:
        target_fn = forward.live_teacher(
            teacher.config,
            plan.on,
            plan.settings,
            symmetric=config.symmetric,
            matches=config.matches,
            compute=plan.teacher_compute,
        )
    step_fn = make_train_step(
        compiled,
        target_fn,
        plan.settings,
        symmetric=config.symmetric,
        accumulate=config.accumulate,
        mesh=mesh,
        state=state,
        teacher=teacher_variables,
    )
    by_batch = None
    if mesh is not None:
        sharding.check_batch(config.batch, mesh, config.accumulate)
        by_batch = NamedSharding(mesh, P("data"))
        state = sharding.put(state, sharding.state_sharding(state, mesh))
        teacher_variables = sharding.put(
            teacher_variables, sharding.params_sharding(teacher_variables, mesh)
        )
    workdir = atomic.make_folder(workdir)
    folders = _folders(students, len(plan.runs))
    with Checkpoints(workdir / "checkpoints", config.checkpoint_every) as checkpoints:
        state = checkpoints.restore(state)
        first = int(state.step)
        for folder in folders:
            atomic.make_folder(workdir / folder)
            _forget_after(workdir / folder, first)
        matches = config.matches if plan.true_matches else 0
        if cache is not None:
            batches = cached_batches(config, pairs, cache, matches=matches, start=first)
        else:
            batches = training_batches(
                pairs,
                seed=config.seed,
                batch=config.batch,
                augmented=config.augment,
                matching=matches,
                start=first,
            )

        # The loop.
        skipped = {folder: _skipped(state, *at) for folder, at in folders.items()}
        looked = first
        with Progress(config.steps, "train", done=first) as progress:
            for step in range(first + 1, config.steps + 1):
                batch = next(batches)
                if by_batch is not None:
                    batch = sharding.put(batch, jax.tree.map(lambda _: by_batch, batch))
                state, metrics = step_fn(state, teacher_variables, batch)
                shown = None
                due = step % config.log_every == 0 or step % config.checkpoint_every == 0
                if due or step in (1, config.steps):
                    metrics = jax.device_get(metrics)
                    dead = 0
                    for folder, (name, trial) in folders.items():
                        values = {k: float(v[trial]) for k, v in metrics[name].items()}
                        row = {"step": step, **values, "skipped": int(values["skipped"])}
                        dead += row["skipped"] - skipped[folder] == step - looked
                        skipped[folder] = row["skipped"]
                        with open(workdir / folder / METRICS, "a") as log:
                            log.write(json.dumps(row) + "\n")
                        on_log(row)
                        shown = shown or {"loss": row["loss"], "lr": row["lr"]}
                    if dead == len(folders):
                        raise FloatingPointError(
                            f"The loss or its gradient is not finite at step {step}; it was last "
                            f"finite at step {looked} or before. The state from then is kept in "
                            f"{workdir}."
                        )
                    looked = step
                progress.update(1, shown)
                checkpoints.save(state)
        checkpoints.save(state, force=True)

    trained = {}
    for folder, (name, trial) in folders.items():
        given = students[name][trial if len(students[name]) > 1 else 0]
        params, stats = state.network(name, trial, ema=bool(config.optim.ema))
        meta = {**given.meta, "trained": f"{config.steps} steps of batch {config.batch}"}
        if teacher is not None:
            # A student is a derived work of its teacher.
            meta["teacher"] = teacher.meta.get("source", teacher.config.name)
            meta["licence"] = teacher.meta.get("licence", "unknown")
        trained[folder] = api.Stereo(given.config, params, meta, stats)
        api.save(trained[folder], workdir / folder / STUDENT)
    return trained


def _mesh(config):
    """None where one device does it all: then nothing needs a place."""
    if config.mesh.to_dict() in ({"trial": 1, "data": 1, "model": 1},):
        return None
    mesh = sharding.make_mesh(**config.mesh.to_dict())
    return None if mesh.size == 1 and jax.process_count() == 1 else mesh


def _folders(students: Mapping[str, Any], trials: int) -> dict[str, tuple[str, int]]:
    """{folder: (student, trial)}"""
    return {
        "/".join(filter(None, (name, f"trial{i}" if trials > 1 else ""))): (name, i)
        for name in students
        for i in range(trials)
    }


def _skipped(state: TrainState, name: str, trial: int) -> int:
    return int(np.asarray(state.students[name].skipped)[trial])


def read_history(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """The logged rows of a run, oldest first."""
    path = pathlib.Path(workdir) / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the run was killed while it wrote this line
            break
    return rows


def _forget_after(workdir: pathlib.Path, step: int) -> None:
    """Drops the rows that a killed run logged after its last checkpoint: they come again."""
    if (workdir / METRICS).is_file():
        kept = [row for row in read_history(workdir) if row["step"] <= step]
        atomic.write_text(workdir / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
