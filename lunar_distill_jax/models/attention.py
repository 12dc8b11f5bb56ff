"""Softmax attention, in the formulation that suits the device."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

KINDS = ("auto", "plain", "map", "flash")
SCORES = 2**24  # bytes of scores that a CPU computes at a time, to find them still in its cache


def attention(q, k, v, kind: str = "auto"):
    """softmax(q k^T / sqrt(d)) v, the softmax in float32.

    q: [B, h, N, d], k and v: [B, h, M, d] -> [B, h, N, d]
    kind: "plain" holds all scores.
          "map" takes a few heads at a time, and recomputes their scores to differentiate them.
          "flash" never holds scores: cuDNN's kernel on a GPU (of 16-bit numbers; else plain),
          Pallas' kernel on a TPU, "map" on a CPU.
          "auto" is "map" where scores outgrow a CPU's cache, else "plain".
    """
    if kind not in KINDS:
        raise ValueError(f"There is no attention {kind!r}: choose from {', '.join(KINDS)}.")
    # The platform that the program is lowered for, which need not be this machine's.
    if kind == "flash" and jax.default_backend() == "gpu":
        return flash_gpu(q, k, v)
    if kind == "flash":
        return jax.lax.platform_dependent(q, k, v, tpu=flash_tpu, default=by_heads)
    if kind == "map":
        return by_heads(q, k, v)
    if kind == "auto" and heads_at_a_time(q, k) < math.prod(q.shape[:2]):
        return jax.lax.platform_dependent(q, k, v, cpu=by_heads, default=plain)
    return plain(q, k, v)


def plain(q, k, v):
    """`attention` with all scores at once; any axes may lead."""
    scores = jnp.einsum("...nd,...md->...nm", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True)))
    x = jnp.einsum(
        "...nm,...md->...nd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
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


def flash_gpu(q, k, v):
    """`attention` by cuDNN, which takes numbers of 16 bits; else `plain`."""
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return plain(q, k, v)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn").swapaxes(1, 2)


def flash_tpu(q, k, v, block: int = 128):
    """`attention` by Pallas' kernel, the tokens padded to whole blocks."""
    from jax.experimental.pallas.ops.tpu import flash_attention as pallas  # takes 0.4 s to import

    n, m = q.shape[2], k.shape[2]
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block), (0, 0))) for x in (q, k, v))
    segments = None
    if k.shape[2] > m:  # no query looks at the padding, which is of another segment
        b, rows, columns = q.shape[0], q.shape[2], k.shape[2]
        padding = jnp.broadcast_to(jnp.arange(columns) >= m, (b, columns)).astype(jnp.int32)
        segments = pallas.SegmentIds(jnp.zeros((b, rows), jnp.int32), padding)
    x = pallas.flash_attention(q, k, v, segment_ids=segments, sm_scale=q.shape[-1] ** -0.5)
    return x[:, :, :n].astype(v.dtype)
