"""`lunar-distill describe`: what training sees of a data set, as numbers and as a picture."""

from __future__ import annotations

import argparse
import collections
import pathlib

from lunar_distill_jax.errors import InputError

EXAMPLE = """\
examples:
  lunar-distill describe DIR/stereolunar --out sheet.png
  lunar-distill describe synthetic:stereolunar --size 224 --turn trajectory --crop centre

prints what the pairs measure and draws augmented pairs: dots of one colour in both views are a
match, crosses have no partner, red has no depth.
"""
MEASURED = 60  # pairs that are read for the table


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "describe",
        help="numbers on a data set, and a sheet of its augmented pairs",
        description="Describe a data set as training sees it: augmented, with correspondences.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "data", metavar="DATA", help='a folder of stereo pairs, "synthetic" or "synthetic:PRESET"'
    )
    parser.add_argument(
        "--out", default="sheet.png", metavar="FILE.png", help="(default: sheet.png)"
    )
    parser.add_argument("--split", help="a split of the data set")
    parser.add_argument("--lighting", default="same", help="same, cross or all (default: same)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs on the sheet (default: 8)")
    parser.add_argument("--size", default="224", metavar="S|HxW", help="frames (default: 224)")
    parser.add_argument("--crop", default="homography", help="homography or centre")
    parser.add_argument("--turn", default="none", help="none, quarters or trajectory")
    parser.add_argument("--lunar", action="store_true", help="StereoLunar's own augmentations")
    parser.add_argument("--matches", type=int, default=2048, help="(default: 2048)")
    parser.add_argument("--seed", type=int, default=0, help="of the augmentation (default: 0)")
    return parser


def run(args: argparse.Namespace) -> None:
    import numpy as np

    from lunar_distill_jax import atomic
    from lunar_distill_jax.data import correspondences, pipeline, sheet, source, synthetic
    from lunar_distill_jax.progress import Progress

    height, width = _size(args.size)
    if pathlib.Path(args.out).suffix.lower() != ".png":
        raise InputError(f"--out is {args.out!r}: give the name of a .png file.")
    if args.pairs < 1:
        raise InputError(f"--pairs is {args.pairs}: give 1 or more.")
    atomic.check_writable(pathlib.Path(args.out).parent)
    settings = pipeline.Settings(
        seed=args.seed,
        batch=1,
        sizes=((height, width),),
        crop=args.crop,
        turn=args.turn,
        lunar=args.lunar,
        matches=args.matches,
    )
    moon = source.synthetic_moon(args.data)
    if moon is not None:
        side, count = max(height, width), max(args.pairs, 12)
        pairs = synthetic.SyntheticPairs(0, count, side, moon=moon)
    else:
        pairs = source.open_folder(args.data, split=args.split, lighting=args.lighting)
    chosen = np.unique(np.linspace(0, len(pairs) - 1, MEASURED).astype(int))
    rows, measures = [], collections.defaultdict(list)
    with Progress(len(chosen) + args.pairs, "describe") as progress:
        for index in chosen:
            pair = pairs[int(index)]
            measures[pair.trajectory].append(_measure(pair))
            progress.update(1)
        for position in range(args.pairs):
            pair, rng = pipeline.pair_at(settings, pairs, position)
            found = correspondences.draw(pair, rng, args.matches) if args.matches else None
            rows.append((pair, found))
            progress.update(1)
    with atomic.atomic_file(args.out) as part:
        sheet.save_sheet(rows, part)
    print(f"{len(pairs)} pairs, {len(chosen)} of them measured; medians, and their range:")
    _print(measures)
    print(f"Drew {len(rows)} augmented pairs to {args.out}.")


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) >= 16 for side in sides):
        raise InputError(f"--size is {text!r}: give pixels of 16 or more, such as 224 or 384x512.")
    return int(sides[0]), int(sides[-1])


COLUMNS = ("depth km", "baseline/depth", "turn deg", "overlap %", "valid %", "grey", "black %")


def _measure(pair) -> list[float]:
    import numpy as np

    from lunar_distill_jax.data.write import overlap
    from lunar_distill_jax.geometry import relative_pose

    black = 100 * (pair.image <= 2).mean()
    grey, valid = pair.image.mean(), 100 * pair.valid.mean()
    if not pair.valid.any() or not np.isfinite(pair.T_world_cam).all():
        return [np.nan, np.nan, np.nan, np.nan, valid, grey, black]
    depth = np.median(pair.depth_m[pair.valid])
    T = relative_pose(pair.T_world_cam)
    turn = np.rad2deg(np.arccos(np.clip((np.trace(T[:3, :3]) - 1) / 2, -1, 1)))
    baseline = np.linalg.norm(T[:3, 3]) / depth
    return [depth / 1e3, baseline, turn, 100 * overlap(pair), valid, grey, black]


def _print(measures: dict[str, list[list[float]]]) -> None:
    import numpy as np

    print(f"{'':10}" + "".join(f"{name:>26}" for name in COLUMNS))
    for trajectory, rows in measures.items():
        cells = []
        for column in np.array(rows).T:
            if np.isnan(column).all():
                cells.append("unknown")
                continue
            low, middle, high = np.nanpercentile(column, [0, 50, 100])
            cells.append(f"{middle:.3g} [{low:.3g}, {high:.3g}]")
        print(f"{trajectory:10}" + "".join(f"{cell:>26}" for cell in cells))
