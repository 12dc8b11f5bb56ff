r"""Trains the embedded teacher `moonlet` from scratch on the synthetic Moon's ground truth.

    .venv/bin/python tools/train_moonlet.py --workdir runs/moonlet

Renders the training pairs (kept in WORKDIR/pairs, so a second run starts at once), trains at 96 pixels and
then at 128, scores the result on terrains it never saw, and writes the weight file and its log into the
package. Killed and started again it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import time

import ml_collections as mlc
import numpy as np

from lunar_distill_jax import api, atomic
from lunar_distill_jax.data.images import resize_depth, resize_image, resize_intrinsics
from lunar_distill_jax.data.synthetic import synthetic_pairs
from lunar_distill_jax.evaluate import baselines, run
from lunar_distill_jax.evaluate.network import predictor
from lunar_distill_jax.train.loop import METRICS, read_history, train
from lunar_distill_jax.progress import Progress
from lunar_distill_jax.types import StereoPair

ASSETS = pathlib.Path(__file__).parents[1] / "lunar_distill_jax" / "assets"
FIRST_SEED = 1_000_000  # terrains of seeds below are never trained on
SHARD = 150  # geometries a file
SIZE = 128


def get_config(size: int, steps: int) -> mlc.ConfigDict:
    """96 pixels first: four fifths of what there is to learn at half the cost."""
    c = mlc.ConfigDict()
    c.seed = size
    c.steps = steps
    c.batch = 16 if size == 96 else 12
    c.augment, c.matches = True, 128
    c.loss = dict(points=1.0, gradient=3.0, matching=0.05)
    peak = 1e-3 if size == 96 else 3e-4
    c.optim = dict(lr=peak, final=peak / 30, warmup=150, weight_decay=0.05, clip=1.0)
    c.log_every, c.checkpoint_every = 20, 200
    return c


def render_shard(path: pathlib.Path, index: int) -> None:
    """Writes the pairs of `SHARD` geometries, each under one of StereoLunar's suns and a random one."""
    pairs = list(synthetic_pairs(FIRST_SEED + index * SHARD, SHARD, SIZE, suns=(None, "random")))
    arrays = {
        "image": np.stack([p.image[..., 0] for p in pairs]),
        "depth": np.stack([p.depth_m for p in pairs]),
        "valid": np.stack([p.valid for p in pairs]),
        "K": np.stack([p.K for p in pairs]),
        "T": np.stack([p.T_world_cam for p in pairs]),
    }
    for key in ("trajectory", "name", "geometry"):
        arrays[key] = np.array([getattr(p, key) for p in pairs])
    with atomic.atomic_file(path) as part:
        np.savez(part, **arrays)


def read_shard(path: pathlib.Path, size: int) -> list[StereoPair]:
    d = dict(np.load(path))
    pairs = []
    for i in range(len(d["name"])):
        image = np.repeat(d["image"][i][..., None], 3, -1)
        depth, valid, K = d["depth"][i], d["valid"][i], d["K"][i]
        if size != SIZE:
            K = np.stack([resize_intrinsics(k, (SIZE, SIZE), (size, size)) for k in K])
            image = np.stack([resize_image(v, size, size) for v in image])
            views = [resize_depth(z, m, size, size) for z, m in zip(depth, valid, strict=True)]
            depth, valid = (np.stack(a) for a in zip(*views, strict=True))
        name, group, kind = (str(d[k][i]) for k in ("name", "geometry", "trajectory"))
        pairs.append(StereoPair(name, group, kind, image, depth, valid, K, d["T"][i]))
    return pairs


def training_pairs(folder: pathlib.Path, shards: int, size: int) -> list[StereoPair]:
    pairs = []
    with Progress(shards, f"pairs at {size} px") as progress:
        for index in range(shards):
            path = folder / f"{index:03d}.npz"
            if not path.is_file():
                render_shard(path, index)
            pairs += read_shard(path, size)
            progress.update(1)
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/moonlet"))
    parser.add_argument("--shards", type=int, default=29, help=f"files of {SHARD} geometries")
    parser.add_argument("--steps", type=int, nargs=2, default=(1800, 350), help="at 96 and at 128 px")
    parser.add_argument("--test", type=int, default=120, help="unseen geometries to score on")
    args = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.WARNING)

    start, student, history = time.time(), api.build("moonlet", seed=0), []
    for size, steps in zip((96, SIZE), args.steps, strict=True):
        pairs = training_pairs(args.workdir / "pairs", args.shards, size)
        folder = args.workdir / str(size)
        student = train(get_config(size, steps), folder, pairs, teacher=None, student=student)
        history += [{"size": size, **row} for row in read_history(folder)]

    unseen = synthetic_pairs(0, args.test, SIZE)
    evaluation = run.evaluate(
        {
            "moonlet": predictor(student),
            "baseline_mean": baselines.mean_baseline(pairs),
            "baseline_plane": baselines.plane_baseline,
        },
        unseen,
    )
    run.write_metrics(args.workdir / "metrics.json", evaluation)
    print(json.dumps(evaluation.summary, indent=1))

    seen = sum(n * get_config(s, n).batch for s, n in zip((96, SIZE), args.steps, strict=True))
    meta = {
        "licence": "Apache-2.0",
        "source": "trained from scratch by tools/train_moonlet.py on the synthetic Moon's ground truth",
        "trained": f"{args.steps[0]} steps at 96 px and {args.steps[1]} at 128 px, {seen} pairs of "
        f"{args.shards * SHARD} geometries under 2 suns",
        "unseen": json.dumps(
            {k: round(evaluation.summary["moonlet"][k], 4) for k in ("point_error_pct", "relief_corr")}
        ),
    }
    api.save(api.Stereo(student.config, student.params, meta), ASSETS / "moonlet.safetensors")
    log = [json.dumps(row) for row in history]
    log.append(json.dumps({"wall_seconds": round(time.time() - start), "unseen": evaluation.summary}))
    atomic.write_text(ASSETS / f"moonlet.{METRICS}", "\n".join(log) + "\n")


if __name__ == "__main__":
    main()
