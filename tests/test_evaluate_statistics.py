"""Averages with failures, intervals over geometries, paired differences, rows of several hosts."""

import json
import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import waves

from lunar_distill_jax.evaluation import hosts, run, statistics
from lunar_distill_jax.evaluation.catalogue import Metric
from lunar_distill_jax.evaluation.protocol import OURS

MEAN, MEDIAN = Metric("m"), Metric("m", average="median")


def test_medians_count_failures_and_means_leave_out_what_is_missing():
    names = ["a", "a", "b", "c", "d"]
    values = [1.0, 2.0, 3.0, math.inf, math.inf]
    assert statistics.average(values, names, MEDIAN)[0] == 3
    assert statistics.average([1.0, 2.0, math.nan, math.inf], names[:4], MEDIAN)[0] == 2
    assert statistics.average([math.inf] * 3, ["a", "b", "c"], MEDIAN)[0] == math.inf
    # Means are over geometries: (1 + 2) / 2 and 6.
    assert statistics.average([1.0, 2.0, 6.0, math.nan], names[:4], MEAN)[0] == 3.75
    assert math.isnan(statistics.average([math.nan], ["a"], MEAN)[0])


def test_means_do_not_depend_on_order_batches_or_hosts():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(301) * 10.0 ** rng.integers(-8, 8, 301)
    names = [f"g{i % 7}" for i in range(301)]
    want = statistics.average(values, names, MEAN)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(301)
        got = statistics.average(values[order], [names[i] for i in order], MEAN)
        assert got == want  # to the last bit


def test_weighted_median_by_hand():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    weights = np.array([[1, 1, 1, 1], [0, 0, 0, 3], [3, 1, 1, 0], [0, 1, 1, 0]])
    np.testing.assert_array_equal(statistics.weighted_median(values, weights), [3, 9, 1, 3])


def test_intervals_resample_geometries_not_pairs():
    # Ten geometries, their hundred pairs copies: as sure as ten numbers are, not as a thousand.
    rng = np.random.default_rng(1)
    means = rng.standard_normal(10)
    few = statistics.average(means, [f"g{i}" for i in range(10)], MEAN)[1]
    many = statistics.average(np.repeat(means, 100), [f"g{i // 100}" for i in range(1000)], MEAN)[1]
    np.testing.assert_allclose(few, many)
    assert statistics.average([1.0, 2.0], ["a", "a"], MEAN)[1] is None


def test_paired_differences_are_surer_than_the_numbers_they_come_from():
    rng = np.random.default_rng(2)
    hard = rng.uniform(0, 50, 40)  # what makes a pair hard for both
    pairs = [f"p{i}" for i in range(40)]
    geometry = {p: p for p in pairs}
    ours = dict(zip(pairs, hard + 1 + 0.1 * rng.standard_normal(40), strict=True))
    theirs = dict(zip(pairs, hard, strict=True))
    centre, (low, high), count = statistics.difference(ours, theirs, geometry, MEAN)
    assert count == 40 and 0.9 < low < centre < high < 1.1
    alone = statistics.average(list(ours.values()), pairs, MEAN)[1]
    assert alone[1] - alone[0] > 20 * (high - low)
    theirs["p0"], ours["p1"] = math.inf, math.nan
    assert statistics.difference(ours, theirs, geometry, MEAN)[2] == 38
    assert statistics.difference({}, theirs, geometry, MEAN)[1:] == (None, 0)


def test_rows_keep_every_digit_and_every_gap_on_their_way_between_hosts():
    row = run.Row(
        "m", "p", "g", "nadir", {"a": 0.1 + 0.2, "b": math.nan, "c": math.inf}, {"k": "v"}
    )
    (text,) = hosts.gather([run._as_text(row)])
    back = run.Row(**json.loads(text))
    assert back.values["a"] == 0.1 + 0.2 and math.isnan(back.values["b"])
    assert math.isinf(back.values["c"]) and back.conditions == {"k": "v"}
    assert list(hosts.own_share(list(range(5)))) == [0, 1, 2, 3, 4]


def test_a_run_breaks_down_by_conditions_and_compares_models(tmp_path):
    pairs = [waves.wavy_pair(i, 32, name=f"p{i}") for i in range(3)]

    def perfect(batch):
        return [waves.from_depths(p, p.depth_m) for p in batch]

    def worse(batch):
        return [waves.from_depths(p, p.depth_m * np.linspace(0.98, 1.02, 32)) for p in batch]

    got = run.evaluate({"perfect": perfect, "worse": worse}, pairs, protocol=OURS)
    by = got.summary["worse"]["by"]
    assert set(by) == {"sun", "lighting", "overlap", "altitude", "rotation", "baseline"}
    assert by["lighting"]["same"]["pairs"] == 3
    gap = got.summary["worse"]["versus"]["perfect"]["point_error_pct"]
    assert gap["pairs"] == 3 and gap["interval95"][0] > 0.5
    run.write_metrics(tmp_path / "metrics.json", got, cost={"worse": {"macs": 1}})
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["worse"]["cost"] == {"macs": 1} and "cost" not in written["perfect"]
    assert written["perfect"]["rra_deg"] is None  # it has no matches; JSON has no NaN
    run.write_pairs(tmp_path / "pairs.csv", got)
    assert len((tmp_path / "pairs.csv").read_text().splitlines()) == 7


HOST = """
import json, sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
sys.path.insert(0, sys.argv[3])
import waves
from lunar_distill_jax.evaluation import hosts, run
pairs = hosts.own_share([waves.wavy_pair(i, 32, name=f"p{i}") for i in range(3)])
worse = lambda batch: [waves.from_depths(p, p.depth_m * 1.01 ** (p.depth_m / 3e4)) for p in batch]
got = run.evaluate({"m": worse}, pairs)
print(json.dumps([len(pairs), got.summary]))
"""


@pytest.mark.slow
def test_two_hosts_agree_with_one(tmp_path):
    import pathlib
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    tests = str(pathlib.Path(__file__).parent)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(HOST), address, str(i), tests],
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    told = [json.loads(p.communicate(timeout=300)[0].splitlines()[-1]) for p in started]
    assert [count for count, _ in told] == [2, 1]  # uneven shares
    assert told[0][1] == told[1][1]

    def worse(batch):
        return [waves.from_depths(p, p.depth_m * 1.01 ** (p.depth_m / 3e4)) for p in batch]

    pairs = [waves.wavy_pair(i, 32, name=f"p{i}") for i in range(3)]
    alone = run.evaluate({"m": worse}, pairs).summary
    assert json.loads(json.dumps(alone)) == told[0][1]
