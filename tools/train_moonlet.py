r"""Trains the embedded teacher `moonlet` from scratch on the synthetic Moon's ground truth.

    .venv/bin/python tools/train_moonlet.py --workdir runs/moonlet

Renders the training pairs (kept in WORKDIR/pairs, so a second run starts at once), trains at 96
pixels, scores the result on terrain it never saw, and writes the weight file and its log into the
package. Killed and started again it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import time

import jax
import ml_collections as mlc
import numpy as np

from lunar_distill_jax import api, atomic
from lunar_distill_jax.data.images import resize_depth, resize_image, resize_intrinsics
from lunar_distill_jax.data.synthetic import synthetic_pairs
from lunar_distill_jax.evaluation import baselines, run
from lunar_distill_jax.evaluation.network import predictor
from lunar_distill_jax.progress import Progress
from lunar_distill_jax.train.loop import METRICS, read_history, train
from lunar_distill_jax.types import StereoPair

ASSETS = pathlib.Path(__file__).parents[1] / "lunar_distill_jax" / "assets"
FIRST_SEED = 1_000_000  # terrain below data.synthetic.TRAINING_SEEDS is never trained on
SHARD = 150  # geometries a file
RENDERED = 128  # pixels; resized for training, so that other sizes can be tried on the same files
SIZE = 128


def get_config(phase: int, steps: int) -> mlc.ConfigDict:
    """Relief is learned in the first phase, the second weighs the whole point map more."""
    c = mlc.ConfigDict()
    c.seed, c.steps, c.batch = phase, steps, 8
    c.augment, c.matches = True, 128
    c.loss = dict(points=(1.0, 3.0)[phase], relief=10.0, matching=0.1)
    c.optim = dict(lr=(6e-4, 4e-4)[phase], final=5e-6, warmup=100, weight_decay=0.05, clip=1.0)
    c.log_every, c.checkpoint_every = 20, 200
    return c


def render_shard(path: pathlib.Path, index: int) -> None:
    """Writes the pairs of `SHARD` geometries, each under one of StereoLunar's suns and another."""
    first = FIRST_SEED + index * SHARD
    pairs = list(synthetic_pairs(first, SHARD, RENDERED, suns=(None, "random")))
    arrays = {
        "image": np.stack([p.image[..., 0] for p in pairs]),
        "depth": np.stack([p.depth_m for p in pairs]),
        "valid": np.stack([p.valid for p in pairs]),
        "K": np.stack([p.K for p in pairs]),
        "T": np.stack([p.T_world_cam for p in pairs]),
    }
    for key in ("trajectory", "name", "geometry"):
        arrays[key] = np.array([getattr(p, key) for p in pairs])
    with atomic.atomic_file(path) as part, open(part, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_shard(path: pathlib.Path) -> list[StereoPair]:
    d = dict(np.load(path))
    pairs = []
    for i in range(len(d["name"])):
        image = np.repeat(d["image"][i][..., None], 3, -1)
        K = np.stack([resize_intrinsics(k, (RENDERED, RENDERED), (SIZE, SIZE)) for k in d["K"][i]])
        image = np.stack([resize_image(v, SIZE, SIZE) for v in image])
        views = [
            resize_depth(z, m, SIZE, SIZE)
            for z, m in zip(*(d[k][i] for k in ("depth", "valid")), strict=True)
        ]
        depth, valid = (np.stack(a) for a in zip(*views, strict=True))
        name, group, kind = (str(d[k][i]) for k in ("name", "geometry", "trajectory"))
        pairs.append(StereoPair(name, group, kind, image, depth, valid, K, d["T"][i]))
    return pairs


def training_pairs(folder: pathlib.Path, shards: int) -> list[StereoPair]:
    pairs = []
    with Progress(shards, "pairs") as progress:
        for index in range(shards):
            path = folder / f"{index:03d}.npz"
            if not path.is_file():
                render_shard(path, index)
            pairs += read_shard(path)
            progress.update(1)
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/moonlet"))
    parser.add_argument("--shards", type=int, default=29, help=f"files of {SHARD} geometries")
    parser.add_argument("--steps", type=int, nargs=2, default=(1900, 1000), help="of the phases")
    parser.add_argument("--test", type=int, default=120, help="unseen geometries to score on")
    args = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.WARNING)

    start = time.time()
    pairs = training_pairs(args.workdir / "pairs", args.shards)
    student, history = api.build("moonlet", seed=0), []
    for phase, steps in enumerate(args.steps):
        folder = args.workdir / f"phase{phase}"
        student = train(get_config(phase, steps), folder, pairs, teacher=None, student=student)
        history += [{"phase": phase, **row} for row in read_history(folder)]
    # Half precision halves the file; what is scored is what is shipped.
    half = jax.tree.map(lambda a: np.asarray(a, np.float16), student.params)
    student = api.Stereo(student.config, jax.tree.map(np.float32, half), {})

    evaluation = run.evaluate(
        {
            "moonlet": predictor(student),
            "baseline_mean": baselines.mean_baseline(pairs),
            "baseline_plane": baselines.plane_baseline,
        },
        synthetic_pairs(0, args.test, SIZE),
    )
    run.write_metrics(args.workdir / "metrics.json", evaluation)
    print(json.dumps(evaluation.summary, indent=1))

    scores = evaluation.summary["moonlet"]
    meta = {
        "licence": "Apache-2.0",
        "source": "trained from scratch by tools/train_moonlet.py on synthetic ground truth",
        "trained": f"{sum(args.steps)} steps of {get_config(0, 1).batch} pairs at {SIZE} px; "
        f"{args.shards * SHARD} geometries under 2 suns",
        "unseen": json.dumps({k: round(scores[k], 4) for k in ("point_error_pct", "relief_corr")}),
    }
    api.save(api.Stereo(student.config, half, meta), ASSETS / "moonlet.safetensors")
    log = [json.dumps(row) for row in history]
    log.append(json.dumps({"wall_seconds": round(time.time() - start), **evaluation.summary}))
    atomic.write_text(ASSETS / f"moonlet.{METRICS}", "\n".join(log) + "\n")


if __name__ == "__main__":
    main()
