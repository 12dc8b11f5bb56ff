r"""How fast the Moon is rendered with all ground truth, at three sizes.

    .venv/bin/python tools/bench_moon.py
    .venv/bin/python tools/bench_moon.py --sizes 224 --presets stereolunar --seconds 20

Columns: pairs per CPU second of one pair a terrain; of three suns over each camera pair (what
`lunar-distill render` does); of three suns over four camera pairs that share a terrain; and of
`lunar-distill render` itself, which makes a scene on each core and writes files: per CPU second,
and by the clock, which sees other programs. Trajectories take turns; compilation is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import math
import pathlib
import tempfile
import time
from collections.abc import Callable

from lunar_distill_jax import cli, moon

TRAJECTORIES = ("nadir", "oblique", "dynamic")
SEED = 700_000


def rate(make: Callable[[int], list], seconds: float) -> float:
    """Pairs per CPU second of `make(index)` -> pairs, over whole rounds of the trajectories."""
    made, start, numbers = 0, time.process_time(), itertools.count()
    while time.process_time() - start < seconds:
        made += sum(len(make(index)) for index in itertools.islice(numbers, 3))
    return made / (time.process_time() - start)


def rates_of_verb(size: int, preset: str, pairs: int) -> list[float]:
    """Pairs per CPU second, and per second by the clock, of `lunar-distill render`, its files and
    contact sheet included."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        flags = ["--size", str(size), "--preset", preset, "--seed", str(SEED)]
        with contextlib.redirect_stderr(io.StringIO()):
            for name, count in (("compiles", 9), ("timed", pairs)):
                start = time.process_time(), time.perf_counter()
                out = str(pathlib.Path(folder) / name)
                code = cli.main(["render", "--out", out, "--pairs", str(count), *flags])
                assert code == 0
        return [pairs / (time.process_time() - start[0]), pairs / (time.perf_counter() - start[1])]


def bench(size: int, preset: str, seconds: float) -> list[float]:
    kind = moon.preset(preset)

    def single(index: int) -> list:
        return [moon.make_pair(SEED + index, TRAJECTORIES[index % 3], size, moon=kind)]

    def suns(index: int, geometries: int = 1) -> list:
        trajectory = TRAJECTORIES[index % 3]
        return moon.make_lightings(SEED + index, trajectory, size, moon=kind, geometries=geometries)

    suns(0, 2)  # compiles everything
    return [
        rate(single, seconds),
        rate(suns, seconds),
        rate(lambda index: suns(index, 4), seconds),
        *rates_of_verb(size, preset, 9 * math.ceil(seconds * 5e5 / size**2)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 224, 512])
    parser.add_argument("--presets", nargs="+", default=list(moon.PRESETS))
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (3)")
    args = parser.parse_args()
    print(
        "| pixels | preset | one pair | 3 suns | 3 suns x 4 camera pairs | `render` | its clock |"
    )
    print("|---:|---|---:|---:|---:|---:|---:|")
    for size in args.sizes:
        for preset in args.presets:
            rates = bench(size, preset, args.seconds)
            print(f"| {size} | {preset} |" + "".join(f" {r:.1f} |" for r in rates), flush=True)


if __name__ == "__main__":
    main()
