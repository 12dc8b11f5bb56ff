"""A small training run in a process of its own, to be killed: train_worker.py WORKDIR [long] ...

long   300 steps, a checkpoint at each of them
stop   stop after some of them, as if SIGTERM had come
mesh   on eight simulated devices
rank R PORT  process R of two
"""

import dataclasses
import os
import sys

if __name__ == "__main__":
    if "mesh" in sys.argv:
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"

import pathlib

import jax
import ml_collections as mlc
import tiny

import lunar_distill_jax as ld
from lunar_distill_jax.train.loop import train_together
from lunar_distill_jax.train.preempt import Stopped
from lunar_distill_jax.train.watching import Watcher

STEPS = 9
STUDENT_CONFIG = dataclasses.replace(
    tiny.CONFIG,
    decoder=dataclasses.replace(tiny.CONFIG.decoder, depth=1),
    head=dataclasses.replace(
        tiny.CONFIG.head, kind="catconv", plane=False, shared=True, desc_ratio=1.0
    ),
)
TEACHER = dataclasses.replace(
    STUDENT_CONFIG,
    name="tiny-teacher",
    encoder=dataclasses.replace(tiny.CONFIG.encoder, width=24),
)


def get_config(**changes):
    c = mlc.ConfigDict()
    c.seed, c.steps, c.batch, c.augment = 0, STEPS, 4, False
    c.loss = dict(points=1.0, features=0.3)
    # A large eps: Adam's first step is the sign of the gradient, and a sign turns rounding to steps
    c.optim = dict(lr=5e-3, final=1e-3, warmup=3, eps=1e-2)
    c.mesh = dict(trial=1, data=1, model=1)
    c.profile = dict(start=0, steps=5)
    c.log_every, c.checkpoint_every = 1, 4
    c.tensorboard = True
    for key, value in changes.items():
        if isinstance(value, dict) and key in c and key != "loss":
            c[key].update(value)
        else:
            c[key] = value
    return c


def make_pairs(count=6):
    return [tiny.plane_pair(i) for i in range(count)]


def main(workdir, *words):
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    cache = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    changes = {}
    if "rank" in words:
        rank, port = int(words[words.index("rank") + 1]), words[words.index("rank") + 2]
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank, heartbeat_timeout_seconds=10)
        changes["mesh"] = dict(data=-1)
    if "mesh" in words:
        changes["mesh"] = dict(data=4, model=2)
    if "long" in words:
        changes |= dict(steps=300, checkpoint_every=1)

    def on_log(row):
        print(row["step"], flush=True)
        if "stop" in words and row["step"] == 120:
            os.kill(os.getpid(), 15)

    try:
        train_together(
            get_config(**changes),
            workdir,
            make_pairs(),
            teacher=ld.build(TEACHER, 7),
            students={"": [ld.build(STUDENT_CONFIG, 0)]},
            watcher=Watcher(on_log=on_log),
        )
    except Stopped as stopped:
        print("stopped", stopped.step)


if __name__ == "__main__":
    main(*sys.argv[1:])
