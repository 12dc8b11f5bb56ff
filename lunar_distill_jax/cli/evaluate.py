"""`lunar-distill evaluate`: numbers and pictures of one model on one data set."""

from __future__ import annotations

import argparse
import pathlib
import shlex

from lunar_distill_jax.errors import InputError

EXAMPLE = """\
examples:
  lunar-distill evaluate --data DIR/stereolunar --out evaluation
  lunar-distill evaluate --model demo/student.safetensors --data synthetic --out evaluation
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "evaluate",
        help="metrics, tables and pictures of a model on stereo pairs with ground truth",
        description="Score a model beside the oracle plane on a folder in StereoLunar's format, or "
        "on fresh synthetic pairs. Writes metrics.json, pairs.csv, pictures and report.html.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="moonlet", help="(default: moonlet, the embedded one)")
    parser.add_argument("--data", required=True, help='a folder, or "synthetic"')
    parser.add_argument("--out", default="evaluation", metavar="DIR", help="(default: evaluation)")
    parser.add_argument(
        "--size",
        type=int,
        default=96,
        help="frames are resized to SIZE x SIZE (default: 96, what moonlet was trained at)",
    )
    parser.add_argument(
        "--geometries", type=int, default=36, help="synthetic scenes to render (default: 36)"
    )
    parser.add_argument(
        "--protocol", choices=("ours",), default="ours", help="how to measure (default: ours)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic scenes (default: 0)")
    return parser


def run(args: argparse.Namespace) -> None:
    from lunar_distill_jax import api, atomic, demo
    from lunar_distill_jax.data.source import SYNTHETIC, open_pairs
    from lunar_distill_jax.data.synthetic import TRAINING_SEEDS
    from lunar_distill_jax.evaluation import baselines
    from lunar_distill_jax.evaluation import run as evaluation
    from lunar_distill_jax.evaluation.network import predictor
    from lunar_distill_jax.progress import Progress
    from lunar_distill_jax.report.evaluation import write_evaluation

    stereo = api.load(args.model)
    count, pairs = open_pairs(args.data, size=args.size, geometries=args.geometries, seed=args.seed)
    if args.data == SYNTHETIC and args.seed + args.geometries > TRAINING_SEEDS:
        raise InputError(
            f"Seeds from {TRAINING_SEEDS} on are training terrain, and --seed {args.seed} with "
            f"{args.geometries} geometries reaches them: take a smaller --seed."
        )
    out = atomic.check_writable(args.out)
    models = {"model": predictor(stereo)}
    kept = []
    with Progress(count, "read") as progress:
        for pair in pairs:
            kept.append(pair)
            progress.update(1)
    with Progress(count, "evaluate") as progress:
        result = evaluation.evaluate(
            {**models, "baseline_plane": baselines.plane_baseline},
            kept,
            progress=progress.update,
        )
    evaluation.write_metrics(out / "metrics.json", result)
    evaluation.write_pairs(out / "pairs.csv", result)
    summary = result.summary["model"]
    write_evaluation(
        out / "report.html",
        result,
        models,
        demo.spread(kept, demo.SHOWN),
        title=f"{stereo.config.name} on {pathlib.Path(args.data).name}",
        lead=f"{args.model} on {summary['pairs']} stereo pairs of {summary['geometries']} "
        f"geometries, frames resized to {args.size} pixels. One scale per pair is taken from the "
        "ground truth; averages are over geometries, so that several lightings of one do not count "
        "twice.",
        facts={"Model": args.model, "Licence": stereo.meta.get("licence", "unknown")},
        command=f"lunar-distill evaluate --model {shlex.quote(args.model)} "
        f"--data {shlex.quote(args.data)} --out {shlex.quote(args.out)} --size {args.size}",
        pictures_dir=out / "pictures",
    )
    for model, values in result.summary.items():
        print(
            f"{model:16s}point error {values['point_error_pct']:.2f} %   AbsRel "
            f"{values['abs_rel']:.4f}   relief corr {values['relief_corr']:.3f}"
        )
    print(f"Open {out / 'report.html'}")
