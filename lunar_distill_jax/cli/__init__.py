"""`lunar-distill VERB`: each verb is one module of this folder with `add_parser` and `run`.

Only this layer prints, parses flags and chooses exit codes. The modules import at their top what is
light: `--help` and what is wrong with the flags should not wait for jax.
"""

import argparse
import contextlib
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
from lunar_distill_jax.cli.stopping import INTERRUPTED, interruptible
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.version import __version__

VERBS = (
    *(demo, render, validate, describe, init, cache, train, sweep),
    *(evaluate, reconstruct, convert, export, info),
)
WRONG_INPUT, NO_FILE = 2, 1  # exit codes


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
    parser.set_defaults(debug=False, quiet=False, verbose=False)
    _add_common(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        verb_parser = verb.add_parser(verbs)
        verb_parser.set_defaults(run=verb.run)
        _add_common(verb_parser)
    args, args.overrides = parser.parse_known_args(argv)
    if args.overrides and not hasattr(args, "takes_overrides"):
        parser.error(f"unrecognized arguments: {' '.join(args.overrides)}")
    return args


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Flags that may stand before the verb or after it; where absent, they set nothing."""
    common = parser.add_argument_group("always")
    version = f"lunar-distill {__version__}"
    common.add_argument("--version", action="version", version=version)
    for flag, about in (
        ("--quiet", "no progress: only results, warnings and errors"),
        ("--verbose", "what the libraries say too"),
        ("--debug", "show the traceback of an error"),
    ):
        common.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=about)


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
    """What a person can do about an error of the file system."""
    what = error.strerror or " ".join(str(error).split()) or type(error).__name__
    files = [str(f) for f in (error.filename, error.filename2) if f is not None]
    at = f" ({' -> '.join(files)})" if files else ""
    return (
        f"a file could not be read or written: {what}{at}; make room or choose another place, and "
        "run the same command again."
    )
