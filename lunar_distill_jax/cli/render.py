"""`lunar-distill render`: synthetic stereo pairs in StereoLunar's on-disk format."""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lunar_distill_jax.errors import InputError

if TYPE_CHECKING:
    from lunar_distill_jax import moon
    from lunar_distill_jax.types import StereoPair

TRAJECTORIES = ("nadir", "oblique", "dynamic")
PREVIEW_ROWS = 6

EXAMPLE = """\
example:
  lunar-distill render --out moon --pairs 12 --size 224

writes 12 pairs of 224 x 224 pixels, four camera pairs under three suns each:
  moon/Nadir/paire1/im_00000.{jpg,exr,npz}   image, z-depth and camera of view 1
  moon/Nadir/paire1/im_00001.{jpg,exr,npz}   the same of view 2
  moon/split.npz                             which frames make a pair, and their overlap
  moon/preview.png                           a contact sheet
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    """Adds the verb; numbers stay text here, so that `run` can explain what is wrong with them."""
    parser = subparsers.add_parser(
        "render",
        help="make synthetic stereo pairs of the Moon with exact depth",
        description="Render stereo pairs of a synthetic Moon with exact depth and poses. "
        "The same arguments give the same bytes.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--pairs", required=True, metavar="N", help="how many stereo pairs")
    parser.add_argument("--size", default="224", metavar="S", help="side in pixels (default: 224)")
    parser.add_argument(
        "--trajectory",
        default="mixed",
        metavar="NAME",
        help="nadir, oblique, dynamic, or mixed: one after the other (default: mixed)",
    )
    parser.add_argument("--seed", default="0", metavar="K", help="(default: 0)")
    parser.add_argument(
        "--preset",
        default="first",
        metavar="NAME",
        help="first: the Moon that moonlet was trained on; stereolunar: the landforms and the "
        "texture of the real frames; physical: finite sun, cast shadows, Hapke, sensor noise "
        "(default: first)",
    )
    parser.add_argument(
        "--dem", metavar="FILE", help="real ground: GeoTIFF, PDS (needs rasterio) or .npz"
    )
    parser.add_argument(
        "--levels", metavar="KM,KM,...", help="altitudes over the ground (default: 3.5 to 30.5)"
    )
    parser.add_argument(
        "--cast-shadows", action="store_true", help="real shadows; StereoLunar has none"
    )
    parser.add_argument(
        "--sun",
        default="presets",
        metavar="SUN",
        help="presets: StereoLunar's three suns over each camera pair; 0, 1 or 2: one of them; "
        "random; or AZIMUTH,ELEVATION in degrees (default: presets)",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Renders, writes, draws the preview; the folder appears when all of it is done."""
    count = _whole_number("--pairs", args.pairs, least=1)
    size = _whole_number("--size", args.size, least=32)
    seed = _whole_number("--seed", args.seed, least=0)
    if args.trajectory not in (*TRAJECTORIES, "mixed"):
        raise InputError(
            f"--trajectory is {args.trajectory!r}: choose nadir, oblique, dynamic or mixed."
        )
    trajectories = TRAJECTORIES if args.trajectory == "mixed" else (args.trajectory,)
    from lunar_distill_jax import atomic
    from lunar_distill_jax.data import write
    from lunar_distill_jax.moon import dem, preview
    from lunar_distill_jax.progress import Progress

    out = atomic.check_new(args.out)
    suns = _suns(args.sun)
    kind = _moon(args)
    ground = dem.read_dem(args.dem) if args.dem else None
    pairs = _render(count, size, trajectories, seed, suns, kind, ground)
    shown: dict[int, StereoPair] = {}
    with (
        atomic.atomic_folder(out) as part,
        Progress(count, "render pairs", first="compiling") as progress,
    ):
        names = write.write_stereolunar(_shown(pairs, shown, progress.update), part)
        rows = [dataclasses.replace(pair, name=names[i]) for i, pair in shown.items()]
        preview.save_contact_sheet(rows, part / "preview.png")
    print(
        f"Wrote {count} pairs of {size} x {size} pixels to {out} (look at {out / 'preview.png'})."
    )


def _whole_number(flag: str, text: str, *, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or value < least:
        raise InputError(f"{flag} is {text!r}: give a whole number of {least} or more.")
    return value


def _suns(text: str) -> tuple:
    """The suns over each camera pair, as `moon.make_lightings` takes them."""
    from lunar_distill_jax import moon

    if text == "presets":
        return tuple(range(len(moon.SUNS)))
    if text == "random":
        return ("random",)
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 2 and 0 < numbers[1] <= 90:
        return (tuple(numbers),)
    if len(numbers) == 1 and numbers[0] in range(len(moon.SUNS)):
        return (int(numbers[0]),)
    raise InputError(
        f"--sun is {text!r}: give presets, random, 0, 1, 2, or AZIMUTH,ELEVATION in degrees with "
        "an elevation above 0, up to 90."
    )


def _moon(args: argparse.Namespace) -> moon.Moon:
    from lunar_distill_jax import moon

    kind = moon.preset(args.preset)
    if args.levels:
        try:
            levels = tuple(float(word) for word in args.levels.split(","))
        except ValueError:
            raise InputError(
                f"--levels is {args.levels!r}: give altitudes in km, such as 5,10,20."
            ) from None
        kind = dataclasses.replace(kind, levels_km=levels)
    if args.cast_shadows:
        kind = dataclasses.replace(kind, light=dataclasses.replace(kind.light, cast_shadows=True))
    return kind


def _render(count, size, trajectories, seed, suns, kind, ground) -> Iterator[StereoPair]:
    """Yields `count` pairs; the last camera pair may get fewer suns than the others.

    Scenes are made ahead, one on each core; their order and their bytes do not depend on it.
    """

    import numpy as np

    from lunar_distill_jax import moon
    from lunar_distill_jax.moon import dem

    def lit(index: int) -> list[StereoPair]:
        # Not seed + index: neighbouring seeds must not share scenes, or a test set leaks.
        scene_seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
        trajectory = trajectories[index % len(trajectories)]
        if ground is None:
            scene = moon.make_scene(scene_seed, trajectory, size, moon=kind)
        else:
            scene = dem.make_dem_scene(ground, scene_seed, trajectory, size, moon=kind)
        return moon.light_scenes([scene], suns[: count - index * len(suns)])

    yield from lit(0)  # alone, so that the renderer is compiled only once
    rest = iter(range(1, -(-count // len(suns))))
    cores = _cores()
    pool = concurrent.futures.ThreadPoolExecutor(cores)
    ahead = collections.deque(pool.submit(lit, i) for i in itertools.islice(rest, 2 * cores))
    try:
        while ahead:
            yield from ahead.popleft().result()
            ahead.extend(pool.submit(lit, i) for i in itertools.islice(rest, 1))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # what failed is told at once


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))  # of this process, not of the machine
    return os.cpu_count() or 1


def _shown(pairs: Iterator[StereoPair], shown: dict, update) -> Iterator[StereoPair]:
    """Passes pairs on, keeps the first of each geometry in `shown`, by its number, and counts."""
    for i, pair in enumerate(pairs):
        if len(shown) < PREVIEW_ROWS and pair.geometry not in {p.geometry for p in shown.values()}:
            shown[i] = pair
        yield pair
        update(1)
