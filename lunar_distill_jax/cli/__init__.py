"""`lunar-distill VERB`: each verb is one module of this folder with `add_parser` and `run`.

Only this layer prints, parses flags and chooses exit codes. The modules import at their top what is
light: `--help` and what is wrong with the flags should not wait for jax.
"""

import argparse
import contextlib
import errno
import os
import sys
import warnings
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
from lunar_distill_jax.cli.flags import SWITCHES, add_switches
from lunar_distill_jax.cli.stopping import INTERRUPTED, interruptible
from lunar_distill_jax.errors import InputError

VERBS = (
    *(demo, render, validate, describe, init, cache, train, sweep),
    *(evaluate, reconstruct, convert, export, info),
)
WRONG_INPUT, NO_FILE = 2, 1  # exit codes
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb -> its exit code: 0 when its output is complete, 2 when the input cannot be
    used, 1 when a file cannot be read or written, 130 after Ctrl-C.
    """
    args = parse(argv)
    name = f"lunar-distill {args.verb}"
    with _warnings_as_sentences(name, every=args.verbose or args.debug):
        try:
            with contextlib.nullcontext() if args.debug else interruptible(f"{name}: interrupted."):
                return _run(args)
        except InputError as error:
            if args.debug:
                raise
            print(f"{name}: {error}", file=sys.stderr)
            return WRONG_INPUT
        except KeyboardInterrupt:
            if args.debug:
                raise
            print(f"{name}: interrupted.", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:  # who read our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return NO_FILE
        except OSError as error:
            if args.debug:
                raise
            print(f"{name}: {_sentence(error)}", file=sys.stderr)
            return NO_FILE


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags of a command line; exits with code 2 and usage where they cannot be read."""
    parser = argparse.ArgumentParser(
        prog="lunar-distill",
        description="Distil a two-view geometry model into small students that see the Moon in 3D.",
    )
    parser.set_defaults(**dict.fromkeys(SWITCHES, False))
    add_switches(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        verb_parser = verb.add_parser(verbs)
        verb_parser.set_defaults(run=verb.run)
        add_switches(verb_parser)
    args, args.overrides = parser.parse_known_args(argv)
    if args.overrides and not hasattr(args, "takes_overrides"):
        parser.error(f"unrecognized arguments: {' '.join(args.overrides)}")
    return args


def _run(args: argparse.Namespace) -> int:
    from lunar_distill_jax import progress

    if not (args.verbose or args.debug):
        # XLA's alarms of what is slow are no errors; read when jax is imported first.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with progress.shown(not args.quiet):
        code = args.run(args)
    sys.stdout.flush()  # here, where a full disk or a closed pipe is told as such
    return code or 0


class _warnings_as_sentences(warnings.catch_warnings):
    """Within it a UserWarning is one line for a person; of others, only if `every`."""

    def __init__(self, name: str, *, every: bool):
        super().__init__()
        self._name, self._every = name, every

    def __enter__(self) -> None:
        super().__enter__()
        if self._every:
            return
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = self._say

    def _say(self, message, category, filename, lineno, file=None, line=None) -> None:
        from lunar_distill_jax.progress import say

        say(f"{self._name}: {' '.join(str(message).split())}")


def _sentence(error: OSError) -> str:
    """What happened to a file, or to what is used like one, and what a person can do about it."""
    what = error.strerror or " ".join(str(error).split()) or type(error).__name__
    files = [str(f) for f in (error.filename, error.filename2) if f is not None]
    at = f" ({' -> '.join(files)})" if files else ""
    place = error.errno in NO_PLACE
    todo = "make room or choose another place, and run" if place else "mend that, or run"
    return f"a file could not be read or written: {what}{at}; {todo} the same command again."
