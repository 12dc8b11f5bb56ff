"""`lunar-distill demo`: the main job on the embedded default."""

from __future__ import annotations

import argparse
import shlex

EXAMPLE = """\
example:
  lunar-distill demo --workdir demo

then open demo/report.html: surfaces to turn, photographs, depth, relief, slope, errors.
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "demo",
        help="distil the embedded teacher into a student and look at both",
        description="Render stereo pairs of a synthetic Moon, distil the embedded teacher into a "
        "small student, evaluate both beside classical matching on unseen terrain, write a page "
        "that shows it. Some minutes on two CPU cores.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", default="demo", metavar="DIR", help="(default: demo)")
    parser.add_argument(
        "--data", metavar="DIR", help="a folder of real pairs to evaluate on too, as StereoLunar's"
    )
    parser.add_argument("--tiny", action="store_true", help="shorter; the student learns nothing")
    return parser


def run(args: argparse.Namespace) -> None:
    from lunar_distill_jax import demo  # jax takes a second to import; --help should not
    from lunar_distill_jax.cli.evaluate import print_table

    config = demo.get_config("tiny" if args.tiny else "full")
    words = ["lunar-distill", "demo", "--workdir", args.workdir]
    words += (["--data", args.data] if args.data else []) + ["--tiny"] * args.tiny
    evaluation = demo.run_demo(config, args.workdir, shlex.join(words), args.data)
    print_table(evaluation, demo.COLUMNS)
    print(f"Open {args.workdir}/report.html")
