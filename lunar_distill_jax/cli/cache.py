"""`lunar-distill cache`: a teacher's targets on disk, for training without the teacher."""

from __future__ import annotations

import argparse

EXAMPLE = """\
example:
  lunar-distill cache --config configs/synthetic_moonlet.py --config.augment=False \\
      --out runs/targets
  lunar-distill train --config configs/synthetic_moonlet.py --config.augment=False \\
      --config.cache=runs/targets --workdir runs/offline

Killed or stopped, the same command goes on from the last complete file. With augmentation the
samples of --steps steps are cached, and a longer run sees them again; without, every pair once.
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "cache",
        help="write a teacher's targets for training without it",
        description="Run the teacher of a config over its training samples once and write what its "
        "losses need (points, confidences, encoder features, the tokens of descriptors) as "
        "compressed ArrayRecord files, with a digest of teacher, data and augmentation.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="F.py[:mode]")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="new, or the cache to go on with"
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="S",
        help="of augmented samples to cache; by default the config's",
    )
    parser.add_argument(
        "--exact", action="store_true", help="32 bits a number instead of 16, three times the size"
    )
    parser.set_defaults(takes_overrides=True)
    return parser


def run(args: argparse.Namespace) -> None:
    import time

    import numpy as np

    from lunar_distill_jax import api, atomic
    from lunar_distill_jax.errors import InputError
    from lunar_distill_jax.runs.start import check_run, check_sources, read_data
    from lunar_distill_jax.train import feed
    from lunar_distill_jax.train.cache import TeacherCache, write_cache
    from lunar_distill_jax.train.cache_samples import samples_of
    from lunar_distill_jax.train.cached import kept_fields
    from lunar_distill_jax.train.config import read_config
    from lunar_distill_jax.train.options import steps_of
    from lunar_distill_jax.train.plan import check_settings

    config = read_config(args.config, args.overrides)
    if not config.get("teacher"):
        raise InputError("The config names no teacher, so there is nothing to cache: set teacher.")
    config = check_run(config)
    config = feed.cache_config(config)
    atomic.check_writable(args.out)
    check_sources([config.teacher], [config.data])
    teacher = api.load(config.teacher)
    pairs = read_data("training pairs", config.data, keep=True)
    config = steps_of(config, len(pairs))
    plan = check_settings(config, has_teacher=True)
    samples = samples_of(config, pairs, config.steps if args.steps is None else args.steps)
    fields = kept_fields(plan.on, plan.settings)
    start = time.perf_counter()
    about = write_cache(
        args.out,
        teacher,
        samples,
        fields,
        compute=plan.teacher_compute,
        symmetric=config.symmetric,
        exact=args.exact,
    )
    seconds = (time.perf_counter() - start) / samples.count
    kept, size = ", ".join(about["fields"]), about["bytes_per_pair"]
    print(f"Wrote {samples.count} samples to {args.out}: {kept}; {size / 1e6:.3f} MB each.")
    cache = TeacherCache(args.out, about["identity"], fields)
    first = samples.make(0)
    rows = np.arange(min(samples.batch, samples.count))
    first = {k: v[: len(rows)] for k, v in first.items()}
    start = time.perf_counter()
    cache.with_targets(first, rows)
    reading = (time.perf_counter() - start) / len(rows)
    print(
        f"A sample took {seconds * 1e3:.0f} ms to make and takes {reading * 1e3:.0f} ms to read, "
        f"{seconds / reading:.1f} times less. Train with --config.cache={args.out}."
    )
