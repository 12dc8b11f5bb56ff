"""`lunar-distill sweep`: all trials of a config's get_sweep(); run again to resume or to help."""

from __future__ import annotations

import argparse
import sys

from lunar_distill_jax.cli.flags import given_switches
from lunar_distill_jax.cli.stopping import INTERRUPTED

EXAMPLE = """\
example:
  lunar-distill sweep --config configs/sweep_decoder.py:tiny --workdir runs/decoder --workers 2

The config file defines get_config(mode) and get_sweep(), which yields a dict of changes for each
trial. Trials that can share the teacher and the batches are trained as one program. More hosts:
the same command on each with --storage postgresql+psycopg://USER@HOST/DATABASE and one --workdir
on a shared disk. Finished trials are not repeated; failed ones are tried again.
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "sweep",
        help="train many students, those that can together",
        description="Train all trials of a sweep. Writes a directory per trial, results.csv and "
        "report.html.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="F.py[:mode]",
        help="then --config.key=VALUE changes single settings of all trials",
    )
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="new, or of the sweep to go on with"
    )
    parser.add_argument(
        "--storage",
        default="",
        metavar="URL",
        help="database of the queue (default: sqlite in the workdir, for one machine)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes on this machine (default 1)"
    )
    parser.add_argument(
        "--submit",
        metavar="N",
        type=int,
        default=0,
        help="hand N workers to SLURM instead (needs submitit); ends when all have ended",
    )
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of submitit's update_parameters, such as slurm_partition=gpu, timeout_min=600",
    )
    parser.set_defaults(takes_overrides=True)
    return parser


def run(args: argparse.Namespace) -> int | None:
    import absl.logging

    absl.logging.set_verbosity(absl.logging.FATAL)  # orbax tells at length what we say in one line

    from lunar_distill_jax.errors import InputError
    from lunar_distill_jax.progress import say
    from lunar_distill_jax.sweep import run as sweeps
    from lunar_distill_jax.sweep.launch import submit
    from lunar_distill_jax.train.preempt import Stopped

    if args.workers < 1:
        raise InputError(f"--workers is {args.workers}: give 1 or more.")
    given = ["sweep", "--config", args.config, "--workdir", args.workdir, *args.overrides]
    command = "lunar-distill " + " ".join(given)
    if args.storage:  # not on the page: it may hold a password
        given += ["--storage", args.storage]
    given += given_switches(args)
    if args.submit:
        submit(given, args.workdir, args.submit, args.slurm)
    elif args.workers > 1:
        sweeps.spawn(given, args.workers, restarts=2)
    try:
        results = sweeps.sweep(
            args.config,
            args.overrides,
            args.workdir,
            storage=args.storage,
            command=command,
            work=args.workers == 1 and not args.submit,
        )
    except Stopped as stopped:
        say(
            f"lunar-distill sweep: stopped after step {stopped.step} of a group, which is saved; "
            f"run the same command again to go on: {command}"
        )
        return INTERRUPTED if stopped.interrupted else 0
    failed = {name: r["failure"] for name, r in results.items() if "failure" in r}
    print(f"Wrote {args.workdir}/results.csv and report.html: {len(results) - len(failed)} trials")
    for name, why in failed.items():
        print(f"lunar-distill sweep: the trial {name} failed: {why}", file=sys.stderr)
    return 1 if failed else 0
