r"""Timings, each as a ratio against a named peer in the same run: interleaved medians.

    make bench            # or: .venv/bin/python tools/bench.py --rounds 15
    .venv/bin/python tools/bench.py --rounds 5 --torch /path/to/python-with-torch
    .venv/bin/python tools/bench.py --rounds 5 --step 224 --torch /path/to/python-with-torch

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
from bench_loop import bench_loop
from bench_step import bench_step
from bench_students import bench_bfloat16, bench_depthwise, bench_students
from bench_teacher import bench_teacher
from bench_training import bench_training

from lunar_distill_jax import moon
from lunar_distill_jax.models.resize import double


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--torch", metavar="PYTHON", help="with torch: times the full teacher against PyTorch only"
    )
    parser.add_argument(
        "--keep", metavar="DIR", help="where the weights (5.5 GB) stay for next time"
    )
    parser.add_argument(
        "--step", type=int, metavar="PX", help="times one step of the real mast3r and s3 only"
    )
    args = parser.parse_args()
    rounds = args.rounds
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, medians of {rounds} rounds")
    if args.step:
        bench_step(args.torch, args.step, rounds, args.keep)
        return
    if args.torch:
        bench_teacher(args.torch, rounds, args.keep)
        return
    bench_students(["slim-s", "slim-ti", "slim-mobile", "s3"], 384, 512, min(rounds, 5))
    bench_bfloat16(rounds)
    bench_depthwise(rounds)
    bench_double(rounds)
    bench_render(rounds)
    bench_training(rounds)
    bench_loop()


if __name__ == "__main__":
    main()
