"""`lunar-distill train`: distillation by a config file; run again to resume."""

from __future__ import annotations

import argparse

EXAMPLE = """\
example:
  lunar-distill train --config configs/synthetic_demo.py --workdir runs/demo --config.steps=300

The config file defines get_config(mode), called with what follows a colon: --config FILE.py:tiny.
Killed or stopped, the same command goes on from the last checkpoint in the workdir.
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "train",
        help="distil a teacher into a student by a config file",
        description="Distil a teacher into a student, or train on ground truth where the config "
        "names no teacher. Writes checkpoints, metrics.jsonl and, at the end, student.safetensors.",
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
    parser.set_defaults(takes_overrides=True)  # --config.key=value: argparse cannot know the keys
    return parser


def run(args: argparse.Namespace) -> None:
    from lunar_distill_jax import api, atomic, demo
    from lunar_distill_jax.init.inherit import first_student
    from lunar_distill_jax.train.config import read_config
    from lunar_distill_jax.train.loop import STUDENT, train
    from lunar_distill_jax.train.plan import check_settings

    config = read_config(args.config, args.overrides)
    check_settings(config, has_teacher=bool(config.teacher))
    atomic.check_writable(args.workdir)
    teacher = api.load(config.teacher) if config.teacher else None
    student, _ = first_student(config.student, config.init, teacher, config.seed)
    pairs = demo.read_all("training pairs", config.data)
    train(config, args.workdir, pairs, teacher=teacher, student=student)
    print(f"Wrote {args.workdir}/{STUDENT}")
