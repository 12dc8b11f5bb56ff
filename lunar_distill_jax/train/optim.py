"""AdamW with linear warm-up and cosine decay, weight decay on matrices only, gradients clipped."""

from __future__ import annotations

import jax
import optax


def learning_rate(*, peak: float, final: float, warmup: int, steps: int) -> optax.Schedule:
    """0 -> peak over `warmup` steps, then a half cosine to `final` at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, min(warmup, steps - 1), steps, final)


def make_optimizer(
    schedule: optax.Schedule, *, weight_decay: float, clip: float
) -> optax.GradientTransformation:
    """The paper's recipe: betas (0.9, 0.95), decay on tensors of two or more dimensions, clip."""
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(
            schedule,
            b1=0.9,
            b2=0.95,
            weight_decay=weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )
