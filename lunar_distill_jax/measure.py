"""Wall time and memory of a network's forward pass on this machine, in a process of its own.

python -m lunar_distill_jax.measure slim-s 384x512 prints one JSON object.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.models.fresh import fresh_params, fresh_statistics
from lunar_distill_jax.models.stereo import StereoNet
from lunar_distill_jax.models.zoo import architecture

ROUNDS = 5


def forward(name: str, height: int, width: int) -> Callable[[], None]:
    """A named architecture's forward pass over one pair, compiled; float32, fresh parameters."""
    config = architecture(name)
    params, statistics_ = fresh_params(config, 0), fresh_statistics(config)
    variables = jax.device_put(api.variables(params, statistics_))
    rng = np.random.default_rng(0)
    one, two = rng.uniform(-1, 1, (2, 1, height, width, 3)).astype(np.float32)

    @jax.jit
    def run(variables, one, two):
        views: Any = StereoNet(config).apply(variables, one, two)
        return [view.replace(features={}) for view in views]

    jax.block_until_ready(run(variables, one, two))
    return lambda: jax.block_until_ready(run(variables, one, two))


def measure(name: str, height: int, width: int, rounds: int = ROUNDS) -> dict[str, float]:
    """{"seconds": median, "fastest", "peak_rss_bytes": of this process, compiling included}."""
    run = forward(name, height, width)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return {"seconds": statistics.median(seconds), "fastest": min(seconds), "peak_rss_bytes": peak}


def measure_apart(name: str, height: int, width: int) -> dict[str, float]:
    """`measure` in a fresh process, so that no other network's memory is in its peak."""
    command = [sys.executable, "-m", __name__, name, f"{height}x{width}"]
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
    height, width = (int(side) for side in sys.argv[2].split("x"))
    print(json.dumps(measure(sys.argv[1], height, width)))
