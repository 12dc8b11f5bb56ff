"""`lunar-distill demo`: the main job on the embedded default."""

from __future__ import annotations

import argparse
import shlex

EXAMPLE = """\
example:
  lunar-distill demo --workdir demo

then open demo/report.html: photographs, depth, relief, slope, errors and a point cloud to turn.
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "demo",
        help="distil the embedded teacher into a student and look at both",
        description="Render stereo pairs of a synthetic Moon, distil the embedded teacher into a "
        "small student, evaluate both on unseen terrain, write a page that shows it. Under five "
        "minutes on two CPU cores.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", default="demo", metavar="DIR", help="(default: demo)")
    parser.add_argument(
        "--tiny", action="store_true", help="a minute instead of four; the student learns nothing"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    from lunar_distill_jax import demo  # jax takes a second to import; --help should not

    config = demo.get_config("tiny" if args.tiny else "full")
    command = f"lunar-distill demo --workdir {shlex.quote(args.workdir)}" + " --tiny" * args.tiny
    evaluation = demo.run_demo(config, args.workdir, command)
    print(f"{'':16s}{'point error %':>14s}{'AbsRel':>10s}{'relief corr':>13s}")
    for model, values in evaluation.summary.items():
        print(
            f"{model:16s}{values['point_error_pct']:14.2f}{values['abs_rel']:10.4f}"
            f"{values['relief_corr']:13.3f}"
        )
    print(f"Open {args.workdir}/report.html")
