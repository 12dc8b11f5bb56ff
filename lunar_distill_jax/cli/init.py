"""`lunar-distill init`: a student that begins with what its teacher knows."""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import shlex
from collections.abc import Callable
from typing import Any

from lunar_distill_jax.errors import InputError

EXAMPLE = """\
examples:
  lunar-distill init --teacher mast3r.pth --student s3 --method structured --out s3.safetensors
  lunar-distill init --teacher moonlet --student moonlet-student --method calibrated \\
      --calibration synthetic --out student.safetensors
  lunar-distill init --teacher mast3r.pth --student pretrained.safetensors \\
      --method calibrated --calibration DIR --out student.safetensors

writes the weight file, FILE.report.json (where every parameter came from) and FILE.report.html
"""
METHODS = ("random", "heads_only", "paper", "paper_fixed", "structured", "calibrated")


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "init",
        help="a student initialised from a teacher, with a report",
        description="Initialise a student from a teacher, before any training: as the paper does, "
        "in one basis of the teacher's residual stream (structured), or fitted to the teacher's "
        "activations on unlabelled pairs (calibrated).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--teacher", required=True, metavar="MODEL", help="a model, or weight file")
    parser.add_argument(
        "--student",
        required=True,
        metavar="NAME_OR_CONFIG",
        help="an architecture, a .json with one, or a weight file, whose encoder is kept",
    )
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument(
        "--calibration",
        metavar="DATA",
        help='pairs for calibrated: a folder, "synthetic" or "synthetic:PRESET"; only the images '
        "are read",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="ends in .safetensors")
    parser.add_argument(
        "--size", type=int, default=96, help="calibration frames are SIZE x SIZE (default: 96)"
    )
    parser.add_argument(
        "--pairs", type=int, default=256, help="calibration pairs, at most (default: 256)"
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="of calibrated: keeps activations on the disk, so that memory does not grow with the "
        "pairs and a run that was killed goes on",
    )
    parser.add_argument(
        "--layers",
        choices=("uniform", "last_k", "first_k"),
        default="uniform",
        help="which of the teacher's blocks paper and paper_fixed take (default: uniform)",
    )
    parser.add_argument(
        "--compression",
        choices=("svd", "direct_truncation"),
        default="svd",
        help="what paper and paper_fixed cut the corner of (default: svd)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of fresh parameters and synthetic pairs (default: 0)"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    from lunar_distill_jax import api, atomic
    from lunar_distill_jax.init.student import init_student
    from lunar_distill_jax.report.initialisation import write_initialisation

    out = pathlib.Path(args.out)
    if out.suffix != ".safetensors":
        raise InputError(f"--out is {out}: a weight file of ours ends in .safetensors.")
    if args.calibration and args.method != "calibrated":
        raise InputError(
            f"--calibration is {args.calibration} but the method {args.method} reads no images: "
            "leave it out, or take the method calibrated."
        )
    if args.workdir and args.method != "calibrated":
        raise InputError(
            f"--workdir is {args.workdir} but the method {args.method} keeps no activations: leave "
            "it out, or take the method calibrated."
        )
    atomic.check_writable(out.parent)
    teacher = load_model(args.teacher, args.seed)
    student = load_student(args.student)
    with contextlib.ExitStack() as stack:
        made, report = init_student(
            teacher,
            student,
            args.method,
            args.calibration,
            args.seed,
            layers=args.layers,
            compression=args.compression,
            size=args.size,
            pairs=args.pairs,
            workdir=args.workdir,
            on_step=_bar(stack, args.method),
        )
    api.save(made, out)
    report["command"] = command(args)
    atomic.write_text(out.with_name(out.name + ".report.json"), json.dumps(report, indent=1) + "\n")
    facts = {"Teacher": args.teacher, "Licence": made.meta.get("licence", "unknown")}
    page = out.with_name(out.name + ".report.html")
    write_initialisation(page, report, facts, report["command"])
    for how, numbers in report["numbers"].items():
        print(f"{how:34s}{numbers:14,d}")
    print(
        f"{100 * report['share']:.1f} % of {sum(report['numbers'].values()):,} numbers come from "
        f"the teacher; {report['seconds']:.1f} s, peak memory {report['peak_rss_gb']:.2f} GB."
    )
    print(f"Wrote {out}. Open {page}")


def _bar(stack: contextlib.ExitStack, label: str) -> Callable[[int, int], None]:
    """A callback (done, total) that shows a bar, from its first call on."""
    from lunar_distill_jax.progress import Progress

    bars: list[tuple[Progress, int]] = []

    def on_step(done: int, total: int) -> None:
        if not bars:
            bars.append((stack.enter_context(Progress(total, label)), 0))
        bar, before = bars.pop()
        bar.update(done - before)
        bars.append((bar, done))

    return on_step


def load_model(source: str, seed: int):
    """The teacher: a model, or a named architecture with fresh parameters."""
    from lunar_distill_jax import api
    from lunar_distill_jax.models.zoo import ARCHITECTURES

    if source in ARCHITECTURES and source not in api.EMBEDDED:
        return api.build(source, seed)
    return api.load(source)


def load_student(source: str) -> Any:
    """An architecture's name, or the config in a .json, or a network with parameters of its own.

    Raises:
      InputError: the file is none of these.
    """
    from lunar_distill_jax import api
    from lunar_distill_jax.models.config import StereoConfig

    path = pathlib.Path(source)
    if path.suffix == ".json":
        try:
            return StereoConfig.from_dict(json.loads(path.read_text()))
        except OSError as e:
            raise InputError(f"Cannot read {path} ({e.strerror}): check the path.") from e
        except json.JSONDecodeError as e:
            raise InputError(f"{path} is not JSON ({e}): write it as `info --json` does.") from e
    return api.load(path) if path.exists() else source


def command(args: argparse.Namespace) -> str:
    """The command line again, without defaults."""
    parts = ["lunar-distill", "init", "--teacher", args.teacher, "--student", args.student]
    parts += ["--method", args.method]
    defaults = {"size": 96, "pairs": 256, "layers": "uniform", "compression": "svd", "seed": 0}
    for key in ("calibration", "workdir", *defaults):
        if getattr(args, key) != defaults.get(key):
            parts += [f"--{key}", str(getattr(args, key))]
    return shlex.join([*parts, "--out", args.out])
