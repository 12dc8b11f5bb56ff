"""`lunar-distill train`: distillation by a config file; run again to resume."""

from __future__ import annotations

import argparse

from lunar_distill_jax.cli.flags import given_switches
from lunar_distill_jax.cli.stopping import INTERRUPTED

EXAMPLE = """\
example:
  lunar-distill train --config configs/synthetic_demo.py --workdir runs/demo --config.steps=300

The config file defines get_config(mode), called with what follows a colon: --config FILE.py:tiny.
Killed or stopped, the same command goes on from the last checkpoint in the workdir. SIGTERM saves
and ends with exit code 0, Ctrl-C with 130. Several hosts: the same command on each, with
--coordinator auto on TPU pods and SLURM, else --coordinator HOST:PORT --processes N --process I.
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "train",
        help="distil a teacher into a student by a config file",
        description="Distil a teacher into a student, or train on ground truth where the config "
        "names no teacher. Writes checkpoints, metrics.jsonl, TensorBoard events, run.html and, at "
        "the end, student.safetensors.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="F.py[:mode]",
        help="then --config.key=VALUE changes single settings",
    )
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="new, or of the run to resume"
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="start the run again, up to N times, when it dies",
    )
    hosts = parser.add_argument_group("several processes")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, or 'auto'")
    hosts.add_argument("--processes", type=int, metavar="N", help="how many there are")
    hosts.add_argument("--process", type=int, metavar="I", help="which of them this is")
    hosts.add_argument(
        "--heartbeat-timeout",
        type=int,
        default=30,
        metavar="SECONDS",
        help="a process silent for so long is lost, and the others end (default %(default)s)",
    )
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(takes_overrides=True)  # --config.key=value: argparse cannot know the keys
    return parser


def run(args: argparse.Namespace) -> int | None:
    import absl.logging

    absl.logging.set_verbosity(absl.logging.FATAL)  # orbax tells at length what we say in one line

    from lunar_distill_jax.progress import say
    from lunar_distill_jax.runs import hosts, start
    from lunar_distill_jax.train.config import read_config
    from lunar_distill_jax.train.loop import STUDENT
    from lunar_distill_jax.train.preempt import Stopped

    config = read_config(args.config, args.overrides)
    start.check_run(config)
    together = args.coordinator is not None
    if (args.max_restarts or together) and not args.supervised:
        given = ["train", "--config", args.config, "--workdir", args.workdir, *args.overrides]
        for flag in ("coordinator", "processes", "process", "heartbeat_timeout"):
            if (value := getattr(args, flag)) is not None:
                given += [f"--{flag.replace('_', '-')}", str(value)]
        given += given_switches(args)
        return hosts.supervise(
            [*given, "--supervised"],
            args.max_restarts,
            together=together,
            heartbeat_timeout=args.heartbeat_timeout if together else 0.0,
        )
    hosts.join(args.coordinator, args.processes, args.process, args.heartbeat_timeout)
    command = "lunar-distill " + " ".join(
        ["train", "--config", args.config, "--workdir", args.workdir, *args.overrides]
    )
    try:
        with hosts.leaving():
            trained = start.start(config, args.workdir, command)
    except Stopped as stopped:
        say(
            f"lunar-distill train: stopped after step {stopped.step}, which is saved; run the same "
            f"command again to go on: {command}"
        )
        return INTERRUPTED if stopped.interrupted else 0
    for folder in trained:
        print(f"Wrote {'/'.join(filter(None, (args.workdir, folder, STUDENT)))}")
    return None
