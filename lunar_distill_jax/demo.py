"""The main job, small enough for two CPU cores: render, distil, evaluate, report."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
import ml_collections as mlc

from lunar_distill_jax import api, atomic
from lunar_distill_jax.data.source import open_pairs
from lunar_distill_jax.data.synthetic import TRAINING_SEEDS
from lunar_distill_jax.evaluation import baselines, run
from lunar_distill_jax.evaluation.network import predictor
from lunar_distill_jax.init.inherit import first_student
from lunar_distill_jax.progress import Progress
from lunar_distill_jax.report.evaluation import write_evaluation
from lunar_distill_jax.train.loop import read_history, train
from lunar_distill_jax.types import StereoPair

SHOWN = 6  # pairs with pictures on the page
SOURCE = "synthetic:stereolunar"


def get_config(mode: str = "full") -> mlc.ConfigDict:
    """The demo's settings; "tiny" runs every part in a minute and learns next to nothing.

    data:     training pairs: "synthetic" or a folder in StereoLunar's format
    evaluate: unseen pairs of another range of seeds
    """
    if mode not in ("full", "tiny"):
        raise ValueError(f"Unknown mode {mode!r}: expected 'full' or 'tiny'.")
    c = mlc.ConfigDict()
    c.seed, c.steps, c.batch = 0, 60, 8
    c.teacher, c.student, c.init = "moonlet", "moonlet-student", "inherit"
    c.augment, c.matches = True, 128
    c.data = dict(source=SOURCE, size=128, geometries=144, seed=TRAINING_SEEDS)
    c.evaluate = dict(source=SOURCE, size=128, geometries=24, seed=0)
    c.loss = dict(points=3.0, features=0.3, relief=10.0, gradient=0.0, matching=0.0)
    c.optim = dict(lr=5e-4, final=2e-5, warmup=5, weight_decay=0.05, clip=1.0)
    c.log_every, c.checkpoint_every = 5, 100
    if mode == "tiny":
        c.steps, c.batch, c.log_every = 4, 4, 1
        c.data.update(size=64, geometries=6)
        c.evaluate.update(size=64, geometries=3)
    return c


def run_demo(config: mlc.ConfigDict, workdir: str | os.PathLike, command: str) -> run.Evaluation:
    """Distils the teacher into the student and shows both on unseen pairs.

    Writes WORKDIR/report.html, pictures/, metrics.json, pairs.csv and what `train` writes.

    Raises:
      InputError: the workdir cannot be written, or a setting cannot be used.
    """
    workdir = atomic.check_writable(workdir)
    teacher = api.load(config.teacher)
    before, share = first_student(config.student, config.init, teacher, config.seed)
    training = read_all("training pairs", config.data)
    after = train(config, workdir, training, teacher=teacher, student=before)

    unseen = read_all("unseen pairs", config.evaluate)
    predictors = {
        "teacher": predictor(teacher),
        "student_before": predictor(before, turns=teacher.turns),
        "student_after": predictor(after, turns=teacher.turns),
        "baseline_mean": baselines.mean_baseline(baselines.trajectory_means(training)),
        "baseline_plane": baselines.plane_baseline,
    }
    with Progress(len(unseen), "evaluate") as progress:
        evaluation = run.evaluate(predictors, unseen, progress=progress.update)
    run.write_metrics(workdir / "metrics.json", evaluation)
    run.write_pairs(workdir / "pairs.csv", evaluation)

    large, small = (sum(a.size for a in jax.tree.leaves(m.params)) for m in (teacher, after))
    write_evaluation(
        workdir / "report.html",
        evaluation,
        {name: predictors[name] for name in ("teacher", "student_before", "student_after")},
        spread(unseen, SHOWN),
        title="A teacher distilled into a student, on the Moon",
        lead=f"{teacher.config.name} ({large / 1e6:.1f} M parameters) taught {after.config.name} "
        f"({small / 1e6:.1f} M, {large / small:.1f} times fewer) for {config.steps} steps on "
        f"{len(training)} stereo pairs. {100 * share:.0f} % of the student's first parameters were "
        f"the teacher's. Both see {len(unseen)} pairs of terrain that neither was trained on; "
        "errors are averages over these.",
        history=read_history(workdir),
        facts={
            "Training pairs": f"{len(training)}, {config.data.source}",
            "Frame": f"{config.data.size} x {config.data.size} px",
            "Seed": str(config.seed),
            "Licence": after.meta.get("licence", "unknown"),
        },
        command=command,
        pictures_dir=workdir / "pictures",
    )
    return evaluation


def read_all(label: str, data: mlc.ConfigDict) -> list[StereoPair]:
    """All pairs of a `data` block of the config, in memory, with a progress bar."""
    count, pairs = open_pairs(
        data.source, size=data.size, geometries=data.geometries, seed=data.seed
    )
    out = []
    with Progress(count, label) as progress:
        for pair in pairs:
            out.append(pair)
            progress.update(1)
    return out


def spread(pairs: Sequence[StereoPair], count: int) -> list[StereoPair]:
    """Up to `count` pairs, the trajectory types taking turns, one of each geometry first."""
    by_type: dict[str, list[StereoPair]] = {}
    seen = set()
    for pair in pairs:
        if pair.geometry not in seen:
            seen.add(pair.geometry)
            by_type.setdefault(pair.trajectory, []).append(pair)
    turns = [group[i] for i in range(count) for group in by_type.values() if i < len(group)]
    return turns[:count]
