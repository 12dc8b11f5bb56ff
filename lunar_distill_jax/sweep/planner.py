"""Trials into programs: those of one program share the teacher and every batch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

from lunar_distill_jax.sweep.trials import OF_A_TRIAL, Spec
from lunar_distill_jax.train.plan import Plan, check_settings


@dataclasses.dataclass(frozen=True)
class Member:
    """Trials of equal shape, which one vectorised program trains; `name` is its folder."""

    name: str
    specs: tuple[Spec, ...]

    @property
    def plan(self) -> Plan:
        """One for all: the runs are the trials, and a loss that any has is computed for all."""
        plans = [check_settings(s.config, has_teacher=bool(s.config.teacher)) for s in self.specs]
        on = dict.fromkeys(term for plan in plans for term in plan.on)
        runs = tuple(run for plan in plans for run in plan.runs)
        return dataclasses.replace(plans[0], runs=runs, on=tuple(on))


def plan_groups(
    specs: Sequence[Spec], most: int, fits: Callable[[Sequence[Spec]], bool] = lambda specs: True
) -> list[list[Spec]]:
    """Trials in groups of at most `most` that one program can train together; order is kept.

    fits: whether a group's program fits the device's memory; one that does not is halved, and a
          single trial is left as it is
    """
    shared: dict[str, list[Spec]] = {}
    for spec in specs:
        shared.setdefault(_of_the_program(spec), []).append(spec)
    out = []
    for group in shared.values():
        # Trials of equal shape side by side, so that a cut parts as few of them as it can.
        shapes = list(dict.fromkeys(_shape(s) for s in group))
        group = sorted(group, key=lambda s: shapes.index(_shape(s)))
        parts = -(-len(group) // most)
        size = -(-len(group) // parts)
        waiting = [group[i : i + size] for i in range(0, len(group), size)]
        while waiting:
            part = waiting.pop(0)
            if len(part) > 1 and not fits(part):
                half = len(part) // 2
                waiting = [part[:half], part[half:], *waiting]
            else:
                out.append(part)
    return out


def members(group: Sequence[Spec]) -> list[Member]:
    """The students of a group, each with its trials."""
    by_shape: dict[str, list[Spec]] = {}
    for spec in group:
        by_shape.setdefault(_shape(spec), []).append(spec)
    return [Member(f"member{i}", tuple(found)) for i, found in enumerate(by_shape.values())]


def _of_the_program(spec: Spec) -> str:
    shared = {k: v for k, v in spec.config.to_dict().items() if k not in OF_A_TRIAL}
    return json.dumps(shared, sort_keys=True, default=str)


def _shape(spec: Spec) -> str:
    """Equal for trials whose programs differ in numbers only."""
    c = spec.config
    optim = {k: v for k, v in c.optim.to_dict().items() if k != "lr"}
    return json.dumps(
        [c.student, c.decoder.to_dict(), optim, c.compute.to_dict()], sort_keys=True, default=str
    )
