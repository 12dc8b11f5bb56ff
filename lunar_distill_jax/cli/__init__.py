"""`lunar-distill VERB`: each verb is one module of this folder with `add_parser` and `run`.

Only this layer prints, parses flags and chooses exit codes.
"""

import argparse
import sys
from collections.abc import Sequence

from lunar_distill_jax.cli import (
    cache,
    convert,
    demo,
    describe,
    evaluate,
    export,
    info,
    init,
    reconstruct,
    render,
    sweep,
    train,
    validate,
)
from lunar_distill_jax.errors import InputError

VERBS = (
    *(demo, render, validate, describe, init, cache, train, sweep),
    *(evaluate, reconstruct, convert, export, info),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns 0 when its output is complete, 2 when the input cannot be used."""
    parser = argparse.ArgumentParser(
        prog="lunar-distill",
        description="Distil a two-view geometry model into small students that see the Moon in 3D.",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_parser(verbs).set_defaults(run=verb.run)
    args, args.overrides = parser.parse_known_args(argv)
    if args.overrides and not hasattr(args, "takes_overrides"):
        parser.error(f"unrecognized arguments: {' '.join(args.overrides)}")
    try:
        code = args.run(args)
    except InputError as error:
        if args.debug:
            raise
        print(f"lunar-distill {args.verb}: {error}", file=sys.stderr)
        return 2
    return code or 0
