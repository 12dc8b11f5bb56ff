"""Wall time and memory of a network's forward pass on this machine, in a process of its own.

python -m lunar_distill_jax.measure slim-s 224x224 384x512 prints one JSON object.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.fresh import fresh_params, fresh_statistics
from lunar_distill_jax.models.stereo import StereoNet
from lunar_distill_jax.models.zoo import architecture

ROUNDS = 3


def forward(
    network: str | StereoConfig, height: int, width: int, variables: Any = None
) -> Callable[[], None]:
    """A network's forward pass over one pair, compiled; float32, fresh parameters."""
    config = architecture(network) if isinstance(network, str) else network
    variables = device_variables(config) if variables is None else variables
    rng = np.random.default_rng(0)
    one, two = rng.uniform(-1, 1, (2, 1, height, width, 3)).astype(np.float32)

    @jax.jit
    def run(variables, one, two):
        views: Any = StereoNet(config).apply(variables, one, two)
        return [view.replace(features={}) for view in views]

    jax.block_until_ready(run(variables, one, two))
    return lambda: jax.block_until_ready(run(variables, one, two))


def device_variables(network: str | StereoConfig) -> Any:
    """Fresh parameters of a network, on the device."""
    config = architecture(network) if isinstance(network, str) else network
    return jax.device_put(api.variables(fresh_params(config, 0), fresh_statistics(config)))


def measure(
    network: str | StereoConfig, sizes: Sequence[tuple[int, int]], rounds: int = ROUNDS
) -> dict[str, Any]:
    """Times one network at (height, width)s, in turn.

    -> {"384x512": {"seconds": median, "fastest"}, ..., "peak_rss_bytes": of this process, the
       compiler included}
    """
    variables, out = device_variables(network), {}
    for height, width in sizes:
        run, seconds = forward(network, height, width, variables), []
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        times = {"seconds": statistics.median(seconds), "fastest": min(seconds)}
        out[f"{height}x{width}"] = times
    return {**out, "peak_rss_bytes": peak_rss_bytes()}


def peak_rss_bytes() -> int:
    """The most memory that this process has had."""
    try:  # getrusage's peak takes over that of the process which started this one
        status = pathlib.Path("/proc/self/status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+)", status)[0])
    except (OSError, IndexError):
        return maxrss_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def maxrss_bytes(maxrss: int) -> int:
    """What getrusage calls `ru_maxrss`, in bytes: macOS counts bytes, Linux KiB."""
    return maxrss if sys.platform == "darwin" else 1024 * maxrss


def measure_apart(network: str | StereoConfig, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """`measure` in a fresh process, so that no other network's memory is in its peak."""
    name = network if isinstance(network, str) else json.dumps(network.to_dict())
    command = [sys.executable, "-m", __name__, name, *(f"{h}x{w}" for h, w in sizes)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": _path()}
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _path() -> str:
    return os.pathsep.join(p for p in sys.path if p)


def machine() -> str:
    """What ran, for a table's caption."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} threads, jax {jax.__version__}"


if __name__ == "__main__":
    given = [(int(h), int(w)) for h, w in (size.split("x") for size in sys.argv[2:])]
    named = sys.argv[1]
    described = StereoConfig.from_dict(json.loads(named)) if named.startswith("{") else named
    print(json.dumps(measure(described, given)))
