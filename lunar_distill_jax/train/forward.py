"""The networks as the step runs them: the student for its gradient, the teacher for its targets."""

from __future__ import annotations

import dataclasses
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
    train, looks = bool(batch_stats), "attention" in student.on
    net = StereoNet(student.config, student.compute, train)
    variables = {"params": unflatten(network)}
    if train:
        variables["batch_stats"] = batch_stats
    changing = [*(["batch_stats"] if train else []), *(["cross"] if looks else [])]
    predictions: Any
    predictions, updated = net.apply(
        variables, image1, image2, symmetric=symmetric, mutable=changing
    )
    if looks:
        predictions = tuple(
            dataclasses.replace(p, features={**p.features, "cross": cross})
            for p, cross in zip(predictions, cross_attention(updated["cross"]), strict=True)
        )
    return predictions, extras, updated.get("batch_stats", {})


def cross_attention(kept: Mapping[str, Any]) -> tuple[list, list]:
    """The collection "cross" -> for each view [(queries, keys) of block 0, 1, ...]."""
    decoder = kept["decoder"]
    depth = len(decoder) // 2
    blocks = [[decoder[f"view{v}_block{i}"]["cross_attn"] for i in range(depth)] for v in (1, 2)]
    one, two = ([(b["queries"][0], b["keys"][0]) for b in view] for view in blocks)
    return one, two


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


def ground_truth(
    on: Collection[str], settings: LossSettings, *, symmetric: bool = False, matches: int = 0
) -> TargetFn:
    """The control experiment: (anything, batch, key) -> the truth in the batch."""

    def targets(variables, batch, key) -> Targets:
        del variables
        batch = symmetrised(batch) if symmetric else batch
        return truth_targets(batch, on, settings, matches=matches, key=key)

    return targets
