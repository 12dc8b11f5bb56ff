"""Softmax attention, in the formulation that suits the device."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

KINDS = ("auto", "plain", "map", "flash")
SCORES = 2**24  # bytes of scores that a CPU computes at a time, to find them still in its cache
QUERIES = 128  # rows of scores that a TPU computes at a time: they stay in the chip's own memory


def attention(q, k, v, kind: str = "auto"):
    """softmax(q k^T / sqrt(d)) v, the softmax in float32.

    q: [B, h, N, d], k and v: [B, h, M, d] -> [B, h, N, d]
    kind: "plain" holds all scores.
          "map" takes a few heads at a time on a CPU, a few queries elsewhere, and recomputes their
          scores to differentiate them.
          "flash" is cuDNN's kernel on a GPU (of 16-bit numbers; else plain), and "map" elsewhere.
          "auto" is "plain" on a GPU and where scores fit in a CPU's cache, else "map".
    """
    if kind not in KINDS:
        raise ValueError(f"There is no attention {kind!r}: choose from {', '.join(KINDS)}.")
    # The platform that the program is lowered for, which need not be this machine's.
    if kind == "flash" and jax.default_backend() == "gpu":
        return flash_gpu(q, k, v)
    if kind in ("map", "flash"):
        return jax.lax.platform_dependent(q, k, v, cpu=by_heads, default=by_queries)
    if kind == "auto" and heads_at_a_time(q, k) < math.prod(q.shape[:2]):
        return jax.lax.platform_dependent(q, k, v, cpu=by_heads, tpu=by_queries, default=plain)
    return plain(q, k, v)


def _weights(q, k):
    """The softmax before its division: exp(score - the row's largest) [..., N, M]."""
    scores = jnp.einsum("...nd,...md->...nm", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    return jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True)))


def _weighed(weights, v):
    weights = weights.astype(v.dtype)
    return jnp.einsum("...nm,...md->...nd", weights, v, preferred_element_type=jnp.float32)


def plain(q, k, v):
    """`attention` with all scores at once; any axes may lead."""
    weights = _weights(q, k)
    x = _weighed(weights, v)
    # Normalised here, d numbers of a row are divided and not M.
    return (x / jnp.sum(weights, -1, keepdims=True)).astype(v.dtype)


def heads_at_a_time(q, k) -> int:
    """How many heads' scores fit in `SCORES`: a divisor of all heads of the batch."""
    heads, scores = math.prod(q.shape[:2]), 4 * q.shape[2] * k.shape[2]
    return max(n for n in range(1, heads + 1) if n == 1 or heads % n == 0 and n * scores <= SCORES)


def by_heads(q, k, v):
    """`attention` of `heads_at_a_time`."""
    q_, k_, v_ = (x.reshape(-1, heads_at_a_time(q, k), *x.shape[2:]) for x in (q, k, v))
    group = jax.checkpoint(lambda qkv: plain(*qkv), prevent_cse=False)
    return jax.lax.map(group, (q_, k_, v_)).reshape(q.shape)


def by_queries(q, k, v):
    """`attention` of `QUERIES` rows: no axis that may be spread over devices is cut.

    (A Pallas kernel would be: XLA does not know how to spread one.)
    """
    n, dtype = q.shape[2], k.dtype
    blocks = -(-n // QUERIES)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, -n % blocks), (0, 0)))
    q = jnp.moveaxis(q.reshape(*q.shape[:2], blocks, -1, q.shape[3]), 2, 0)
    # A column of ones: the product with the values gives the sums of the rows too, for nothing,
    # as a head's channels do not fill a TPU's columns.
    v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)
    # Each block adds to the gradients of k and v: in float32, as these are.
    k, v = k.astype(jnp.float32), v.astype(jnp.float32)

    def block(q):
        x = _weighed(_weights(q, k.astype(dtype)), v.astype(dtype))
        return (x[..., :-1] / x[..., -1:]).astype(dtype)

    x = jax.lax.map(jax.checkpoint(block, prevent_cse=False), q)
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[4])[:, :, :n]


def flash_gpu(q, k, v):
    """`attention` by cuDNN, which takes numbers of 16 bits; else `plain`."""
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return plain(q, k, v)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn").swapaxes(1, 2)
