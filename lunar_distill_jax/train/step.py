"""One jitted training step: targets once, then every student and its trials in one program."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.losses.distill import loss_terms, match_losses, objective
from lunar_distill_jax.losses.matching import bad_loss
from lunar_distill_jax.losses.settings import LossSettings
from lunar_distill_jax.train import sharding
from lunar_distill_jax.train.forward import TargetFn, student_forward
from lunar_distill_jax.train.optim import global_norm, learning_rate, make_optimizer
from lunar_distill_jax.train.state import Student, StudentState, TrainState, flatten

# By default XLA:CPU starts operations side by side, and what they return lives the longer: the
# gradient of s3 at 224 px then takes 2.5 GiB and not 1.0, and a fifth more time to touch them.
# Other devices' compilers ignore the option.
IN_TURN = {"xla_cpu_enable_concurrency_optimized_scheduler": False}


def make_train_step(
    students: Mapping[str, Student],
    target_fn: TargetFn,
    settings: LossSettings,
    *,
    symmetric: bool = False,
    accumulate: int = 1,
    mesh: Mesh | None = None,
    state: TrainState | None = None,
    teacher: Any = None,
) -> Step:
    """-> jitted (state, teacher's variables, batch) -> (state, metrics); the old state is donated.

    target_fn:  `forward.live_teacher`, `forward.ground_truth`, or what reads a cache
    symmetric:  every pair (a, b) is also trained on as (b, a): 2 B rows, as many as the targets'
    accumulate: micro-batches a step. The result is that of the whole batch, whatever the masks:
                every mean is divided by the count over all of it, and the quantile of
                `matching.negatives` is that of all of it, for which the student runs once more.
                (Batch norms are the exception: their moments are those of a micro-batch.)
    mesh:       devices to spread over, with the `state` and the `teacher`'s variables, or their
                shapes, that will be given; None: wherever the arguments are

    metrics: {student: {"loss", its terms, "grad_norm", "lr", "skipped": [T]}}
    """

    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    one_by_one = platform == "cpu" and (mesh is None or mesh.shape["trial"] == 1)

    def train_step(state: TrainState, teacher_variables, batch):
        rows = batch["image1"].shape[0]
        if mesh is not None:
            sharding.check_batch(rows, mesh, accumulate)
        key = jax.random.fold_in(jax.random.key(0), state.step)

        def targets_of(part):
            part = _spread(part, mesh, every_device=True)
            # Outside the differentiated function: no teacher activation is kept for backward.
            return jax.lax.stop_gradient(target_fn(teacher_variables, part, key))

        parts = jax.tree.map(lambda x: _micro_batches(x, accumulate), batch)
        if accumulate == 1:
            targets = targets_of(parts)
        else:
            targets = jax.lax.map(targets_of, parts)
        targets = _spread(targets, mesh, axis=int(accumulate > 1))
        images = {k: parts[k] for k in ("image1", "image2")}

        new, metrics = {}, {}
        for name, student in students.items():
            update = _update(student, settings, symmetric, accumulate)
            new[name], metrics[name] = _over_trials(update, one_by_one)(
                state.students[name], state.step, targets, images
            )
        return TrainState(state.step + 1, new), metrics

    if mesh is None:
        return Step(jax.jit(train_step, donate_argnums=0, compiler_options=IN_TURN))
    states = sharding.state_sharding(state, mesh)
    teachers = sharding.params_sharding(teacher, mesh)
    return Step(
        jax.jit(
            train_step,
            in_shardings=(states, teachers, NamedSharding(mesh, P("data"))),
            out_shardings=(states, NamedSharding(mesh, P())),
            donate_argnums=0,  # the old state's buffers become the new state's
            compiler_options=IN_TURN,
        )
    )


class Step:
    """A jitted function whose want of memory is said in words; `jitted` has `lower` and `trace`."""

    def __init__(self, jitted):
        self.jitted = jitted
        self._compiled = False

    def __call__(self, *arguments):
        """Raises InputError where the devices' memory is too small for the program."""
        try:
            if not self._compiled:
                self.jitted.lower(*arguments).compile()  # the call below finds the program
                _return_freed_memory()
                self._compiled = True
            return self.jitted(*arguments)
        except jax.errors.JaxRuntimeError as e:
            if "RESOURCE_EXHAUSTED" not in str(e):
                raise
            sizes = re.findall(r"[\d.]+ ?(?:[KMGT]i?B?|bytes)\b", str(e))
            numbers = f" (the compiler says {', '.join(sizes[:3])})" if sizes else ""
            raise InputError(
                f"The step does not fit in the memory of {jax.devices()[0].device_kind}{numbers}: "
                "raise accumulate, set compute.remat=blocks, or lower batch; tools/aot_tpu.py says "
                "how much a TPU lacks."
            ) from e


def _return_freed_memory() -> None:
    """glibc keeps what a process frees: after the compilation of the s3 step 1.2 GiB."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _update(student: Student, settings: LossSettings, symmetric: bool, accumulate: int):
    """-> (one trial's state, step, targets, images) -> (its state, its metrics)"""
    tx = make_optimizer(student.optim)

    def update(state: StudentState, step, targets, images):
        key = jax.random.fold_in(jax.random.key(state.seed), step)

        def forward(params, stats, images):
            flat = {**flatten(state.frozen), **flatten(params)}
            return student_forward(
                student, flat, stats, images["image1"], images["image2"], symmetric
            )

        def terms_of(params, stats, part, bad_match):
            targets, images = part
            predictions: Any
            predictions, extras, stats = forward(params, stats, images)
            terms = loss_terms(
                predictions,
                extras,
                targets,
                student.on,
                settings,
                hooks=student.config.hooks,
                key=key,
                bad_match=bad_match,
            )
            return terms, stats

        def loss_fn(params, stats, part, counts, bad_match):
            terms, stats = terms_of(params, stats, part, bad_match)
            loss, values = objective(terms, state.weights, counts)
            return loss, (values, stats)

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        everything, stats = (targets, images), state.batch_stats
        if accumulate == 1:
            (loss, (values, stats)), grads = grad_fn(state.params, stats, everything, None, None)
        else:
            bad_match = None
            if "matching" in student.on and settings.matching.negatives:
                # A quantile is of the whole batch: its losses come first, by one more forward pass.
                def entries(part):
                    predictions, *_ = forward(state.params, state.batch_stats, part[1])
                    return match_losses(predictions, part[0], settings, key)

                losses = jax.lax.map(entries, everything)
                bad_match = bad_loss(losses, targets.matched, settings.matching.negatives)

            # What the means will be divided by. Where it follows from masks alone, no network runs.
            def count(part):
                terms, _ = terms_of(state.params, state.batch_stats, part, bad_match)
                return {k: m.count for k, m in terms.items()}

            counts = jax.tree.map(lambda c: c.sum(0), jax.lax.map(count, everything))

            def add(carry, part):
                so_far, stats = carry
                (loss, (values, stats)), grads = grad_fn(
                    state.params, stats, part, counts, bad_match
                )
                return (jax.tree.map(jnp.add, so_far, (loss, values, grads)), stats), None

            zero = jnp.zeros(())
            empty = (
                zero,
                {term: zero for term in counts},
                jax.tree.map(jnp.zeros_like, state.params),
            )
            ((loss, values, grads), stats), _ = jax.lax.scan(add, (empty, stats), everything)

        rate = learning_rate(
            step,
            state.lr,
            final=student.optim.final,
            warmup=student.optim.warmup,
            steps=student.optim.steps,
        )
        norm = global_norm(grads)
        direction, opt = tx.update(grads, state.opt, state.params)
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
        ema = jax.tree.map(
            lambda e, p: student.optim.ema * e + (1 - student.optim.ema) * p,
            state.ema,
            params if student.optim.ema else {},
        )
        new = dataclasses.replace(state, params=params, opt=opt, ema=ema, batch_stats=stats)
        # On the device, so that no step waits for the host, and trial by trial.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = jax.tree.map(lambda n, o: jax.lax.select(finite, n, o), new, state)
        new = dataclasses.replace(new, skipped=state.skipped + ~finite)
        metrics = {"loss": loss, **values, "grad_norm": norm, "lr": rate, "skipped": new.skipped}
        return new, metrics

    return update


def _over_trials(update, one_by_one: bool):
    """The update of one trial for a stack of them; a single one is not batched.

    one_by_one: in a loop, not as one batch: a CPU has no use for wider products, and makes of a
        convolution of trials with kernels of their own a slow grouped one
    """

    def run(state: StudentState, step, targets, images):
        def one(trial):
            return update(trial, step, targets, images)

        if len(state.skipped) == 1:
            changed = one(jax.tree.map(lambda x: x[0], state))
            return jax.tree.map(lambda x: x[None], changed)
        return jax.lax.map(one, state) if one_by_one else jax.vmap(one)(state)

    return run


def _micro_batches(x, count: int):
    """[B, ...] -> [count, B / count, ...], each with rows from every device."""
    if count == 1:
        return x
    return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)


def _spread(tree, mesh: Mesh | None, *, axis: int = 0, every_device: bool = False):
    """Splits the samples, which lie along `axis`, over the mesh."""
    if mesh is None:
        return tree

    def place(x):
        spec = sharding.batch_spec(mesh, x.shape[axis], every_device=every_device)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*(None,) * axis, *spec)))

    return jax.tree.map(place, tree)
