r"""A sweep of twelve small trials against the same twelve, one after the other through `train`.

    .venv/bin/python tools/bench_sweep.py

Three decoders x two losses x two seeds on rendered ground, one worker. Both sides start with an
empty compilation cache of their own, which the runs of a side share; XLA compiles in its quick
mode, so that compilation, which a sweep saves most of, weighs less than in earnest.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax

from lunar_distill_jax import api

RATIOS, RELIEFS, SEEDS = (0.0, 1.0, 2.0), (0.0, 1.0), (0, 1)
CONFIG = f"""
from lunar_distill_jax.train.options import data_block, run_config

def get_config(mode="full"):
    c = run_config()
    c.teacher, c.student, c.data_seed = "teacher.safetensors", "test", 0
    c.steps, c.batch, c.augment = 20, 4, False
    c.loss.points = 1.0
    c.optim.update(lr=1e-3)
    c.data = data_block(source="synthetic", size=32, geometries=6)
    c.sets = {{"unseen": data_block(source="synthetic", size=32, geometries=2, seed=100)}}
    c.evaluate_every, c.checkpoint_every = 10, 10
    c.sweep.latency = False
    return c

def get_sweep():
    for ratio in {RATIOS}:
        for relief in {RELIEFS}:
            for seed in {SEEDS}:
                yield {{"decoder.mlp_ratio": ratio, "loss.relief": relief, "seed": seed}}
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        api.save(api.build("test", 5), pathlib.Path(folder) / "teacher.safetensors")
        pathlib.Path(folder, "twelve.py").write_text(CONFIG)
        together = seconds(folder, "cache1", ["sweep", "--workdir", "sweep"])
        apart = sum(
            seconds(
                folder,
                "cache2",
                ["train", "--workdir", f"{ratio}-{relief}-{seed}"]
                + [f"--config.decoder.mlp_ratio={ratio}", f"--config.loss.relief={relief}"]
                + [f"--config.seed={seed}"],
            )
            for ratio, relief, seed in itertools.product(RATIOS, RELIEFS, SEEDS)
        )
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {os.cpu_count()} threads")
    print(
        f"{'sweep, 12 trials, one worker':44s} {together:9.1f} s    "
        f"{'the same by 12 x train':36s} {apart:9.1f} s    {together / apart:5.2f}"
    )


def seconds(folder: str, cache: str, arguments: list[str]) -> float:
    """Wall time of one command, from its start to its end."""
    verb, *flags = arguments
    command = [sys.executable, "-m", "lunar_distill_jax", verb, "--config", "twelve.py", *flags]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(folder) / cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    start = time.monotonic()
    subprocess.run(
        command,
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    return time.monotonic() - start


if __name__ == "__main__":
    main()
