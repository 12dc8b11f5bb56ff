r"""Timings, each as a ratio against a named peer in the same run: interleaved medians.

    make bench            # or: .venv/bin/python tools/bench.py --rounds 15
    .venv/bin/python tools/bench.py --rounds 5 --torch /path/to/python-with-torch

Absolute times belong to the machine of the day; only the ratios travel.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from bench_students import bench_bfloat16, bench_depthwise, bench_students
from bench_teacher import bench_teacher

from lunar_distill_jax import api, moon
from lunar_distill_jax.demo import get_config
from lunar_distill_jax.losses.settings import LossSettings
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.resize import double
from lunar_distill_jax.train import forward
from lunar_distill_jax.train.optim import OptimSettings
from lunar_distill_jax.train.state import Student, Trial, init_state
from lunar_distill_jax.train.step import make_train_step


def compare(label: str, ours: Callable, peer_label: str, peer: Callable, rounds: int) -> None:
    """Prints the median time of `ours`, of `peer`, and the ratio peer / ours."""
    times: tuple[list[float], list[float]] = ([], [])
    ours(), peer()  # compile, warm the caches
    for _ in range(rounds):
        for run, into in zip((ours, peer), times, strict=True):
            start = time.perf_counter()
            run()
            into.append(time.perf_counter() - start)
    a, b = (statistics.median(t) for t in times)
    print(f"{label:44s} {a * 1e3:9.1f} ms   {peer_label:36s} {b * 1e3:9.1f} ms   {b / a:5.2f}x")


def blocked(function: Callable, *args) -> Callable:
    return lambda: jax.block_until_ready(function(*args))


def bench_render(rounds: int) -> None:
    seeds = iter(range(10_000, 20_000))

    def shared():
        moon.make_lightings(next(seeds), "nadir", 128, (0, 1, 2))

    def apart():
        seed = next(seeds)
        for sun in (0, 1, 2):
            moon.make_pair(seed, "nadir", 128, sun=sun)

    compare("render 3 suns, one terrain, 128 px", shared, "three single renders", apart, rounds)


def bench_double(rounds: int) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 96, 128, 64)).astype(np.float32))

    @jax.jit
    def resize(x):  # half-pixel corners: other values, the same work
        return jax.image.resize(x, (2, 192, 256, 64), "bilinear")

    def gradient(f):
        return jax.jit(jax.grad(lambda x: jnp.sum(f(x) ** 2)))

    peer = "jax.image.resize"
    compare(
        "double 96x128x64, forward", blocked(jax.jit(double), x), peer, blocked(resize, x), rounds
    )
    compare(
        "double 96x128x64, gradient",
        blocked(gradient(double), x),
        f"{peer}, gradient",
        blocked(gradient(resize), x),
        rounds,
    )


def bench_step(rounds: int) -> None:
    """What the teacher inside the step costs: the student trained on given targets is the peer."""
    teacher, student = api.build("moonlet"), api.build("moonlet-student")
    weights = {k: v for k, v in get_config().loss.items() if v and k != "features"}
    rng = np.random.default_rng(0)
    shape = (8, 96, 96)
    batch = {k: rng.normal(size=(*shape, 3)).astype(np.float32) for k in ("image1", "image2")}
    for k in ("points1", "points2"):
        batch[k] = rng.normal(size=(*shape, 3)).astype(np.float32) + 3
    batch |= {k: np.ones(shape, bool) for k in ("valid1", "valid2")}
    compiled = Student(student.config, OptimSettings(steps=10**6), tuple(weights))
    trials = [Trial(student.params, weights, lr=1e-4)]
    settings = LossSettings()

    def runner(target_fn, variables):
        step = make_train_step({"": compiled}, target_fn, settings)
        state = init_state({"": (compiled, trials)}, None)

        def run():
            nonlocal state
            state, metrics = step(state, variables, batch)
            jax.block_until_ready(metrics)

        return run

    live = forward.live_teacher(teacher.config, compiled.on, settings, compute=Compute())
    compare(
        "step with the live teacher, 8 pairs, 96 px",
        runner(live, teacher.variables),
        "step on given targets",
        runner(forward.ground_truth(compiled.on), None),
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--torch", metavar="PYTHON", help="with torch: times the full teacher against PyTorch only"
    )
    parser.add_argument(
        "--keep", metavar="DIR", help="with --torch: where the weights (5.5 GB) stay for next time"
    )
    args = parser.parse_args()
    rounds = args.rounds
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, medians of {rounds} rounds")
    if args.torch:
        bench_teacher(args.torch, rounds, args.keep)
        return
    bench_students(["slim-s", "slim-ti", "slim-mobile", "s3"], 384, 512, min(rounds, 5))
    bench_bfloat16(rounds)
    bench_depthwise(rounds)
    bench_double(rounds)
    bench_render(rounds)
    bench_step(rounds)


if __name__ == "__main__":
    main()
