r"""Trains the embedded teacher `moonlet` from nothing, and packs it into the package.

    .venv/bin/python tools/train_moonlet.py --workdir runs/moonlet
    .venv/bin/python tools/train_moonlet.py --workdir runs/moonlet --pack-only

Runs the stages of configs/moonlet.py one after the other, each by `lunar-distill train`'s own loop
in WORKDIR/STAGE, then scores what came out on terrain it never saw, by trajectory, under one sun
and under crossed suns, and writes the weight file and its log into the package. Killed at any
moment, the same command goes on from the last checkpoint. On Linux

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8000000000:\
glibc.malloc.trim_threshold=16000000000

makes a step a fifth faster on machines that take freed pages away: XLA asks for its memory anew
each step.
"""

from __future__ import annotations

import argparse
import json
import logging
import pathlib

import jax
import numpy as np

from lunar_distill_jax import api, atomic
from lunar_distill_jax.data.source import pair_sequence
from lunar_distill_jax.evaluation import contenders, run
from lunar_distill_jax.evaluation.network import predictors
from lunar_distill_jax.evaluation.protocol import OURS
from lunar_distill_jax.progress import Progress
from lunar_distill_jax.runs import start
from lunar_distill_jax.train.config import read_config
from lunar_distill_jax.train.loop import METRICS, STUDENT, read_history

ROOT = pathlib.Path(__file__).parents[1]
ASSETS = ROOT / "lunar_distill_jax" / "assets"
CONFIG = ROOT / "configs" / "moonlet.py"
STAGES = ("match", "surface", "relief", "settle", "confidence")
SHOWN = ("point_error_pct", "relief_corr_detrended", "rra_deg", "rta_deg", "pose_auc10")
SHOWN += ("match_within_2px", "match_within_4px", "failed_pct")


def train_stages(workdir: pathlib.Path) -> None:
    for i, stage in enumerate(STAGES):
        config = read_config(f"{CONFIG}:{stage}")
        config.data.kept = str(workdir / "pairs")
        if i:
            config.start_from = str(workdir / STAGES[i - 1])
        start.start(config, workdir / stage)


def score(stereo: api.Stereo, geometries: int) -> dict[str, dict]:
    """{lighting: summary} of the network beside what knows nothing, on unseen terrain."""
    side = stereo.training_side or 128
    source = "synthetic:stereolunar"
    means = contenders.rendered_means(source, side)
    own, adjusted = predictors(stereo)
    models = {"moonlet": own, "moonlet_adjusted": adjusted}
    models |= {f"baseline_{name}": make(means) for name, make in contenders.KNOW_NOTHING.items()}
    out = {}
    for lighting in ("same", "cross"):
        pairs = pair_sequence(source, size=side, geometries=geometries, seed=0, lighting=lighting)
        with Progress(geometries, f"{lighting} suns") as progress:
            found = run.evaluate(models, pairs, protocol=OURS, progress=progress.update)
        out[lighting] = found.summary
    return out


def brief(summary: dict) -> dict:
    """What the log keeps of a summary: a few metrics, over all and by trajectory."""
    parts = {"all": summary, **summary["trajectory"]}
    return run.rounded({part: {k: own[k] for k in SHOWN} for part, own in parts.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/moonlet"))
    parser.add_argument("--geometries", type=int, default=120, help="unseen ones to score on")
    parser.add_argument("--pack-only", action="store_true", help="the stages are done")
    args = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.WARNING)

    if not args.pack_only:
        train_stages(args.workdir)
    trained = api.load(args.workdir / STAGES[-1] / STUDENT)
    # Half precision halves the file; what is scored is what is shipped.
    half = jax.tree.map(lambda a: np.asarray(a, np.float16), trained.params)
    meta = {
        "licence": "Apache-2.0",
        "source": "trained from scratch by tools/train_moonlet.py on synthetic ground truth",
        "training_size": "128x128",
        "turns": "4",  # it saw rolls of up to 45 degrees
    }
    stereo = api.Stereo(trained.config, jax.tree.map(np.float32, half), meta)
    scores = score(stereo, args.geometries)
    history = [
        {"stage": stage, **row} for stage in STAGES for row in read_history(args.workdir / stage)
    ]
    pairs = sum(max(r["step"] for r in history if r["stage"] == s) for s in STAGES) * 16
    meta["trained"] = f"{pairs} pairs in the stages {', '.join(STAGES)} of configs/moonlet.py"
    rows = [json.dumps(row) for row in history]
    for lighting, summary in scores.items():
        for model, values in summary.items():
            rows.append(json.dumps({"lighting": lighting, "model": model, **brief(values)}))
            print(rows[-1])
    api.save(api.Stereo(trained.config, half, meta), ASSETS / "moonlet.safetensors")
    atomic.write_text(ASSETS / f"moonlet.{METRICS}", "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
