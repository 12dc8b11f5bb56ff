"""What a network costs: counts by hand, times that are times, tiers that do not guess."""

import jax
import numpy as np
import pytest
import tiny

import lunar_distill_jax as ld
from lunar_distill_jax.evaluation import efficiency
from lunar_distill_jax.models.accounting import mac_counts


@pytest.fixture(scope="module")
def costs():
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is not what we test
    try:
        return efficiency.cost(efficiency.program(ld.build(tiny.CONFIG), tiny.SIZE, tiny.SIZE))
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def test_costs_are_complete_and_consistent(costs):
    assert set(efficiency.METRICS) <= set(costs) and costs["size"] == "32x32"
    parameters = sum(a.size for a in jax.tree.leaves(ld.build(tiny.CONFIG).params))
    assert costs["parameters_used"] == pytest.approx(parameters / 1e6)
    assert costs["mb_float32"] == 2 * costs["mb_bfloat16"] == 4 * costs["mb_int8"]
    macs = sum(mac_counts(tiny.CONFIG, tiny.SIZE, tiny.SIZE).values())
    assert costs["gflops"] == 2 * costs["gmacs"] == pytest.approx(2 * macs / 1e9)
    # XLA counts every operation, we count products and convolutions: it must not find fewer.
    assert costs["gflops_xla"] > 0.9 * costs["gflops"]
    assert 0 < costs["latency_p50_ms"] <= costs["latency_p95_ms"] and costs["compile_s"] > 0
    assert costs["peak_mb"] > costs["mb_float32"]
    assert "jax" in costs["device"]


def test_latencies_stop_in_time_but_not_too_early(monkeypatch):
    clock = iter(np.arange(0, 1e6, 3.0))
    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: next(clock))
    calls = []
    times = efficiency.latencies(lambda: calls.append(1), rounds=20, seconds=20)
    assert times == [3.0] * 7 and len(calls) == 1 + 7  # a call of seconds is warm after one
    assert len(efficiency.latencies(lambda: None, rounds=20, seconds=1)) == 5
    clock = iter(np.arange(0, 1e3, 0.01))
    calls.clear()
    efficiency.latencies(lambda: calls.append(1), rounds=20, seconds=20)
    assert len(calls) == efficiency.WARM_UP + 20


def test_tiers_do_not_guess_what_was_not_measured(costs):
    for tier in efficiency.TIERS:
        got = efficiency.fits(costs, tier)
        assert got["weights"] and got["work"] and got["memory"]  # the tiny network fits anywhere
        assert got["latency"] is None and got["power"] is None
    large = costs | {"mb_int8": 95.0, "gflops": 520.0, "peak_mb": float("nan")}
    got = efficiency.fits(large, efficiency.TIERS[0])
    assert got["weights"] and not got["work"] and got["memory"] is None
    assert not efficiency.fits(large, efficiency.TIERS[1])["weights"]
