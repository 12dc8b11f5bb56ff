"""The full teacher through the converter, both ways: 2.75 GB, so only when asked for."""

import subprocess
import sys

import numpy as np
import pytest

from lunar_distill_jax.convert.model_string import format_model_string
from lunar_distill_jax.convert.teacher import checkpoint_tensors, reference_arguments
from lunar_distill_jax.convert.torch_file import read_checkpoint
from lunar_distill_jax.convert.torch_write import write_pth
from lunar_distill_jax.models.fresh import fresh_params
from lunar_distill_jax.models.zoo import architecture

BYTES = 4 * 688_638_856
# Not getrusage: its peak takes over that of the process which started this one.
CHILD = """
import pathlib, re, sys, time
from lunar_distill_jax import cli
start = time.monotonic()
code = cli.main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())
print(f"seconds {time.monotonic() - start:.1f} peak {1024 * int(peak[1])}")
sys.exit(code)
"""


def convert(*arguments) -> int:
    """Runs the verb in a process of its own; returns its peak memory in bytes."""
    command = [sys.executable, "-c", CHILD, "convert", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stderr + done.stdout)
    return int(done.stdout.rsplit("peak ", 1)[1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_full_teacher_goes_both_ways_within_its_own_size(tmp_path):
    config = architecture("mast3r")
    tensors = checkpoint_tensors(config, fresh_params(config, 0))
    assert sum(t.size for t in tensors.values()) == 695_274_376  # with aliases, as released
    model = format_model_string(reference_arguments(config))
    write_pth(tmp_path / "teacher.pth", tensors, {"model": model})
    assert BYTES < (tmp_path / "teacher.pth").stat().st_size < 1.001 * BYTES
    ours = convert(tmp_path / "teacher.pth", tmp_path / "ours.safetensors")
    back = convert(tmp_path / "ours.safetensors", tmp_path / "back.pth", "--to", "torch")
    again = read_checkpoint(tmp_path / "back.pth").tensors
    assert set(again) == set(tensors)
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
    assert max(ours, back) <= 1.3 * BYTES, (ours / BYTES, back / BYTES)
