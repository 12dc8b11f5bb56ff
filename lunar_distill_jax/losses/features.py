"""Alignment of the student's encoder tokens with the teacher's."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lunar_distill_jax.losses.reduce import masked_mean


def cosine_margin(student, teacher, *, margin: float = 0.9):
    """1 - cos, averaged over the tokens whose cosine is still below `margin`.

    student, teacher: [B, N, D], the student's already projected to the teacher's width. A margin of
    1 keeps every token. Aligned tokens are masked, not indexed away, so shapes stay static.
    """

    def unit(x):  # the shift is inside the root: the gradient at x = 0 is finite
        return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12)

    cos = jnp.sum(unit(student) * unit(jax.lax.stop_gradient(teacher)), -1)
    return masked_mean(1 - cos, cos < margin if margin < 1 else jnp.ones(cos.shape, bool))
