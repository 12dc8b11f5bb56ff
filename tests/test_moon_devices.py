"""One seed on other devices: the same bytes on one kind of processor, close by on any other.

Other processors and compilers are had on this one by XLA's flags, each in a process of its own.
"""

import os
import pathlib
import subprocess
import sys

import conftest
import numpy as np
import pytest
import render_worker

WORKER = pathlib.Path(__file__).with_name("render_worker.py")


def rendered(folder, presets, seeds, **environment):
    """What `render_worker` makes in a process with these variables, by "preset/field"."""
    out = folder / "pairs.npz"
    command = [sys.executable, str(WORKER), str(out), presets, str(seeds)]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(conftest.CACHE)}
    subprocess.run(command, env=cache | os.environ | environment, check=True, timeout=600)
    with np.load(out) as file:
        return dict(file)


def differences(a, b, preset):
    """{what: how much}: share of the pixels that differ in grey level, and by how much at worst;
    relative depth at worst; share of the pixels that differ in validity."""
    grey = np.abs(a[f"{preset}/image"].astype(int) - b[f"{preset}/image"])
    both = a[f"{preset}/valid"] & b[f"{preset}/valid"]
    depth, other = (x[f"{preset}/depth_m"][both] for x in (a, b))
    return {
        "grey": float((grey > 0).mean()),
        "worst": int(grey.max()),
        "depth": float(np.abs(depth / other - 1).max()),
        "valid": float((a[f"{preset}/valid"] != b[f"{preset}/valid"]).mean()),
    }


@pytest.mark.slow
def test_the_last_of_two_devices_gives_the_bytes_of_one(tmp_path):
    """Compiled as this suite compiles: without most optimizations."""
    other = rendered(
        tmp_path,
        "first",
        1,
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )
    assert other["devices"] == 2
    for field, array in render_worker.render("first", range(1)).items():
        assert array.tobytes() == other[f"first/{field}"].tobytes(), field


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """As users render: all optimizations, all instructions of this processor."""
    return rendered(tmp_path_factory.mktemp("here"), "first,physical", 3)


# 18 pairs of 64 pixels. Bounds are four times what was seen, on an AMD EPYC.
@pytest.mark.slow
@pytest.mark.parametrize(
    "environment, grey, depth",
    [
        ({}, 0, 0),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, 0, 0),
        # No fused multiply-add, vectors of four: seen 5.4e-5 (2.7e-5 physical), 4.8e-7 (2.4e-7)
        ({"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"}, 2.2e-4, 2e-6),
        # Another compiler, for practical purposes: seen 5.4e-5, 3.6e-7
        ({"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}, 2.2e-4, 1.5e-6),
        # Sums in any order, reciprocals for divisions: seen 1.7e-3, 4.2e-5
        ({"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}, 7e-3, 1.7e-4),
    ],
    ids=["again", "eight devices", "SSE4.2", "unoptimised", "fast math"],
)
def test_other_devices_render_the_same_within_a_grey_level(
    here, tmp_path, environment, grey, depth
):
    presets = ("first", "physical") if "fast" not in str(environment) else ("first",)
    there = rendered(tmp_path, ",".join(presets), 3, **environment)
    for preset in presets:
        seen = differences(here, there, preset)
        print(preset, seen)
        assert seen["grey"] <= grey and seen["worst"] <= (grey > 0), seen
        assert seen["depth"] <= depth and seen["valid"] == 0, seen
        if not grey:
            fields = [key for key in there if key.startswith(preset)]
            assert all(here[key].tobytes() == there[key].tobytes() for key in fields)
