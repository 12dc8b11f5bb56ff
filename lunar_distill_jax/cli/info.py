"""`lunar-distill info`: what a model is, what it costs, where it comes from."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import textwrap
from typing import Any

from lunar_distill_jax.errors import InputError

SIZE = "384x512"


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "info",
        help="parameters, work, licence and provenance of a model",
        description="Show what a model is: its parameters and multiply-accumulates part by part, "
        "its bytes, its licence and where it comes from.",
        epilog="examples:\n  lunar-distill info                             all names\n"
        "  lunar-distill info moonlet --size 128x128\n"
        "  lunar-distill info slim-s@dinov3-s --json      a student with another encoder\n"
        "  lunar-distill info --family --plot family.png  all students beside their teacher",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="a model, a weight file, or an architecture"
    )
    parser.add_argument("--list", action="store_true", help="names of models (as without MODEL)")
    parser.add_argument(
        "--size", default=SIZE, metavar="HxW", help=f"of both images, in pixels (default: {SIZE})"
    )
    parser.add_argument("--json", action="store_true", help="for programs: one stable JSON object")
    parser.add_argument(
        "--family",
        action="store_true",
        help="a table of all students and their teacher, timed on this machine (minutes)",
    )
    parser.add_argument(
        "--no-times", action="store_true", help="with --family: count only, do not time"
    )
    parser.add_argument(
        "--plot", metavar="FILE.png", help="with --family: draw what each is made of"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    if args.family:
        run_family(args)
        return
    if args.list and args.model is not None:
        raise InputError(f"--list shows the names of all models: leave out {args.model}.")
    if args.model is None:
        from lunar_distill_jax import api

        names = api.list_models()
        print(json.dumps(names, indent=2) if args.json else as_list(names))
        return
    facts = collect(args.model, *parse_size(args.size))
    print(json.dumps(facts, indent=2, sort_keys=True) if args.json else as_text(facts))


def as_list(names: dict[str, list[str]]) -> str:
    """The names that `api.list_models` knows, in paragraphs."""
    lines = [textwrap.fill(f"{kind}: {', '.join(known)}", 100) for kind, known in names.items()]
    return "\n".join([*lines, "", "lunar-distill info NAME, or NAME@ENCODER, tells more of one."])


def run_family(args: argparse.Namespace) -> None:
    from lunar_distill_jax import atomic
    from lunar_distill_jax.progress import Progress
    from lunar_distill_jax.report.family import FAMILY, as_markdown, family_rows, plot

    if args.model is not None:
        raise InputError(f"--family shows all architectures: leave out {args.model}.")
    if args.plot:
        atomic.check_writable(pathlib.Path(args.plot).parent)
    with Progress(len(FAMILY), "networks") as progress:
        rows = family_rows(FAMILY, measured=not args.no_times, done=progress.update)
    if args.plot:
        plot(args.plot, rows)
    print(json.dumps(rows, indent=2) if args.json else as_markdown(rows))


def parse_size(text: str) -> tuple[int, int]:
    """ "384x512" -> (384, 512)

    Raises:
      InputError: it is no such text, or a side is not a positive multiple of 16.
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    height, width = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (height and width) or height % 16 or width % 16:
        raise InputError(
            f"--size is {text!r}: expected HEIGHTxWIDTH, both multiples of 16, such as {SIZE}."
        )
    return height, width


def collect(model: str, height: int, width: int) -> dict[str, Any]:
    """Everything that is printed, as JSON values.

    Raises:
      InputError: there is no such model or architecture.
    """
    import jax

    from lunar_distill_jax import api
    from lunar_distill_jax.models.accounting import activation_bytes, mac_counts, parameter_counts
    from lunar_distill_jax.models.zoo import ARCHITECTURES, architecture

    size, meta = None, {"source": "an architecture without weights"}
    if model.partition("@")[0] in ARCHITECTURES and model not in api.EMBEDDED:
        config = architecture(model)
    else:
        config, params, meta = api.read_network(model)
        size = sum(array.nbytes for array in jax.tree.leaves(params))
    parameters, macs = parameter_counts(config), mac_counts(config, height, width)
    return {
        "architecture": config.to_dict(),
        "bytes": size,
        "licence": meta.get("licence", "unknown"),
        "macs": {**macs, "total": sum(macs.values())},
        "mac_note": "of one pair; 1 MAC = 2 FLOP",
        "meta": {k: v for k, v in meta.items() if k != "licence"},
        "parameters": {**parameters, "total": sum(parameters.values())},
        "parameters_used": sum(n for part, n in parameters.items() if part != "unused"),
        "peak_activation_bytes": activation_bytes(config, height, width),
        "size": [height, width],
    }


def as_text(facts: dict[str, Any]) -> str:
    parameters, macs = facts["parameters"], facts["macs"]
    peaks, (height, width) = facts["peak_activation_bytes"], facts["size"]
    lines = [
        f"{facts['architecture']['name']}: {parameters['total']:,} parameters, of which "
        f"{facts['parameters_used']:,} are used",
        "",
        f"{'part':15s} {'parameters':>13s} {f'GMAC of a {height} x {width} pair':>26s} "
        f"{'activations, MB':>16s}",
    ]
    for part in [*(p for p in parameters if p != "total"), "total"]:
        lines.append(
            f"{part:15s} {parameters[part]:13,d} {macs.get(part, 0) / 1e9:26.3f} "
            f"{peaks.get(part, 0) / 1e6:16.1f}"
        )
    lines += [
        "1 MAC = 2 FLOP; matrix products and convolutions are counted. Activations: most float32 "
        "bytes alive",
        "at once while the part runs.",
        "",
        f"bytes: {'-' if facts['bytes'] is None else format(facts['bytes'], ',d')}",
        f"licence: {facts['licence']}",
        *(f"{name}: {value}" for name, value in sorted(facts["meta"].items())),
    ]
    return "\n".join(lines)
