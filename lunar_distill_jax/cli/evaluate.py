"""`lunar-distill evaluate`: models and baselines on one data set, in numbers and pictures."""

from __future__ import annotations

import argparse
import pathlib
import shlex
import sys
import textwrap
from collections.abc import Mapping

EXAMPLE = """\
examples:
  lunar-distill evaluate --data DIR/stereolunar --out evaluation
  lunar-distill evaluate --model moonlet --model demo/student.safetensors --data DIR --out both
  lunar-distill evaluate --data synthetic --geometries 12 --protocol paper --out as-published

writes metrics.json, pairs.csv, report.html, a page for each model in models/, and pictures/;
docs/evaluation.md explains the numbers
"""
PRINTED = (
    *("point_error_pct", "relief_corr_detrended", "rra_deg", "rta_deg", "pose_auc10"),
    *("match_within_2px", "match_within_4px", "pose_points_auc10", "failed_pct"),
)
PRINTED_PAPER = ("mae_3d", "chamfer", "depth_ssim", "slope_mae", "rra", "rta")


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "evaluate",
        help="metrics, tables and pictures of models on stereo pairs with ground truth",
        description="Score models beside classical baselines, on a folder of stereo pairs or on "
        "fresh synthetic ones; each network as it says, and adjusted: as `reconstruct` shows it.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        action="append",
        help="may be given several times; the first is what others are compared with "
        "(default: moonlet, the embedded one)",
    )
    parser.add_argument("--data", required=True, help='a folder, "synthetic" or "synthetic:PRESET"')
    parser.add_argument("--out", default="evaluation", metavar="DIR", help="(default: evaluation)")
    parser.add_argument(
        "--protocol",
        choices=("ours", "paper"),
        default="ours",
        help="ours, or the public code's with its faults named (default: ours)",
    )
    parser.add_argument(
        "--size",
        type=int,
        help="networks see frames of SIZE x SIZE pixels (default: what the first was trained at)",
    )
    parser.add_argument(
        "--lighting",
        choices=("same", "cross", "all"),
        default="same",
        help="whether both views of a pair have the same sun (default: same)",
    )
    parser.add_argument(
        "--turns",
        type=int,
        choices=(1, 4),
        help="4: view 2 is tried at its quarter turns (default: as each model wants)",
    )
    parser.add_argument(
        "--baselines",
        nargs="*",
        metavar="NAME",
        help="plane, sift, sgm, colmap (default: all whose libraries are installed); none leaves "
        "them out",
    )
    parser.add_argument(
        "--geometries", type=int, default=36, help="synthetic scenes to render (default: 36)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of synthetic scenes and of the bootstrap (default: 0)"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    from lunar_distill_jax import atomic
    from lunar_distill_jax.evaluation import contenders, dataset, efficiency
    from lunar_distill_jax.evaluation import run as evaluation
    from lunar_distill_jax.evaluation.protocol import PROTOCOLS
    from lunar_distill_jax.progress import Progress
    from lunar_distill_jax.report.evaluation_pages import write_pages

    beside = contenders.available() if args.baselines is None else tuple(args.baselines)
    beside = () if beside == ("none",) else beside
    contenders.check(beside)
    out = atomic.check_writable(args.out)
    models = contenders.networks(args.model or ["moonlet"])
    side = args.size if args.size is not None else contenders.common_side(models)
    data = dataset.open_dataset(
        args.data, size=side, geometries=args.geometries, seed=args.seed, lighting=args.lighting
    )
    next(iter(data), None)  # frames that cannot be read are told before minutes of compilation
    for name in models:
        if name.endswith(contenders.UNTRAINED):
            print(f"lunar-distill evaluate: {name}: fresh parameters.", file=sys.stderr)
    programs = {}
    with Progress(len(models), "compile") as progress:
        for name, model in models.items():
            programs[name] = efficiency.program(model, side, side, args.turns)
            progress.update(1)
    means = None
    if set(beside) & set(contenders.KNOW_NOTHING):
        means = contenders.rendered_means(args.data, side)
    predictors = contenders.predictors(programs, beside, data.stored, means)
    with Progress(len(data), "evaluate") as progress:
        result = evaluation.evaluate(
            predictors,
            data,
            protocol=PROTOCOLS[args.protocol],
            chunk=4,
            seed=args.seed,
            progress=progress.update,
        )
    costs = {}
    with Progress(len(models), "measure cost") as progress:
        for name, program in programs.items():
            costs[name] = efficiency.cost(program)
            progress.update(1)
    evaluation.write_metrics(out / "metrics.json", result, cost=costs)
    evaluation.write_pairs(out / "pairs.csv", result)
    with Progress(len(predictors) + 1, "write pages") as progress:
        write_pages(
            out, result, predictors, data.read, costs, _text(args, models, side, result),
            progress=progress.update,
        )  # fmt: skip
    print_table(result, PRINTED if args.protocol == "ours" else PRINTED_PAPER)
    print(f"Open {out / 'report.html'}")


def _text(args: argparse.Namespace, models: Mapping, side: int, result):
    from lunar_distill_jax.data.source import synthetic_moon
    from lunar_distill_jax.evaluation import contenders
    from lunar_distill_jax.report.evaluation_pages import Text

    first = result.summary[next(iter(models))]
    rendered = synthetic_moon(args.data) is not None
    where = "synthetic terrain" if rendered else pathlib.Path(args.data).name
    seen = "the same" if rendered else "the frames as they are stored"
    lead = (
        f"Stereo pairs: {first['pairs']}, of {first['geometries']} different geometries. "
        f"Networks see frames of {side} pixels; classical baselines see {seen}. All answers are "
        f"scored on the same pixels of the {side}-pixel frame. A network stands here twice: as it "
        "says, and adjusted, its maps brought into agreement with its matches and the pictures; "
        "both have the pose that this finds. "
    )
    if args.protocol == "ours":
        lead += (
            "One scale a pair is taken from the ground truth unless a heading says otherwise. "
            "Averages are over geometries, so that several suns over one do not count twice."
        )
    else:
        lead += (
            "These are the metrics of the paper's public code, faults included, applied to raw "
            "point maps; each fault is named below."
        )
    facts = {"Protocol": args.protocol, "Data": where, "Frame": f"{side} x {side} px"}
    facts["Models"] = ", ".join(args.model or ["moonlet"])
    licences = {name: m.meta.get("licence", "unknown") for name, m in models.items()}
    facts["Licences"] = "; ".join(f"{name}: {licence}" for name, licence in licences.items())
    words = ["lunar-distill", "evaluate"]
    for name in args.model or ["moonlet"]:
        words += ["--model", name]
    words += ["--data", args.data, "--out", args.out, "--protocol", args.protocol]
    words += ["--size", str(side), "--lighting", args.lighting, "--seed", str(args.seed)]
    if args.turns is not None:
        words += ["--turns", str(args.turns)]
    if rendered:
        words += ["--geometries", str(args.geometries)]
    if args.baselines is not None:
        words += ["--baselines", *args.baselines]
    untrained = any(name.endswith(contenders.UNTRAINED) for name in models)
    if untrained:
        lead += " What is marked untrained is an architecture with fresh parameters."
    title = f"{', '.join(models)} on {where}"
    return Text(title, where, lead, facts, shlex.join(words))


def print_table(result, keys) -> None:
    """A table: the protocol's few main numbers of each model, over all pairs and by trajectory."""
    metrics = result.protocol.metrics
    heads = [f"{metrics[k].name} {metrics[k].unit.split(' ')[0]}".split() for k in keys]
    columns = [textwrap.wrap(" ".join(words), 11) for words in heads]
    lines = max(map(len, columns))
    width = max(map(len, result.summary)) + 2
    for line in range(lines):
        words = [(c[line] if line < len(c) else "") for c in columns]
        print(" " * (width + 10) + "".join(f"{word:>12s}" for word in words))
    for model, values in result.summary.items():
        parts = {"all": values, **values["trajectory"]}
        for part, own in parts.items() if len(parts) > 2 else [("all", values)]:
            # A number that does not apply is not one.
            words = [format(own[k], metrics[k].form) if own[k] == own[k] else "-" for k in keys]
            print(f"{model:{width}s}{part:10s}" + "".join(f"{word:>12s}" for word in words))
