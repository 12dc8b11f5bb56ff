"""`lunar-distill validate`: what is wrong with a data folder, before a training run finds out."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import pathlib

from lunar_distill_jax.errors import InputError

EXAMPLE = """\
example:
  lunar-distill validate DIR/stereolunar --report report.json

reads every frame once and prints what it found; the exit code is 2 if any frame or pair cannot be
used (a file is missing or damaged, a black image, nan in the depth, K of a wrong shape, a pose that
is not rigid, frames of several sizes, depth maps that disagree, an empty split, a geometry in two
splits), 0 if there are only warnings (infinite depth, a camera file that was replaced).
"""
SHOWN = 3  # findings of one kind that are printed in full


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "validate",
        help="find missing, damaged and disagreeing frames in a data folder",
        description="Check a folder of stereo pairs: every file, every camera, and whether the two "
        "depth maps of every geometry agree.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", metavar="DATA", help="a folder of stereo pairs")
    parser.add_argument("--split", metavar="FILE", help="one split file (default: all of them)")
    parser.add_argument("--report", metavar="FILE.json", help="all findings, for programs")
    return parser


def run(args: argparse.Namespace) -> None:
    from lunar_distill_jax import atomic
    from lunar_distill_jax.data import validate
    from lunar_distill_jax.progress import Progress

    if args.report:
        atomic.check_writable(pathlib.Path(args.report).parent)
    refs, refused = validate.list_pairs(args.data, args.split)
    with Progress(len(refs), "validate") as progress:
        report = validate.validate(args.data, refs, refused, progress=progress.update)
    if args.report:
        text = json.dumps(dataclasses.asdict(report), indent=1)
        atomic.write_text(args.report, text + "\n")
    _print(report)
    if report.errors:
        first = report.errors[0].message.rstrip(".")
        raise InputError(
            f"{len(report.errors)} of the findings in {args.data} are errors (expected 0), listed "
            f"above; the first: {first}."
        )


def _print(report) -> None:
    kinds = ", ".join(f"{count} {name}" for name, count in report.trajectories.items())
    sizes = ", ".join(f"{count} of {size}" for size, count in report.sizes.items())
    print(
        f"{report.root}: {report.pairs} pairs ({kinds or 'none'}) of {report.geometries} geometries"
    )
    print(f"frames     {report.frames}; readable: {sizes or 'none'}")
    seen = [a for a in report.agreements.values() if a.overlap > 0]
    if seen:
        px, m, overlap = (
            (min(v), max(v))
            for v in zip(*((a.median_px, a.median_m, a.overlap) for a in seen), strict=True)
        )
        print(
            f"agreement  depth of view 1 carried into view 2: median {m[0]:.2g} to {m[1]:.2g} m "
            f"({px[0]:.2g} to {px[1]:.2g} px), overlap {overlap[0]:.0%} to {overlap[1]:.0%}, "
            f"{len(seen)} geometries"
        )
    for error, title in ((True, "errors"), (False, "warnings")):
        findings = [f for f in report.findings if f.error == error]
        print(f"{title:10} {len(findings) or 'none'}")
        kinds = collections.defaultdict(list)
        for finding in findings:
            kinds[finding.kind].append(finding.message)
        for messages in kinds.values():
            for message in messages[:SHOWN]:
                print(f"  {message}")
            if len(messages) > SHOWN:
                print(f"  ... and {len(messages) - SHOWN} more of this kind")
