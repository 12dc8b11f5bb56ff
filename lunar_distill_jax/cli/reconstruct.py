"""`lunar-distill reconstruct`: 3D from two photographs of any size."""

from __future__ import annotations

import argparse
import pathlib
import shlex
import sys

from lunar_distill_jax.errors import InputError

EXAMPLE = """\
examples:
  lunar-distill reconstruct left.jpg right.jpg --out surface
  lunar-distill reconstruct left.jpg right.jpg --altitude 12000 --out surface
  lunar-distill reconstruct lefts/ rights/ --out surfaces    one folder for each pair, by name

writes points.ply, surface.glb, depth and confidence of both views (EXR), matches.csv, camera.json,
dem.tif, slope.tif and report.html, which opens without a network
"""
PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "reconstruct",
        help="3D surface, cameras and matches from two photographs",
        description="Reconstruct the surface that two photographs of any size show. Photographs "
        "that do not overlap are refused.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image1", metavar="IMAGE1", help="a photograph, or a folder of them")
    parser.add_argument("image2", metavar="IMAGE2", help="a photograph, or a folder of as many")
    parser.add_argument("--model", default="moonlet", help="(default: moonlet, the embedded one)")
    parser.add_argument("--out", default="reconstruction", metavar="DIR", help="a new folder")
    parser.add_argument(
        "--size", type=int, help="long side of the model's frames (default: what it was trained at)"
    )
    parser.add_argument(
        "--focal",
        type=float,
        nargs="+",
        metavar="PX",
        help="focal length in pixels of the photographs, one or two numbers (default: estimated)",
    )
    parser.add_argument("--baseline", type=float, metavar="M", help="between the cameras, metres")
    parser.add_argument(
        "--altitude", type=float, metavar="M", help="of camera 1 above the ground, metres"
    )
    parser.add_argument(
        "--turns",
        type=int,
        choices=(1, 4),
        help="4: the second photograph is tried at its quarter turns (default: as the model wants)",
    )
    parser.add_argument(
        "--force", action="store_true", help="write a surface even if the views do not overlap"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    from lunar_distill_jax import api, atomic
    from lunar_distill_jax.progress import COMPILING, Progress
    from lunar_distill_jax.reconstruction.run import check_numbers
    from lunar_distill_jax.report.reconstruction import write_reconstruction

    if args.size is not None and args.size < 16:
        raise InputError(f"--size is {args.size}: give at least 16 pixels.")
    if args.focal is not None and len(args.focal) > 2:
        raise InputError(f"--focal has {len(args.focal)} numbers: give one, or one for each view.")
    check_numbers(args.focal, args.baseline, args.altitude)
    jobs = _jobs(pathlib.Path(args.image1), pathlib.Path(args.image2), pathlib.Path(args.out))
    for _, _, out in jobs:
        atomic.check_new(out)  # now, and not after a minute of work
    stereo = api.load(args.model)
    refused = []
    with Progress(len(jobs), "reconstruct", first=COMPILING) as progress:
        for one, two, out in jobs:
            try:
                _reconstruct(stereo, one, two, out, args, write_reconstruction)
            except InputError as error:
                if len(jobs) == 1:
                    raise
                refused.append(error)
                print(f"lunar-distill reconstruct: {error}", file=sys.stderr)
            progress.update(1)
    if refused:
        raise InputError(
            f"{len(refused)} of {len(jobs)} pairs were not reconstructed, for the reasons above; "
            f"the others are in {args.out}."
        )


def _jobs(one: pathlib.Path, two: pathlib.Path, out: pathlib.Path):
    """(photograph, photograph, folder) of each pair."""
    if one.is_dir() != two.is_dir():
        folder, file = (one, two) if one.is_dir() else (two, one)
        raise InputError(f"{folder} is a folder and {file} is not: give two of one kind.")
    if not one.is_dir():
        for path in (one, two):
            if not path.is_file():
                raise InputError(f"There is no photograph {path}: check the path.")
        return [(one, two, out)]
    ones, twos = (
        sorted(p for p in folder.iterdir() if p.suffix.lower() in PHOTOGRAPHS)
        for folder in (one, two)
    )
    if not ones or len(ones) != len(twos):
        raise InputError(
            f"{one} holds {len(ones)} photographs and {two} holds {len(twos)}: pairs are made in "
            "the order of their names, so give as many in both."
        )
    return [(a, b, out / a.stem) for a, b in zip(ones, twos, strict=True)]


def _reconstruct(stereo, one, two, out, args, write_page) -> None:
    from lunar_distill_jax import atomic
    from lunar_distill_jax.reconstruction import files, run

    focal = None if args.focal is None else (args.focal[0], args.focal[-1])
    made = run.reconstruct(
        stereo,
        one,
        two,
        size=args.size,
        focal=focal,
        baseline_m=args.baseline,
        altitude_m=args.altitude,
        turns=args.turns,
    )
    if not made.overlapping and not args.force:
        raise InputError(
            f"{one} and {two} do not seem to show the same ground (probability of overlap "
            f"{made.overlap.probability:.2f}, at least 0.50 is needed): give photographs that "
            "overlap, or --force to see what the model makes of them."
        )
    ground = files.terrain(made)
    with atomic.atomic_folder(out) as part:
        files.write(made, ground, part)
        write_page(
            part / "report.html",
            made,
            ground,
            names=(one.name, two.name),
            facts={"Model": args.model, "Licence": stereo.meta.get("licence", "unknown")},
            command=f"lunar-distill reconstruct {shlex.quote(str(one))} {shlex.quote(str(two))} "
            f"--model {shlex.quote(args.model)} --out {shlex.quote(str(out))}",
        )
    if made.doubt:
        print(
            f"lunar-distill reconstruct: do not believe pose, scale and surface of {out}: "
            f"{made.doubt}.",
            file=sys.stderr,
        )
    print(
        f"overlap {made.overlap.probability:.2f}   {len(made.matches.conf)} matches   baseline "
        f"{sum(made.T_cam2_cam1[:3, 3] ** 2) ** 0.5:.4g} {made.unit}"
        f"{' (UNRELIABLE)' if made.doubt else ''}\nOpen {out / 'report.html'}"
    )
