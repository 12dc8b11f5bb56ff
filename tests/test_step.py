"""The step on many devices, with many students and trials, in parts: always the same numbers.

Differences are absolute, or relative where numbers are larger than 1.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

WORKER = pathlib.Path(__file__).with_name("step_worker.py")
BOUND = 1e-5


def environment(devices: int) -> dict[str, str]:
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }


def worker(mode: str) -> dict:
    done = subprocess.run(
        [sys.executable, WORKER, mode], env=environment(8), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def fast():
    return worker("fast")


@pytest.fixture(scope="module")
def slow():
    return worker("slow")


def assert_equal(differences: dict[str, float]) -> None:
    assert set(differences) == {"loss", "params", "moments", "ema"}
    assert all(d <= BOUND for d in differences.values()), differences


def test_trial_fed_nan_changes_nothing_in_the_others(fast):
    nan = fast["nan"]
    assert nan["others"], "another trial's parameters, moments or metrics differ by a bit"
    assert nan["kept"] and nan["loss"] == "nan"
    assert nan["skipped"] == [0, 0, 0, 2, 0, 0, 0, 0]


def test_eight_devices_equal_one(fast):
    (differences,) = fast["meshes"].values()
    assert_equal(differences)


def test_a_quantile_of_losses_is_of_the_whole_batch(fast):
    assert_equal(fast["quantile"])


@pytest.mark.slow
def test_every_mesh_equals_one_device(slow):
    assert len(slow["meshes"]) == 10
    for differences in slow["meshes"].values():
        assert_equal(differences)


@pytest.mark.slow
def test_eight_trials_equal_eight_runs(slow):
    assert len(slow["singles"]) == 8
    for differences in slow["singles"].values():
        assert_equal(differences)


@pytest.mark.slow
def test_four_students_together_equal_the_four_alone(slow):
    assert set(slow["together"]) == {"a", "b", "c", "d"}
    for differences in slow["together"].values():
        assert_equal(differences)


@pytest.mark.slow
def test_accumulation_of_every_term_equals_the_large_batch(slow):
    assert_equal(slow["accumulation"])


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    command = [sys.executable, WORKER, "process"]
    both = [
        subprocess.Popen(
            [*command, str(rank), port, tmp_path / "two.npz"],
            env=environment(4),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in both:
        _, said = process.communicate(timeout=900)
        assert process.returncode == 0, said[-3000:]
    one = subprocess.run(
        [*command, "alone", port, tmp_path / "one.npz"],
        env=environment(8),
        capture_output=True,
        text=True,
    )
    assert one.returncode == 0, one.stderr[-3000:]
    with np.load(tmp_path / "one.npz") as a, np.load(tmp_path / "two.npz") as b:
        assert len(a.files) > 20
        for name in a.files:
            np.testing.assert_allclose(a[name], b[name], rtol=BOUND, atol=BOUND)
