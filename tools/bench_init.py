r"""Time and peak memory of initialising the paper's students from a full-size teacher.

    .venv/bin/python tools/bench_init.py --student s2 s3 --method paper structured

The teacher is `mast3r` with random parameters. Prints a Markdown table: seconds of `init_student`
by itself, and the most memory that the process held meanwhile, the teacher's 2.8 GB included.
"""

from __future__ import annotations

import argparse
import pathlib
import time
import warnings

from lunar_distill_jax import api
from lunar_distill_jax.init.student import METHODS, init_student

STATUS = pathlib.Path("/proc/self/status")  # Linux


def peak_gb() -> float:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="mast3r")
    parser.add_argument("--student", nargs="+", default=("s2", "s3"))
    parser.add_argument("--method", nargs="+", choices=METHODS, default=("paper", "structured"))
    parser.add_argument("--pairs", type=int, default=32, help="synthetic ones, of calibrated")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # the students' encoders are random, too
    teacher = api.build(args.teacher, seed=0)
    print(f"teacher in memory: {peak_gb():.1f} GB", flush=True)
    for name in args.student:
        student = api.build(name, seed=0)
        for method in args.method:
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
            start = time.monotonic()
            data = "synthetic" if method == "calibrated" else None
            _, report = init_student(teacher, student, method, data, pairs=args.pairs)
            seconds = time.monotonic() - start
            print(f"| {name} | `{method}` | {seconds:.1f} s | {peak_gb():.1f} GB |", flush=True)
            if "calibration" in report:
                print(report["calibration"], flush=True)


if __name__ == "__main__":
    main()
