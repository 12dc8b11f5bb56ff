"""The main job, small enough for two CPU cores: render, distil, evaluate, report."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
import ml_collections as mlc

from lunar_distill_jax import api, atomic
from lunar_distill_jax.data.rendered import LIGHTINGS
from lunar_distill_jax.data.source import open_folder, pair_sequence
from lunar_distill_jax.data.synthetic import TRAINING_SEEDS
from lunar_distill_jax.evaluation import baselines, classical, contenders, rectified, run
from lunar_distill_jax.evaluation.network import predictors
from lunar_distill_jax.evaluation.protocol import OURS
from lunar_distill_jax.init.inherit import first_student
from lunar_distill_jax.progress import Progress
from lunar_distill_jax.report.evaluation import write_evaluation
from lunar_distill_jax.runs.start import begin, read_data
from lunar_distill_jax.train.loop import read_history, train
from lunar_distill_jax.train.options import data_block, run_config
from lunar_distill_jax.twoview.essential import has_opencv
from lunar_distill_jax.types import StereoPair

SHOWN = 3  # pairs with pictures on the page, beside one under crossed suns and real ones
SOURCE = "synthetic:stereolunar"
# The main table of the page.
COLUMNS = ("point_error_pct", "relief_corr_detrended", "rra_deg", "rta_deg", "pose_auc10")
COLUMNS += ("match_within_4px", "failed_pct")
NETWORKS = ("teacher", "student_before", "student_after", "student_paper")
BENT = ("teacher", "student_after")  # shown adjusted too
PICTURED = ("teacher", "teacher_adjusted", "student_before", "student_after")
PICTURED += ("student_after_adjusted", "baseline_sift", "baseline_sgm")


def get_config(mode: str = "full") -> mlc.ConfigDict:
    """The demo's settings; "hour" is the same for an hour of training, "tiny" runs every part in a
    minute and learns next to nothing.

    evaluate: unseen terrain, of another range of seeds; `crossed` of its geometries are also seen
              under two suns
    """
    if mode not in ("full", "hour", "tiny"):
        raise ValueError(f"Unknown mode {mode!r}: expected full, hour or tiny.")
    c = run_config()
    c.teacher, c.student, c.encoder = "moonlet", "moonlet-student", "moonlet-student-encoder"
    c.init, c.calibration = "calibrated", 24
    c.seed, c.batch, c.steps, c.matches = 0, 8, 40, 256
    c.data = data_block(source=SOURCE, size=128, geometries=48, seed=TRAINING_SEEDS)
    c.data.kept = "demo/pairs"
    c.pipeline.update(on=True, sizes=((128, 128),), crop="centre", turn="upright")
    c.pipeline.update(jitter=0.25, sensor=0.5)
    c.loss.update(points=3.0, relief=10.0, features=0.0, matching=0.1)
    c.loss_settings.points.weighting, c.loss_settings.matching.source = "none", "flow"
    c.optim.update(kind="muon", lr=2e-3, final=1e-5, warmup=5)
    c.optim.multipliers = ((".*plane.*", 0.1), (".*stem.*", 0.3))
    c.evaluate = dict(source=SOURCE, size=128, geometries=9, crossed=3, seed=0)
    c.log_every, c.checkpoint_every, c.tensorboard = 5, 100, False
    if mode == "hour":
        c.data.update(geometries=2400, seed=2 * TRAINING_SEEDS, kept="runs/moonlet/pairs")
        c.data.trajectories = ("nadir", "oblique", "dynamic", "dynamic")
        c.batch, c.steps, c.matches, c.optim.warmup = 16, 1200, 512, 20
    if mode == "tiny":
        c.steps, c.batch, c.calibration, c.log_every = 4, 4, 8, 1
        c.data.update(size=64, geometries=3)
        c.pipeline.sizes = ((64, 64),)
        c.evaluate.update(size=64, geometries=3, crossed=1)
    return c


def run_demo(
    config: mlc.ConfigDict,
    workdir: str | os.PathLike,
    command: str,
    real: str | os.PathLike | None = None,
) -> run.Evaluation:
    """Distils the teacher into the student and shows both, beside others, on unseen pairs.

    Writes WORKDIR/report.html, pictures/, metrics.json (metrics_crossed.json, metrics_real.json),
    pairs.csv and what `train` writes.

    real: a folder of pairs in StereoLunar's format, to evaluate on too

    Raises:
      InputError: the workdir cannot be written, or a setting cannot be used.
    """
    workdir = atomic.check_writable(workdir)
    size = config.evaluate.size
    photographed = [] if real is None else read_all("real pairs", open_folder(real, size=size))
    teacher = api.load(config.teacher)
    config = config.copy_and_resolve_references()
    config.data.kept = str(workdir / "pairs")
    training = read_data("training pairs", config.data, keep=False)
    before = begin(config, config.student, teacher, training)
    after = train(config, workdir, training, teacher=teacher, student=before)

    unseen, crossed = (
        read_all(label, _unseen(config.evaluate, count, lighting))
        for label, count, lighting in (
            ("unseen pairs", config.evaluate.geometries, "same"),
            ("under crossed suns", config.evaluate.crossed, "cross"),
        )
    )
    means = baselines.trajectory_means(training[i] for i in range(0, len(training), len(LIGHTINGS)))
    compared = _predictors(config, teacher, before, after, means)
    evaluation = _evaluate("evaluate", compared, unseen)
    run.write_metrics(workdir / "metrics.json", evaluation)
    run.write_pairs(workdir / "pairs.csv", evaluation)
    others = {}
    for name, heading, pairs in (
        ("crossed", "Under crossed suns", crossed),
        ("real", "Real photographs", photographed),
    ):
        if pairs:
            others[heading] = _evaluate(f"evaluate, {name}", compared, pairs)
            run.write_metrics(workdir / f"metrics_{name}.json", others[heading])

    large, small = (sum(a.size for a in jax.tree.leaves(m.params)) for m in (teacher, after))
    write_evaluation(
        workdir / "report.html",
        evaluation,
        {name: compared[name] for name in PICTURED if name in compared},
        [*spread(unseen, SHOWN), *spread(crossed, 1), *spread(photographed, SHOWN)],
        others,
        title="A teacher distilled into a student, on the Moon",
        lead=f"{teacher.config.name} ({large / 1e6:.1f} M parameters) taught {after.config.name} "
        f"({small / 1e6:.2f} M, {large / small:.1f} times fewer) for {config.steps} steps of "
        f"{config.batch} stereo pairs. All see frames of {size} pixels of terrain that no network "
        f"was trained on: {len(unseen)} pairs under one sun, {len(crossed)} whose views have two.",
        only=COLUMNS,
        history=read_history(workdir),
        right="student_after_adjusted",
        facts={
            "Training pairs": f"{len(training)}, {config.data.source}",
            "Start": f"{config.init}, on {config.calibration} pairs without labels",
            "Frame": f"{size} x {size} px",
            "Seed": str(config.seed),
            "Licence": after.meta.get("licence", "unknown"),
        },
        command=command,
        pictures_dir=workdir / "pictures",
    )
    return evaluation


def _unseen(block: mlc.ConfigDict, count: int, lighting: str) -> Sequence[StereoPair]:
    return pair_sequence(
        block.source, size=block.size, geometries=count, seed=block.seed, lighting=lighting
    )


def _predictors(
    config: mlc.ConfigDict,
    teacher: api.Stereo,
    before: api.Stereo,
    after: api.Stereo,
    means: baselines.Means,
) -> dict[str, run.Predictor]:
    """The networks, what knows nothing, and what a user would try first, on the same frames."""
    encoder = api.load(config.encoder) if config.encoder else None
    paper, _ = first_student(config.student, "paper", teacher, config.seed, encoder=encoder)
    out = {}
    for name, network in zip(NETWORKS, (teacher, before, after, paper), strict=True):
        own, adjusted = predictors(network, turns=teacher.turns)
        out[name] = own
        if name in BENT:
            out[name + contenders.ADJUSTED] = adjusted
    out |= {f"baseline_{name}": make(means) for name, make in contenders.KNOW_NOTHING.items()}
    out["baseline_plane"] = baselines.plane_baseline
    if has_opencv():
        out["baseline_sift"] = classical.sift_baseline(_same_frame)
        out["baseline_sgm"] = rectified.sgm_baseline(_same_frame)
    return out


def _same_frame(pair: StereoPair) -> StereoPair:
    """What classical methods see: as networks do, not the frame as it is stored."""
    return pair


def _evaluate(
    label: str, compared: dict[str, run.Predictor], pairs: Sequence[StereoPair]
) -> run.Evaluation:
    with Progress(len(pairs), label) as progress:
        return run.evaluate(compared, pairs, protocol=OURS, progress=progress.update)


def read_all(label: str, pairs: Sequence[StereoPair]) -> list[StereoPair]:
    """All pairs in memory, with a progress bar."""
    out = []
    with Progress(len(pairs), label) as progress:
        for i in range(len(pairs)):
            out.append(pairs[i])
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
