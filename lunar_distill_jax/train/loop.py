"""The training loop: read this first."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from lunar_distill_jax import api, atomic
from lunar_distill_jax.data.batches import check_pairs, training_batches
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.losses.distill import TERMS
from lunar_distill_jax.progress import Progress
from lunar_distill_jax.train import optim
from lunar_distill_jax.train.checkpoint import Checkpoints
from lunar_distill_jax.train.step import (
    TrainState,
    ground_truth_targets,
    init_state,
    make_train_step,
    teacher_targets,
)
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
    """Trains `student` on the teacher's outputs for `pairs`; without a teacher, on ground truth.

    config:  ConfigDict with seed, steps, batch, augment, matches, loss {term: weight}, optim {lr,
             final, warmup, weight_decay, clip}, log_every, checkpoint_every
    workdir: gets checkpoints/, metrics.jsonl and, at the end, student.safetensors; where it holds
             checkpoints of an unfinished run, that run goes on
    on_log:  called with {"step", "loss", terms, "lr"} at every log step

    Raises:
      InputError: a setting cannot be used, there are no pairs or they differ in size, or `workdir`
        cannot be written or holds checkpoints of another network.
      FloatingPointError: the loss is not finite.
    """
    weights = check_settings(config, has_teacher=teacher is not None)
    check_pairs(pairs)
    workdir = atomic.make_folder(workdir)

    # The step: one program with the teacher inside.
    target_fn = ground_truth_targets if teacher is None else teacher_targets(teacher.config)
    schedule = optim.learning_rate(
        peak=config.optim.lr,
        final=config.optim.final,
        warmup=config.optim.warmup,
        steps=config.steps,
    )
    tx = optim.make_optimizer(
        schedule, weight_decay=config.optim.weight_decay, clip=config.optim.clip
    )
    step_fn = make_train_step(student.config, target_fn, tx, weights)
    teacher_params = None if teacher is None else teacher.params

    # The state. Resume order: the workdir's checkpoint, then the student as given.
    width = teacher.config.encoder.width if teacher and weights["features"] else None
    state: TrainState = init_state(
        student.params,
        tx,
        seed=config.seed,
        student_width=student.config.encoder.width,
        teacher_width=width,
    )
    with Checkpoints(workdir / "checkpoints", config.checkpoint_every) as checkpoints:
        state = checkpoints.restore(state)
        first = int(state.step)
        _forget_after(workdir, first)
        batches = training_batches(
            pairs,
            seed=config.seed,
            batch=config.batch,
            augmented=config.augment,
            matching=config.matches if weights["matching"] else 0,
            start=first,
        )

        # The loop.
        with (
            Progress(config.steps, "train", done=first) as progress,
            open(workdir / METRICS, "a") as log,
        ):
            for step in range(first + 1, config.steps + 1):
                state, metrics = step_fn(state, teacher_params, next(batches))
                row = None
                # A state is looked at before it is kept: the run must not resume from a broken one.
                due = step % config.log_every == 0 or step % config.checkpoint_every == 0
                if due or step in (1, config.steps):
                    row = {"step": step, **{k: float(v) for k, v in metrics.items()}}
                    row["lr"] = float(schedule(step - 1))
                    if not np.isfinite(row["loss"]):
                        raise FloatingPointError(
                            f"The loss is {row['loss']} at step {step}; it was last finite "
                            f"{config.log_every} steps or less before. Checkpoints up to then are "
                            f"in {workdir}."
                        )
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                    on_log(row)
                progress.update(1, row and {"loss": row["loss"], "lr": row["lr"]})
                checkpoints.save(state)
        checkpoints.save(state, force=True)

    meta = {**student.meta, "trained": f"{config.steps} steps of batch {config.batch}"}
    if teacher is not None:
        # A student is a derived work of its teacher.
        meta["teacher"] = teacher.meta.get("source", teacher.config.name)
        meta["licence"] = teacher.meta.get("licence", "unknown")
    trained = api.Stereo(student.config, jax.device_get(state.params["student"]), meta)
    api.save(trained, workdir / STUDENT)
    return trained


def check_settings(config, *, has_teacher: bool) -> dict[str, float]:
    """The loss weights, {term: weight} with every term present.

    Raises:
      InputError: an unknown term, the feature loss without a teacher, or a number out of range.
    """
    least = {"seed": 0, "steps": 1, "batch": 1, "log_every": 1, "checkpoint_every": 1}
    for key, value in least.items():
        if config[key] < value:
            raise InputError(f"config.{key} is {config[key]}: give {value} or more.")
    loss = config.loss
    unknown = sorted(set(loss) - set(TERMS))
    if unknown:
        raise InputError(f"Unknown loss {', '.join(unknown)}: choose from {', '.join(TERMS)}.")
    weights = {term: float(loss.get(term, 0.0)) for term in TERMS}
    if weights["features"] and not has_teacher:
        raise InputError(
            f"loss.features is {weights['features']:g} but there is no teacher to imitate: set it "
            "to 0."
        )
    if weights["matching"] and config.matches < 1:
        raise InputError(
            f"config.matches is {config.matches} but loss.matching is on: give at least 1."
        )
    return weights


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
