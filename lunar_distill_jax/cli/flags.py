"""The flags that every verb takes, before the verb or after it."""

from __future__ import annotations

import argparse

from lunar_distill_jax.version import __version__

SWITCHES = {
    "quiet": "no progress: only results, warnings and errors",
    "verbose": "what the libraries say too",
    "debug": "show the traceback of an error",
}


def add_switches(parser: argparse.ArgumentParser) -> None:
    """Adds them; where they are absent they set nothing, as they may stand in two places."""
    common = parser.add_argument_group("always")
    version = f"lunar-distill {__version__}"
    common.add_argument("--version", action="version", version=version)
    for name, about in SWITCHES.items():
        common.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=about)


def given_switches(args: argparse.Namespace) -> list[str]:
    """Those that were given, as words of a command line."""
    return [f"--{name}" for name in SWITCHES if getattr(args, name)]
