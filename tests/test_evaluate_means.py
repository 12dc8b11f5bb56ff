"""Means and intervals: the suns of one geometry are not independent evidence."""

import numpy as np
import pytest

from lunar_distill_jax.evaluation import metrics, run


def row(geometry_name, value, model="m", trajectory="nadir"):
    values = dict.fromkeys(metrics.METRICS, value)
    return run.Row(model, f"{geometry_name}-{value}", geometry_name, trajectory, values)


def test_means_count_each_geometry_once():
    rows = [row("a", 1.0), row("a", 2.0), row("a", 6.0), row("b", 5.0)]
    rows += [row("c", 13.0, trajectory="oblique"), row("c", 99.0, model="other")]
    out = run.summarise(rows, "m")
    assert out["abs_rel"] == pytest.approx((3 + 5 + 13) / 3)
    assert (out["pairs"], out["geometries"]) == (5, 3)
    assert out["trajectory"]["nadir"]["abs_rel"] == pytest.approx(4)
    assert out["trajectory"]["oblique"]["interval95"] is None  # one geometry: no interval
    low, high = out["interval95"]["abs_rel"]
    assert 3 <= low < out["abs_rel"] < high <= 13
    assert run.summarise(rows[::-1], "m") == out  # neither order nor chance changes it


def test_interval_covers_like_an_interval():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        rows = [row(f"g{i:02}", value) for i, value in enumerate(rng.standard_normal(30))]
        low, high = run.summarise(rows, "m", seed=trial)["interval95"]["abs_rel"]
        hits += low < 0 < high
    assert 88 <= hits <= 99
