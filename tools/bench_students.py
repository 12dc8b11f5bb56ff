"""Students' forward passes against their peers in one run, in turns; medians.

    .venv/bin/python tools/bench_students.py                     # slim-s, s3 and the teacher
    .venv/bin/python tools/bench_students.py slim-s s3 --size 224x224 --rounds 9

float32, batch 1, fresh parameters. Absolute times belong to the machine of the day; ratios travel.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np

from lunar_distill_jax import api, measure, moon
from lunar_distill_jax.cli.info import SIZE, parse_size
from lunar_distill_jax.models.compute import DTYPES, Compute
from lunar_distill_jax.models.encoders.depthwise import DepthwiseConv

TRAJECTORIES = ("nadir", "oblique", "dynamic")


def in_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """{name: seconds of each round}; the first pass of each, which compiles, is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def bench_students(names: list[str], height: int, width: int, rounds: int) -> None:
    """Prints each network's median time, the fastest, and ratios to the others'."""
    print(f"{measure.machine()}; {height} x {width}, float32, {rounds} rounds in turns")
    times = in_turns({name: measure.forward(name, height, width) for name in names}, rounds)
    for label, reduce in (("median", statistics.median), ("fastest", min)):
        seconds = {name: reduce(t) for name, t in times.items()}
        for name, own in seconds.items():
            ratios = (f"{other / own:6.2f}x {n}" for n, other in seconds.items() if n != name)
            print(f"{label} {name:16s} {own * 1e3:9.1f} ms   faster than:{''.join(ratios)}")


def bench_depthwise(rounds: int) -> None:
    """Our depthwise convolution against XLA's grouped one, at sizes of MobileNetV3 and ConvNeXt."""
    for k, s, (h, w, c) in ((3, 1, (96, 128, 72)), (5, 1, (48, 64, 120)), (7, 1, (24, 32, 384))):
        x = np.random.default_rng(0).normal(size=(2, h, w, c)).astype(np.float32)
        options = {"padding": k // 2, "use_bias": False, "feature_group_count": c}
        nets = {
            "ours": DepthwiseConv(k, s),
            "XLA's grouped": nn.Conv(c, (k, k), (s, s), **options),
        }
        runs = {}
        for name, net in nets.items():
            variables, apply = net.init(jax.random.key(0), x), jax.jit(net.apply)
            runs[name] = lambda f=apply, v=variables, x=x: jax.block_until_ready(f(v, x))
        ours, peer = map(statistics.median, in_turns(runs, rounds).values())
        label = f"depthwise {k}x{k}, 2x{h}x{w}x{c}"
        print(
            f"{label:44s} {ours * 1e3:9.1f} ms   {'grouped nn.Conv':36s} {peer * 1e3:9.1f} ms   "
            f"{peer / ours:5.2f}x"
        )


def bench_bfloat16(rounds: int, pairs: int = 8) -> None:
    """bfloat16 in encoder and decoder against float32: the embedded teacher, on synthetic pairs."""
    teacher = api.load("moonlet")
    seen = [moon.make_pair(9000 + i, TRAJECTORIES[i % 3], 96) for i in range(pairs)]
    photographs = np.stack([pair.image for pair in seen]).astype(np.float32) / 127.5 - 1
    images = photographs[:, 0], photographs[:, 1]
    computes = {name: Compute(dtype=name) for name in DTYPES}
    runs = {
        name: lambda c=compute: jax.block_until_ready(api.predict(teacher, *images, compute=c))
        for name, compute in computes.items()
    }
    exact, rounded = (np.asarray(run()[0].pts3d) for run in runs.values())
    error = 100 * np.linalg.norm(rounded - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    medians = {name: statistics.median(t) for name, t in in_turns(runs, rounds).items()}
    ours, peer = medians["bfloat16"], medians["float32"]
    label = f"moonlet in bfloat16, {pairs} pairs, 96 px"
    print(
        f"{label:44s} {ours * 1e3:9.1f} ms   {'float32':36s} "
        f"{peer * 1e3:9.1f} ms   {peer / ours:5.2f}x\n  points move by {np.median(error):.2f} % of "
        f"their distance, 99 of 100 by less than {np.percentile(error, 99):.2f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["slim-s", "s3", "mast3r"])
    parser.add_argument("--size", default=SIZE, metavar="HxW")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    bench_students(args.names, *parse_size(args.size), args.rounds)


if __name__ == "__main__":
    main()
