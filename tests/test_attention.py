"""Formulations of the attention agree, and each is what its platform is given."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from lunar_distill_jax.models import attention as module
from lunar_distill_jax.models.attention import (
    KINDS,
    attention,
    by_queries,
    flash_gpu,
    heads_at_a_time,
    plain,
)

RNG = np.random.default_rng(0)


def inputs(b, h, n, m, d, dtype=np.float32):
    return tuple(jnp.asarray(RNG.standard_normal((b, h, rows, d)), dtype) for rows in (n, m, m))


def value_and_gradients(function, qkv):
    """Of a scalar whose cotangent differs from token to token."""

    def total(*args):
        x = function(*args).astype(jnp.float32)
        return jnp.sum(x * jnp.cos(jnp.arange(x.size).reshape(x.shape))), x

    (_, x), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*qkv)
    return [np.asarray(a, np.float32) for a in (x, *gradients)]


@pytest.fixture
def small_cache(monkeypatch):
    """Only the scores of two heads of 20 x 13 fit."""
    monkeypatch.setattr(module, "SCORES", 2 * 4 * 20 * 13)


@pytest.mark.parametrize("kind", ["auto", "map", "flash"])
def test_kinds_agree_in_values_and_gradients(kind, small_cache):
    qkv = inputs(2, 3, 20, 13, 8)
    want = value_and_gradients(plain, qkv)
    found = value_and_gradients(functools.partial(attention, kind=kind), qkv)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)  # seen 5e-7


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="no attention 'fast': choose from auto, plain, map, fl"):
        attention(*inputs(1, 1, 4, 4, 8), kind="fast")


@pytest.mark.parametrize(
    "shape, heads",
    [
        ((2, 16, 768), 4),  # the teacher's encoder at 512 x 384: 7.1 heads fit, and 4 divides 32
        ((1, 12, 768), 6),
        ((16, 6, 36), 96),  # the demo's batch: all fit
        ((1, 7, 1024), 1),
        ((1, 3, 4096), 1),  # not even one fits
    ],
)
def test_heads_at_a_time_divide_all_heads(shape, heads):
    q = jax.ShapeDtypeStruct((*shape, 64), jnp.float32)
    assert heads_at_a_time(q, q) == heads


def test_a_map_keeps_no_scores_for_the_gradient(small_cache):
    """One head of 8 at a time needs less than a quarter of the memory, forward and backward."""
    shape = jax.ShapeDtypeStruct((1, 8, 1024, 8), jnp.float32)

    def memory(kind):
        def total(q, k, v):
            return jnp.sum(attention(q, k, v, kind) ** 2)

        compiled = jax.jit(jax.grad(total, (0, 1, 2))).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory("map") * 4 < memory("plain")


def lowered(function, qkv, platform: str) -> str:
    """The program with its gradient, as it would be compiled for that platform."""

    def total(*args):
        return jnp.sum(function(*args).astype(jnp.float32) ** 2)

    gradient = jax.jit(jax.value_and_grad(total, (0, 1, 2)))
    return gradient.trace(*qkv).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("rows", [20, 21, 1])
def test_blocks_of_queries_agree_in_values_and_gradients(rows, monkeypatch):
    monkeypatch.setattr(module, "QUERIES", 8)  # 21 rows are three blocks and no remainder
    qkv = inputs(2, 3, rows, 13, 8)
    want = value_and_gradients(plain, qkv)
    for a, b in zip(value_and_gradients(by_queries, qkv), want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)  # seen 5e-7


def test_gradients_of_blocks_are_added_in_float32(monkeypatch):
    monkeypatch.setattr(module, "QUERIES", 2)  # 32 blocks
    qkv = inputs(1, 2, 64, 16, 8, jnp.bfloat16)
    want = value_and_gradients(plain, tuple(x.astype(jnp.float32) for x in qkv))

    def distance(function):
        found = value_and_gradients(function, qkv)
        return [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, want, strict=True)]

    for ours, whole in zip(distance(by_queries), distance(plain), strict=True):
        assert ours < 1.5 * whole  # seen 1.28; added in bfloat16, 2.3


def test_loops_are_for_cpus_and_tpus(small_cache):
    qkv = inputs(2, 3, 20, 13, 8)
    for platform, loops in (("cpu", True), ("tpu", True), ("cuda", False)):
        assert ("stablehlo.while" in lowered(attention, qkv, platform)) == loops, platform


def test_flash_is_cudnn_on_a_gpu(monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91500)  # there is none here
    text = lowered(flash_gpu, inputs(2, 3, 48, 40, 64, jnp.bfloat16), "cuda")
    assert "cudnn$fmhaSoftmax(" in text and "cudnn$fmhaSoftmaxBackward(" in text
    assert "cudnn" not in lowered(flash_gpu, inputs(2, 3, 48, 40, 64), "cuda")  # 32 bits


def test_every_kind_is_tested_here():
    assert set(KINDS) == {"auto", "plain", "map", "flash"}
