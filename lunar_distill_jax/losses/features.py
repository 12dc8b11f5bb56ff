"""Alignment of the student's features with the teacher's.

Features are tokens [B, N, D] or maps [B, h, w, D]; the teacher's pass no gradient. Where widths
differ the student's are projected first (`projector`), in the mixed loss too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax.losses.reduce import Mean


def unit(x):
    """x over its length along the last axis."""
    # The shift is inside the root: the gradient at x = 0 is finite.
    return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12)


def projector(student_width: int, teacher_width: int, seed: int) -> np.ndarray:
    """A first linear map from the student's width to the teacher's: float32 [student, teacher].

    Uniform with the variance 2 / (fan-in (1 + 0.01^2)) (He et al. 2015, leaky slope 0.01).
    """
    bound = (6 / (1 + 0.01**2) / student_width) ** 0.5
    rng = np.random.default_rng([seed, 13])
    return rng.uniform(-bound, bound, (student_width, teacher_width)).astype(np.float32)


def resize_map(x, height: int, width: int):
    """[B, h, w, D] -> [B, height, width, D], bilinear, areas aligned, without antialiasing."""
    shape = (x.shape[0], height, width, x.shape[3])
    return x if x.shape == shape else jax.image.resize(x, shape, "bilinear", antialias=False)


def cosine_margin(student, teacher, *, margin: float = 0.9) -> Mean:
    """1 - cos, averaged over the tokens whose cosine is still below `margin`; 1 keeps all."""
    # Aligned tokens are masked, not indexed away, so shapes stay static.
    cos = jnp.sum(unit(student) * unit(jax.lax.stop_gradient(teacher)), -1)
    return Mean.over(1 - cos, cos < margin if margin < 1 else jnp.ones(cos.shape, bool))


def mixed(student, teacher, *, cosine: float = 0.5, attention: float = 0.3) -> Mean:
    """Squared difference of unit features + `cosine` (1 - cos) + `attention` times the squared
    difference of the energy maps, each of unit length over the sample (attention transfer).
    """
    teacher = jax.lax.stop_gradient(teacher)
    s, t = unit(student), unit(teacher)

    def energy(x):
        return unit(jnp.sum(x * x, -1).reshape(x.shape[0], -1))

    difference = Mean.of((s - t) ** 2)
    angle = Mean.of(1 - jnp.sum(s * t, -1))
    return (
        difference + cosine * angle + attention * Mean.of((energy(student) - energy(teacher)) ** 2)
    )


def relational(student1, student2, teacher1, teacher2, *, temperature: float = 0.1) -> Mean:
    """KL(teacher || student) between distributions of view 2's tokens seen from each of view 1's.

    tokens: [B, N, D] of view 1, [B, M, D] of view 2; a token's distribution is the softmax of its
    cosines over `temperature`. The widths may differ. (The released code relates the halves of one
    view.)
    """

    def log_softmax(one, two):
        cosines = jnp.einsum("bnd,bmd->bnm", unit(one), unit(two))
        return jax.nn.log_softmax(cosines / temperature, axis=-1)

    s = log_softmax(student1, student2)
    t = jax.lax.stop_gradient(log_softmax(teacher1, teacher2))
    return Mean.of(jnp.sum(jnp.exp(t) * (t - s), -1))


def in_basis(student, teacher, basis) -> Mean:
    """Relative squared error of the student's tokens against the teacher's seen in its basis.

    student: [B, N, D_s], teacher: [B, N, D_t], basis: [D_t, D_s]; the mean is over samples
    """
    target = jax.lax.stop_gradient(teacher) @ basis
    error = jnp.sum((student - target) ** 2, (1, 2))
    return Mean.of(error / jnp.maximum(jnp.sum(target**2, (1, 2)), 1e-12))
