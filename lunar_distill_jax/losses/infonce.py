"""Contrastive losses over lists of descriptors, block by block.

N descriptors of each view give N x N similarities: 256 MiB a pair for 8192. Only their row and
column sums of exponentials are needed, so a block of rows is computed, used and dropped, and once
more in the backward pass (as flash attention does). The result does not depend on the blocks.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lunar_distill_jax.losses.scale import distance

SIMILARITIES = ("cosine", "unit", "distance")
# Of unit vectors, exp(similarity / temperature) stays in float32's range from this temperature on.
WARM = 0.025


def similarity(a, b, kind: str):
    """a [n, K], b [m, K] -> [n, m]: products ("cosine", or "unit" if surely <= 1), or
    1 / (1 + distance).
    """
    if kind in ("cosine", "unit"):
        return a @ b.T
    return 1 / (1 + distance(a[:, None], b[None]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def log_sums(a, b, kind: str, temperature: float, block: int) -> Any:
    """log sum exp(similarity / temperature) over each row and each column.

    a: [N, K], b: [M, K] -> rows [N], columns [M]
    """
    return _forward(a, b, kind, temperature, block)[0]


def _row_blocks(a, block: int):
    """[N, ...] -> ([N / block rounded up, block, ...], which rows are real [., block])."""
    n = a.shape[0]
    block = min(block, n)
    short = -n % block
    real = (jnp.arange(n + short) < n).reshape(-1, block)
    return jnp.pad(a, ((0, short), *((0, 0),) * (a.ndim - 1))).reshape(
        -1, block, *a.shape[1:]
    ), real


def _exponentials(a, b, real, temperature):
    """exp((similarity - 1) / temperature) of unit vectors: none overflows, and one is enough for
    both its row's sum and its column's.
    """
    e = jnp.where(real[:, None], jnp.exp((a @ b.T - 1) / temperature), 0.0)
    return jax.lax.optimization_barrier(e)  # else XLA computes it for each of the two anew


def _unit_forward(a, b, temperature, block):
    def body(columns, rows_of):
        e = _exponentials(rows_of[0], b, rows_of[1], temperature)
        return columns + e.sum(0), jnp.where(rows_of[1], e.sum(1), 1.0)

    columns, rows = jax.lax.scan(body, jnp.zeros(b.shape[0], b.dtype), _row_blocks(a, block))
    rows = jnp.log(rows.reshape(-1)[: a.shape[0]]) + 1 / temperature
    columns = jnp.log(columns) + 1 / temperature
    return (rows, columns), (a, b, rows, columns)


def _unit_backward(temperature, block, saved, gradients):
    a, b, rows, columns = saved
    of_rows, of_columns = (
        g * jnp.exp(1 / temperature - sums) / temperature
        for g, sums in zip(gradients, (rows, columns), strict=True)
    )

    def gradient(a, b, of_a, of_b):
        def body(rows_of):
            a, real, weight = rows_of
            return (_exponentials(a, b, real, temperature) * (weight[:, None] + of_b[None])) @ b

        weights, _ = _row_blocks(of_a, block)
        blocks = jax.lax.map(body, (*_row_blocks(a, block), weights))
        return blocks.reshape(-1, *a.shape[1:])[: a.shape[0]]

    # The exponentials again for b: on a CPU that is faster than a product with their transpose.
    return gradient(a, b, of_rows, of_columns), gradient(b, a, of_columns, of_rows)


def _forward(a, b, kind, temperature, block):
    if kind == "unit":
        return _unit_forward(a, b, temperature, block)
    blocks, real = _row_blocks(a, block)

    def body(columns, rows_of):
        a, real = rows_of
        s = similarity(a, b, kind) / temperature
        column = jax.nn.logsumexp(jnp.where(real[:, None], s, -jnp.inf), axis=0)
        return jnp.logaddexp(columns, column), jax.nn.logsumexp(s, axis=1)

    # Similarities are finite, so is every sum but the first, empty one.
    empty = jnp.full(b.shape[0], jnp.finfo(b.dtype).min, b.dtype)
    columns, rows = jax.lax.scan(body, empty, (blocks, real))
    rows = rows.reshape(-1)[: a.shape[0]]
    return (rows, columns), (a, b, rows, columns)


def _backward(kind, temperature, block, saved, gradients):
    if kind == "unit":
        return _unit_backward(temperature, block, saved, gradients)
    a, b, rows, columns = saved
    blocks, real = _row_blocks(a, block)
    row_blocks, _ = _row_blocks(rows, block)
    row_gradients, _ = _row_blocks(gradients[0], block)  # 0 where rows are padding

    def body(gradient_b, rows_of):
        a, real, row, g = rows_of
        s, back = jax.vjp(lambda a, b: similarity(a, b, kind) / temperature, a, b)
        g = g[:, None] * jnp.exp(s - row[:, None])
        g = g + jnp.where(real[:, None], gradients[1][None] * jnp.exp(s - columns[None]), 0.0)
        gradient_a, more = back(g)
        return gradient_b + more, gradient_a

    gradient_b, gradient_a = jax.lax.scan(
        body, jnp.zeros_like(b), (blocks, real, row_blocks, row_gradients)
    )
    return gradient_a.reshape(-1, *a.shape[1:])[: a.shape[0]], gradient_b


log_sums.defvjp(_forward, _backward)


def info_nce(
    a,
    b,
    *,
    mode: str = "proper",
    temperature: float = 0.05,
    block: int = 1024,
    floor: float = 0.0,
    kind: str = "cosine",
):
    """-log probability that row i of a belongs to row i of b: [N] (Leroy et al. 2024, eq. 10).

    a:     [N, K]
    b:     [M, K], M >= N; rows past N are further negatives
    mode:  "proper": among its row plus among its column; "dual": their product, floored together;
           "all": among all pairs
    kind:  "unit" takes rows of length 1 and a temperature of `WARM` or more, in half the time
    floor: least probability, below which no gradient passes. The reference has 1e-8, which leaves
           the worst mismatches untaught; 0 teaches all
    """
    sums: Any = log_sums(a, b, kind, temperature, block)
    rows, columns = sums
    columns = columns[: len(a)]
    if kind in ("cosine", "unit"):
        own = jnp.sum(a * b[: len(a)], -1) / temperature
    else:
        own = 1 / (1 + distance(a, b[: len(a)])) / temperature

    def negative_log(log_probability):
        return -jnp.maximum(log_probability, jnp.log(floor)) if floor else -log_probability

    if mode == "all":
        return negative_log(own - jax.nn.logsumexp(rows))
    if mode == "dual":
        return negative_log(2 * own - rows - columns)
    return negative_log(own - rows) + negative_log(own - columns)


def average_precision(a, b, *, kind: str = "cosine", block: int = 1024):
    """1 / rank of row i of b among all, by its similarity to row i of a: [N]. A metric.

    a: [N, K], b: [M, K], M >= N
    """
    blocks, _ = _row_blocks(a, block)
    partners, _ = _row_blocks(jnp.arange(len(a)), block)

    def rank(rows_of):
        a, partner = rows_of
        s = similarity(a, b, kind)
        return jnp.sum(s > jnp.take_along_axis(s, partner[:, None], axis=1), axis=1)

    ranks = jax.lax.map(rank, (blocks, partners)).reshape(-1)[: len(a)]
    return jax.lax.stop_gradient(1 / (1 + ranks))


def similarity_divergence(
    student1, student2, teacher1, teacher2, *, temperature: float, block: int
):
    """KL(teacher || student) between distributions of view 2's descriptors seen from view 1's: [N].

    student1, student2: [N, K_s], [M, K_s]; teacher1, teacher2: [N, K_t], [M, K_t]
    """
    s_blocks, _ = _row_blocks(student1, block)
    t_blocks, _ = _row_blocks(teacher1, block)

    @jax.checkpoint  # a block's similarities are computed again for its gradient
    def rows(pair):
        s = jax.nn.log_softmax(pair[0] @ student2.T / temperature)
        t = jax.nn.log_softmax(pair[1] @ teacher2.T / temperature)
        return jnp.sum(jnp.exp(t) * (t - s), -1)

    return jax.lax.map(rows, (s_blocks, t_blocks)).reshape(-1)[: len(student1)]
