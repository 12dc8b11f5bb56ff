"""What training changes: for each student the stacked trials of its parameters and moments."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.losses import correspondence, features
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.train.optim import OptimSettings, frozen_names, make_optimizer

EXTRAS = (
    "projector",
    "bases",
    "correspondence",
)  # parameters of the losses, beside those of the network


@dataclasses.dataclass(frozen=True)
class Student:
    """What is compiled into the step for one architecture; its trials differ in numbers only.

    on: the losses of which at least one trial has a weight that is not 0
    """

    config: StereoConfig
    optim: OptimSettings
    on: tuple[str, ...]
    compute: Compute = Compute()


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a student: numbers that may differ between runs of equal shape.

    params:  its first parameters, nested dict; batch_stats: its batch norms' moments, or {}
    weights: {term: weight}
    lr:      peak learning rate
    bases:   {"0", "1", ...: [D_t, D_s]}, one for each hooked decoder layer, where "hooks" is on
    """

    params: Any
    weights: Mapping[str, float]
    lr: float
    seed: int = 0
    batch_stats: Any = dataclasses.field(default_factory=dict)
    bases: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@flax.struct.dataclass
class StudentState:
    """One student's trials; every leaf is a stack [T, ...].

    params, frozen: what trains and what does not, of network and losses (`EXTRAS`)
    ema:     running mean of `params`, or {}
    skipped: int32 [T], steps whose loss or gradient was not finite: they changed nothing else
    lr, seed, weights: the trials' own settings
    """

    params: Any
    frozen: Any
    batch_stats: Any
    opt: Any
    ema: Any
    skipped: Any
    lr: Any
    seed: Any
    weights: Any


@flax.struct.dataclass
class TrainState:
    """step: int32 [], steps done; students: {name: StudentState}"""

    step: Any
    students: Any

    def network(self, name: str, trial: int = 0, *, ema: bool = False) -> tuple[Any, Any]:
        """-> (parameters, batch-norm moments) of one trial as numpy, the losses' left out."""
        s = self.students[name]
        flat = {**flatten(s.frozen), **flatten(s.ema if ema and s.ema else s.params)}
        flat = {k: v for k, v in flat.items() if k.partition("/")[0] not in EXTRAS}
        stats = {k: v for k, v in flatten(s.batch_stats).items()}
        return tuple(
            unflatten({k: np.asarray(v[trial]) for k, v in part.items()}) for part in (flat, stats)
        )


def flatten(tree: Any) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> Any:
    return flax.traverse_util.unflatten_dict(dict(flat), sep="/")


def trial_params(student: Student, trial: Trial, teacher_width: int | None) -> dict[str, Any]:
    """{name: array} of the network and of the losses that are on."""
    flat = dict(flatten(trial.params))
    width = student.config.encoder.width
    if "features" in student.on and teacher_width not in (None, width):
        flat["projector/kernel"] = features.projector(width, teacher_width, trial.seed)
    flat |= correspondence.parameters(width, student.config.decoder.width, student.on, trial.seed)
    if "hooks" in student.on:
        needed = {str(k) for k in range(sum(1 for i in student.config.hooks if i))}
        if set(trial.bases) != needed:
            raise InputError(
                f"loss.hooks is on for {student.config.name}, which has {len(needed)} hooked "
                f"decoder layers, but {len(trial.bases)} bases are given: give one for each."
            )
        flat |= {f"bases/{k}": np.asarray(v, np.float32) for k, v in trial.bases.items()}
    return flat


def init_student(
    student: Student, trials: Sequence[Trial], teacher_width: int | None
) -> StudentState:
    """The state of a student's trials before the first step, on the host except for zeros.

    Raises:
      InputError: the trials' parameters are not those of the student, or a pattern of the
        optimizer's settings matches none.
    """
    flats = [trial_params(student, t, teacher_width) for t in trials]
    frozen = frozen_names(flats[0], student.optim.freeze)

    def stack(names: Collection[str]) -> Any:
        return unflatten({n: _stack([f[n] for f in flats]) for n in sorted(names)})

    params, fixed = stack(flats[0].keys() - frozen), stack(frozen)
    stats = [flatten(t.batch_stats) for t in trials]
    return StudentState(
        params=params,
        frozen=fixed,
        batch_stats=unflatten({n: _stack([s[n] for s in stats]) for n in stats[0]}),
        opt=jax.vmap(make_optimizer(student.optim).init)(params),
        ema=jax.tree.map(lambda p: p.copy(), params) if student.optim.ema else {},
        skipped=np.zeros(len(trials), np.int32),
        lr=np.array([t.lr for t in trials], np.float32),
        seed=np.array([t.seed for t in trials], np.int32),
        weights={
            term: np.array([t.weights.get(term, 0.0) for t in trials], np.float32)
            for term in student.on
        },
    )


def _stack(arrays: Sequence[Any]) -> Any:
    """On the host; but traced, where only shapes are wanted (`jax.eval_shape`)."""
    return (jnp if isinstance(arrays[0], Tracer) else np).stack(arrays)


def init_state(
    students: Mapping[str, tuple[Student, Sequence[Trial]]], teacher_width: int | None
) -> TrainState:
    """The state of all students before the first step; see `init_student`."""
    return TrainState(
        jnp.zeros((), jnp.int32),
        {name: init_student(s, trials, teacher_width) for name, (s, trials) in students.items()},
    )
