"""One jitted training step: targets (the teacher, or ground truth), student, losses, update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lunar_distill_jax.losses.distill import Targets, objective
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.stereo import StereoNet


@flax.struct.dataclass
class TrainState:
    """step: int32 []; params: {"student", "projector": {} or its kernel}; opt: optax's state."""

    step: Any
    params: Any
    opt: Any


def ground_truth_targets(_, batch) -> Targets:
    """The control experiment, and how a first teacher is trained."""
    return Targets(batch["points1"], batch["points2"], batch["valid1"], batch["valid2"])


def teacher_targets(config: StereoConfig) -> Callable[[Any, Mapping[str, Any]], Targets]:
    """(teacher params, batch) -> the teacher's points and encoder tokens on the valid pixels."""

    def targets(params, batch) -> Targets:
        one, two = StereoNet(config).apply({"params": params}, batch["image1"], batch["image2"])
        return Targets(
            one.pts3d,
            two.pts3d,
            batch["valid1"],
            batch["valid2"],
            one.features["encoder"],
            two.features["encoder"],
        )

    return targets


def init_state(
    params: Any,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    student_width: int,
    teacher_width: int | None,
) -> TrainState:
    """The state before the first step, from the student's parameters.

    teacher_width: width of the tokens to imitate, or None without the feature loss
    """
    projector = {}
    if teacher_width is not None:
        rng = np.random.default_rng([seed, 13])
        kernel = rng.standard_normal((student_width, teacher_width), np.float32)
        projector = {"kernel": jnp.asarray(kernel * np.float32(student_width**-0.5))}
    params = jax.tree.map(jnp.asarray, params)
    both = {"student": params, "projector": projector}
    return TrainState(jnp.zeros((), jnp.int32), both, tx.init(both))


def make_train_step(
    config: StereoConfig,
    target_fn: Callable[[Any, Mapping[str, Any]], Targets],
    tx: optax.GradientTransformation,
    weights: Mapping[str, float],
):
    """-> jitted (state, teacher params, batch) -> (state, metrics); the old state is donated."""

    def loss_fn(params, targets, batch):
        one, two = StereoNet(config).apply(
            {"params": params["student"]}, batch["image1"], batch["image2"]
        )
        projected = None
        if params["projector"]:
            kernel = params["projector"]["kernel"]
            projected = one.features["encoder"] @ kernel, two.features["encoder"] @ kernel
        return objective(one, two, projected, targets, batch, weights)

    def train_step(state: TrainState, teacher_params, batch):
        # Outside the differentiated function: no teacher activation is kept for backward.
        targets = jax.lax.stop_gradient(target_fn(teacher_params, batch))
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, terms), grads = grad_fn(state.params, targets, batch)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, **terms, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt), metrics

    return jax.jit(train_step, donate_argnums=0)
