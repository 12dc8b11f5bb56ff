r"""Prepares a StereoLunar folder: pair lists split by geometry, or a tensorflow-datasets data set.

    .venv/bin/python tools/prepare_stereolunar.py DIR/stereolunar --lists
    .venv/bin/python tools/prepare_stereolunar.py DIR/stereolunar --tfds DIR/prepared --config v1

The first writes train.npz and test.npz (scenes, images, pairs) into the folder, the lists that
StereoLunar's own code reads and its archive lacks; the second copies everything into ArrayRecord
files. Run `lunar-distill validate DIR/stereolunar` before.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from lunar_distill_jax.data import splits, stereolunar
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.progress import Progress


def write_lists(folder: pathlib.Path, fraction: float, lighting: str) -> None:
    parts = splits.split_by_geometry(stereolunar.find_pairs(folder), fraction)
    for name, refs in zip(("train", "test"), parts, strict=True):
        refs = splits.relight(refs, lighting)
        with Progress(len(refs), name) as progress:
            path = folder / f"{name}.npz"
            splits.write_pair_list(path, folder, refs, progress=progress.update)
        print(f"{path}: {len(refs)} pairs of {len({ref.geometry for ref in refs})} geometries")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--lists", action="store_true", help="write train.npz and test.npz")
    parser.add_argument("--test", type=float, default=0.1, help="fraction of the geometries (0.1)")
    parser.add_argument("--lighting", default="same", help="same, cross or all (of --lists)")
    parser.add_argument("--tfds", metavar="DIR", help="where to put the data set")
    parser.add_argument("--config", default="v1", help="v1, v1_nadir, ..., v2, v2_nadir, ...")
    args = parser.parse_args()
    if not (args.lists or args.tfds):
        parser.error("nothing to do: give --lists or --tfds DIR")
    try:
        if args.lists:
            write_lists(args.folder, args.test, args.lighting)
        if args.tfds:
            from lunar_distill_jax.data import stereolunar_tfds

            print(stereolunar_tfds.prepare(args.folder, args.tfds, args.config))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
