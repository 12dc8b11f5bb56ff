"""From a config to plain arguments: its defaults, its checks, the trials of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections as mlc

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.losses.settings import (
    TERMS,
    LossSettings,
    check_terms,
    loss_settings,
    loss_weights,
)
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.train.optim import OptimSettings


def base_config() -> mlc.ConfigDict:
    """Every key of training with its default; a config file changes some and adds its own.

    loss, loss_settings: weights of the terms, and how they are computed (`losses.settings`)
    matches:   pixel matches a pair, for the terms "matching" and "descriptors"
    symmetric: every pair is also trained on with its views swapped
    accumulate: micro-batches a step
    mesh:      devices by axis; -1 takes those that are left
    compute, teacher_compute: number type, attention, remat (`models.compute.Compute`)
    trials:    () for one run, or one dict of changes for each run that trains in the same program:
               "seed", "lr", or "loss" with some weights
    cache:     a folder of `lunar-distill cache` to read the teacher's targets from; "": the teacher
               runs
    """
    c = mlc.ConfigDict()
    c.seed, c.steps, c.batch = 0, 1000, 8
    c.augment, c.matches, c.symmetric = True, 0, False
    c.loss = dict.fromkeys(TERMS, 0.0)
    c.loss_settings = dataclasses.asdict(LossSettings())
    c.optim = dict(
        lr=3e-4,
        final=0.0,
        warmup=0,
        weight_decay=0.05,
        clip=1.0,
        kind="adamw",
        eps=1e-8,
        ema=0.0,
        freeze=(),
        multipliers=(),
    )
    c.compute, c.teacher_compute = (dataclasses.asdict(Compute()) for _ in range(2))
    c.accumulate = 1
    c.mesh = dict(trial=1, data=-1, model=1)
    c.trials, c.cache = (), ""
    c.log_every, c.checkpoint_every = 10, 100
    return c


@dataclasses.dataclass(frozen=True)
class Run:
    """One trial's numbers."""

    seed: int
    lr: float
    weights: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config says about training; `on` are the terms of any run."""

    settings: LossSettings
    optim: OptimSettings
    runs: tuple[Run, ...]
    on: tuple[str, ...]
    compute: Compute
    teacher_compute: Compute

    @property
    def true_matches(self) -> bool:
        """Whether the batches must bring pixel matches."""
        return self.settings.matching.source == "truth" and bool(
            {"matching", "descriptors"} & set(self.on)
        )


def complete(config: mlc.ConfigDict) -> mlc.ConfigDict:
    """The config with the defaults of what it leaves out.

    Raises:
      InputError: a value is of another type than the default.
    """
    full = base_config()
    extra = {k: v for k, v in config.items() if k not in full}
    try:
        full.update({k: v for k, v in config.items() if k in full})
    except (TypeError, KeyError, ValueError) as e:
        raise InputError(f"The config cannot be used: {str(e).splitlines()[0]}") from e
    with full.unlocked():
        full.update(extra)
    return full


def check_settings(config: mlc.ConfigDict, *, has_teacher: bool) -> Plan:
    """Everything that can be said of a config before any work.

    Raises:
      InputError: an unknown term or setting, a term that lacks what it needs, or a number out of
        range.
    """
    check_terms(config.loss)
    c = complete(config)
    least = {"seed": 0, "steps": 1, "batch": 1, "log_every": 1, "checkpoint_every": 1}
    for key, value in {**least, "accumulate": 1, "matches": 0}.items():
        if c[key] < value:
            raise InputError(f"config.{key} is {c[key]}: give {value} or more.")
    settings = loss_settings(c.loss_settings.to_dict())
    runs = tuple(_run(c, i, change, has_teacher) for i, change in enumerate(c.trials or ({},)))
    on = tuple(t for t in TERMS if any(t in run.weights for run in runs))
    for term in ("matching", "descriptors"):
        if term in on and c.matches < 1:
            raise InputError(
                f"config.matches is {c.matches} but loss.{term} is on: give at least 1."
            )
    if "matching" in on and c.matches % settings.matching.groups:
        raise InputError(
            f"config.matches is {c.matches}, which matching.groups ({settings.matching.groups}) "
            "does not divide: change one of them."
        )
    if not has_teacher and settings.matching.source == "teacher" and "matching" in on:
        raise InputError("matching.source is 'teacher' but there is none: set it to 'truth'.")
    if not has_teacher and settings.points.weighting == "teacher" and "points" in on:
        raise InputError("points.weighting is 'teacher' but there is none: set it to 'confidence'.")
    optim = {k: v for k, v in c.optim.to_dict().items() if k != "lr"}
    optim["multipliers"] = tuple((p, float(f)) for p, f in optim["multipliers"])
    optim["freeze"] = tuple(optim["freeze"])
    compute, teacher_compute = (Compute(**c[k]) for k in ("compute", "teacher_compute"))
    return Plan(settings, OptimSettings(steps=c.steps, **optim), runs, on, compute, teacher_compute)


def _run(config, index: int, change: Mapping[str, Any], has_teacher: bool) -> Run:
    unknown = sorted(set(change) - {"seed", "lr", "loss"})
    if unknown:
        raise InputError(
            f"config.trials[{index}] changes {', '.join(unknown)}: trials of one program differ in "
            "seed, lr and loss only."
        )
    table = dict(change.get("loss", {}))
    weights = loss_weights({**config.loss.to_dict(), **table}, has_teacher=has_teacher)
    return Run(
        int(change.get("seed", config.seed)), float(change.get("lr", config.optim.lr)), weights
    )
