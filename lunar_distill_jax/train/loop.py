"""The training loop: read this first."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lunar_distill_jax import api, atomic
from lunar_distill_jax.progress import COMPILING, Progress, say
from lunar_distill_jax.train import feed, forward, preempt, sharding
from lunar_distill_jax.train import workdir as folders_of
from lunar_distill_jax.train.cache_samples import open_cache
from lunar_distill_jax.train.checkpoint import Checkpoints, check_start
from lunar_distill_jax.train.finish import Best, networks_of, on_host, write_networks
from lunar_distill_jax.train.options import complete_run
from lunar_distill_jax.train.plan import Plan, check_settings
from lunar_distill_jax.train.state import Student, TrainState, Trial, init_state
from lunar_distill_jax.train.step import make_train_step
from lunar_distill_jax.train.watching import METRICS, Log, Profiler, Watcher, read_history
from lunar_distill_jax.types import StereoPair

__all__ = ["METRICS", "STUDENT", "read_history", "train", "train_together"]
STUDENT = "student.safetensors"
PATIENCE = 10  # steps without a finite update, after which a run ends


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
        config,
        workdir,
        pairs,
        teacher=teacher,
        students={"": [student]},
        watcher=Watcher(on_log=on_log),
    ).values()
    return trained


def train_together(
    config,
    workdir: str | os.PathLike,
    pairs: Sequence[StereoPair],
    *,
    teacher: api.Stereo | None,
    students: Mapping[str, Sequence[api.Stereo]],
    plans: Mapping[str, Plan] | None = None,
    watcher: Watcher = Watcher(),  # noqa: B008  # frozen
) -> dict[str, api.Stereo]:
    """Trains students on the teacher's outputs for `pairs`; without a teacher, on ground truth.

    All of them see the same batches, and the teacher runs once for all.

    config:   ConfigDict, see `options.run_config`; what it leaves out has the default there
    workdir:  gets checkpoints/ and, in a folder for each student NAME, and in it for each trial
              trialK where there are several, metrics.jsonl and at the end student.safetensors;
              where it holds checkpoints of an unfinished run, that run goes on. The name "" is the
              workdir itself
    students: {name: the networks that its trials begin with}, one for each of its plan's runs, or
              one for all of them
    plans:    {name: its plan}, where students differ in more than their architecture; by default
              all have the config's
    watcher:  what is called beside the training
    -> {folder: trained network}

    Raises:
      InputError: a setting cannot be used, there are no pairs or they differ in size, `workdir`
        cannot be written, is full, in use, or holds the run of another network or config.
      FloatingPointError: no trial has had a finite loss for PATIENCE steps, or ever.
      Stopped: SIGTERM came; all is saved.
    """
    shared = check_settings(config, has_teacher=teacher is not None)
    plans = dict(plans or dict.fromkeys(students, shared))
    config = complete_run(config)
    check_start(config.start_from, workdir)
    feed.check(config, pairs)
    mesh = _mesh(config)
    compiled, firsts, begun = {}, {}, {}
    for name, networks in students.items():
        plan = plans[name]
        compiled[name] = Student(networks[0].config, plan.optim, plan.on, plan.compute)
        begun[name] = networks if len(networks) > 1 else list(networks) * len(plan.runs)
        firsts[name] = [
            Trial(net.params, run.weights, run.lr, run.seed, net.batch_stats)
            for net, run in zip(begun[name], plan.runs, strict=True)
        ]
    folders = folders_by_name(plans)

    # The state. Resume order: the workdir's checkpoint, then `start_from`, then the students given.
    state = init_state(
        {name: (compiled[name], firsts[name]) for name in students},
        teacher and teacher.config.encoder.width,
    )
    teacher_variables = None if teacher is None else jax.tree.map(np.asarray, teacher.variables)

    # The step: one program with the teacher and every student inside.
    on = tuple(dict.fromkeys(term for plan in plans.values() for term in plan.on))
    cache = None
    if teacher is not None and config.cache:
        cached = feed.cache_config(config)
        whole = dataclasses.replace(shared, on=on)
        cache, target_fn, teacher_variables = open_cache(cached, whole, teacher, pairs)
        step_fn = make_train_step(
            compiled,
            target_fn,
            shared.settings,
            symmetric=config.symmetric,
            accumulate=config.accumulate,
            mesh=mesh,
            state=state,
            teacher=teacher_variables,
        )
    else:
        step_fn = _program(
            tuple(compiled.items()),
            teacher and teacher.config,
            on,
            shared.settings,
            shared.teacher_compute,
            config.symmetric,
            config.matches,
            config.accumulate,
        )(mesh, state, teacher_variables)
    by_batch = None
    if mesh is not None:
        sharding.check_batch(config.batch, mesh, config.accumulate)
        by_batch = NamedSharding(mesh, P("data"))
        state = sharding.put(state, sharding.state_sharding(state, mesh))
        teacher_variables = sharding.put(
            teacher_variables, sharding.params_sharding(teacher_variables, mesh)
        )
    workdir = atomic.make_folder(workdir)
    with (
        folders_of.locked(workdir),
        Checkpoints(
            workdir, config.checkpoint_every, config.keep_last, config.keep_every
        ) as checkpoints,
    ):
        state, record = checkpoints.restore(state)
        folders_of.check_config(workdir, config.to_dict())
        if not record and config.start_from:
            with Checkpoints(config.start_from, 1) as other:
                taken, _ = other.restore(state, only=list(students))
            own = ("lr", "seed", "weights", "skipped")  # are this run's
            state = dataclasses.replace(
                state,
                students={
                    name: taken.students[name].replace(**{k: getattr(begins, k) for k in own})
                    for name, begins in state.students.items()
                },
            )
        first = int(state.step)
        best = Best(record.get("best", {}), *watcher.best_by, teacher)
        checkpoints.keep.best = best.steps
        health = Health({f: _skipped(state, *at) for f, at in folders.items()}, first, first)
        waiting, last = None, config.steps
        batches = feed.batches(
            config,
            pairs,
            matches=config.matches if any(p.true_matches for p in plans.values()) else 0,
            start=first,
            placed=by_batch,
            cache=cache,
        )

        # The loop.
        with (
            checkpoints.full_disk("what the run logs"),
            Log(workdir, folders, first, tensorboard=config.tensorboard) as log,
            Profiler(workdir, config.profile.start, config.profile.steps) as profiler,
            preempt.watched() as asked_to_stop,
            Progress(last, "train", done=first, first=COMPILING) as progress,
        ):
            if first == last:
                watcher.refresh(True)
            for step in range(first + 1, last + 1):
                state, metrics = step_fn(state, teacher_variables, next(batches))
                # The numbers of the step before: by now the device is busy with this one.
                shown = None
                if waiting is not None:
                    shown = _note(waiting, health, folders, log, watcher, workdir)
                    waiting = None
                stop = asked_to_stop(step)
                evaluated = step == last or _every(config.evaluate_every, step)
                evaluated &= bool(config.evaluate_every) and watcher.evaluate is not None
                saved = stop or evaluated or step == last or checkpoints.due(step)
                if _every(config.log_every, step) or saved or step == 1:
                    waiting = step, metrics
                if waiting is not None and saved:
                    shown = _note(waiting, health, folders, log, watcher, workdir)
                    waiting = None
                if evaluated:
                    best.evaluate(
                        watcher, log, workdir, step, networks_of(state, begun, compiled, folders)
                    )
                if watcher.pictures and (_every(config.pictures_every, step) or evaluated):
                    networks = networks_of(state, begun, compiled, folders)["raw"]
                    for folder, drawn in watcher.pictures(networks).items():
                        for name, png in drawn.items():
                            log.picture(folder, name, step, png)
                if saved:
                    checkpoints.save(state, {"best": best.table})
                if shown:
                    watcher.refresh(False)
                profiler.after(step, metrics, look=shown is not None)
                progress.update(1, shown)
                if stop and step < last:
                    checkpoints.wait()
                    raise preempt.Stopped(step)
            checkpoints.wait()
        watcher.refresh(True)  # before the files by which a run is known as finished
        trained = networks_of(state, begun, compiled, folders)
        trained = trained.get("ema", trained["raw"])
        note = f"{config.steps} steps of batch {config.batch}"
        return write_networks(workdir, trained, STUDENT, teacher, note)


@functools.lru_cache(maxsize=4)
def _program(students, teacher_config, on, settings, compute, symmetric, matches, accumulate):
    """-> (mesh, state, teacher's variables) -> the step; compiled once for all equal runs of a
    process, such as the trials of a sweep that are run one by one.
    """
    if teacher_config is None:
        target_fn = forward.ground_truth(on, settings, symmetric=symmetric, matches=matches)
    else:
        target_fn = forward.live_teacher(
            teacher_config,
            on,
            settings,
            symmetric=symmetric,
            matches=matches,
            compute=compute,
        )
    make = functools.partial(
        make_train_step,
        dict(students),
        target_fn,
        settings,
        symmetric=symmetric,
        accumulate=accumulate,
    )
    alone = make()
    return lambda mesh, state, teacher: (
        alone if mesh is None else make(mesh=mesh, state=state, teacher=teacher)
    )


@dataclasses.dataclass
class Health:
    """skipped: updates by folder; looked: step last looked at; finite: the last such step since
    whose predecessor any update was finite
    """

    skipped: dict[str, int]
    looked: int
    finite: int


def _note(waiting, health: Health, folders, log: Log, watcher: Watcher, workdir) -> dict:
    """Logs the numbers of a step -> what the progress bar shows.

    Raises:
      FloatingPointError: no trial had a finite update for PATIENCE steps, or ever.
    """
    step, metrics = waiting
    metrics = jax.device_get(metrics)
    lost, alive, shown = 0, False, {}
    for folder, (name, trial) in folders.items():
        values = {k: float(v[trial]) for k, v in metrics[name].items()}
        row = {"step": step, **values, "skipped": int(values["skipped"])}
        new = row["skipped"] - health.skipped[folder]
        lost, alive = lost + new, alive or new < step - health.looked
        health.skipped[folder] = row["skipped"]
        log.row(folder, row)
        watcher.on_log(row)
        shown = shown or {"loss": row["loss"], "lr": row["lr"]}
    if lost:
        say(
            f"{lost} updates of steps {health.looked + 1} to {step} were skipped: loss or gradient "
            "was not finite."
        )
    health.looked = step
    if alive:
        health.finite = step
    elif not health.finite or step - health.finite >= PATIENCE:
        raise FloatingPointError(
            f"The loss or its gradient is not finite at step {step}; it was last finite at step "
            f"{health.finite} or before. The state from then is kept in {workdir}."
        )
    return {**shown, "skipped": sum(health.skipped.values())}


def _every(interval: int, step: int) -> bool:
    return bool(interval) and step % interval == 0


def _mesh(config):
    """None where one device does it all: then nothing needs a place."""
    if config.mesh.to_dict() in ({"trial": 1, "data": 1, "model": 1},):
        return None
    mesh = sharding.make_mesh(**config.mesh.to_dict())
    return None if mesh.size == 1 and jax.process_count() == 1 else mesh


def folders_by_name(plans: Mapping[str, Plan]) -> dict[str, tuple[str, int]]:
    """{folder: (student, trial)}"""
    return {
        "/".join(filter(None, (name, f"trial{i}" if len(plan.runs) > 1 else ""))): (name, i)
        for name, plan in plans.items()
        for i in range(len(plan.runs))
    }


def _skipped(state: TrainState, name: str, trial: int) -> int:
    return int(on_host(state.students[name].skipped)[trial])
