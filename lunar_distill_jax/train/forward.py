"""The networks as the step runs them: the student for its gradient, the teacher for its targets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from lunar_distill_jax.losses.settings import LossSettings
from lunar_distill_jax.losses.targets import Targets, symmetrised, teacher_targets, truth_targets
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.stereo import StereoNet
from lunar_distill_jax.train.state import EXTRAS, Student, unflatten

TargetFn = Callable[[Any, Mapping[str, Any], Any], Targets]


def student_forward(
    student: Student, flat: Mapping[str, Any], batch_stats, image1, image2, symmetric: bool
):
    """-> (pair of predictions, the losses' parameters, batch-norm moments after this batch)"""
    network = {k: v for k, v in flat.items() if k.partition("/")[0] not in EXTRAS}
    extras = unflatten({k: v for k, v in flat.items() if k.partition("/")[0] in EXTRAS})
    train = bool(batch_stats)
    net = StereoNet(student.config, student.compute, train)
    if not train:
        variables = {"params": unflatten(network)}
        predictions: Any = net.apply(variables, image1, image2, symmetric=symmetric)
        return predictions, extras, {}
    variables = {"params": unflatten(network), "batch_stats": batch_stats}
    predictions, updated = net.apply(
        variables, image1, image2, symmetric=symmetric, mutable=["batch_stats"]
    )
    return predictions, extras, updated["batch_stats"]


def live_teacher(
    config: StereoConfig,
    on: Collection[str],
    settings: LossSettings,
    *,
    symmetric: bool = False,
    matches: int = 0,
    compute: Compute,
) -> TargetFn:
    """(teacher's variables, batch, key) -> what the teacher says of the batch."""
    net = StereoNet(config, compute)

    def targets(variables, batch, key) -> Targets:
        predictions: Any = net.apply(
            variables, batch["image1"], batch["image2"], symmetric=symmetric
        )
        batch = symmetrised(batch) if symmetric else batch
        return teacher_targets(
            predictions, batch, on, settings, hooks=config.hooks, matches=matches, key=key
        )

    return targets


def ground_truth(on: Collection[str], *, symmetric: bool = False) -> TargetFn:
    """The control experiment: (anything, batch, key) -> the truth in the batch."""

    def targets(variables, batch, key) -> Targets:
        del variables, key
        return truth_targets(symmetrised(batch) if symmetric else batch, on)

    return targets
