r"""The study of initialisation: one student, six beginnings, the same batches, scored on its way.

    .venv/bin/python tools/study_init.py --workdir runs/init_study --real DIR

The teacher is the embedded `moonlet`; the student has half its decoder's width, heads, units and
depth, and half its encoder's blocks. All methods are given the same encoder, the teacher's last
block of every two, as the paper's students have a trained one before their decoder is initialised:
what differs is what the methods initialise. Every seed draws the fresh parameters, the calibration
pairs and the order of the batches; all methods of a seed see the same batches and the same targets,
made once. Killed and started again it goes on from its last checkpoint. `tools/plot_init.py` makes
the table and the figures of docs/initialisation.md of the log.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np

from lunar_distill_jax import api, atomic
from lunar_distill_jax.data.batches import stack_images, training_batches
from lunar_distill_jax.data.source import open_folder
from lunar_distill_jax.data.synthetic import TRAINING_SEEDS, synthetic_pairs
from lunar_distill_jax.evaluation.metrics import ground_truth, pair_metrics
from lunar_distill_jax.evaluation.network import predictor
from lunar_distill_jax.init.structured import inherited_encoder
from lunar_distill_jax.init.student import METHODS, init_student
from lunar_distill_jax.init.tree import flatten, unflatten
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.config import EncoderConfig, StereoConfig
from lunar_distill_jax.progress import Progress
from lunar_distill_jax.train import forward
from lunar_distill_jax.train.checkpoint import Checkpoints
from lunar_distill_jax.train.plan import check_settings
from lunar_distill_jax.train.state import Student, TrainState, Trial
from lunar_distill_jax.train.state import init_student as first_state
from lunar_distill_jax.train.step import make_train_step
from lunar_distill_jax.types import StereoPair

SIZE = 128  # what the teacher was trained at
FIRST_SEED = TRAINING_SEEDS + 20_000  # of the training terrain
LOOKS = (0, 50, 100, 200, 300, 500, 700, 1000)
LOG = "study.jsonl"
METRICS = ("point_error_pct", "relief_corr")


def student_config(teacher: StereoConfig) -> StereoConfig:
    """Half the decoder's width, heads, units of a block and depth, and half the encoder's depth."""
    d, e = teacher.decoder, teacher.encoder
    assert isinstance(e, EncoderConfig)  # moonlet's own
    return dataclasses.replace(
        teacher,
        name=f"half-{teacher.name}",
        encoder=dataclasses.replace(e, depth=e.depth // 2),
        decoder=dataclasses.replace(
            d, width=d.width // 2, depth=d.depth // 2, heads=max(1, d.heads // 2)
        ),
    )


def get_config(steps: int, batch: int, seed: int, lr: float) -> mlc.ConfigDict:
    """The demo's losses: points, relief and the encoder's features, all of the teacher's."""
    c = mlc.ConfigDict()
    c.seed, c.steps, c.batch, c.augment = seed, steps, batch, True
    c.loss = dict(points=3.0, features=0.3, relief=10.0)
    c.optim = dict(lr=lr, final=1e-5, warmup=100, weight_decay=0.05, clip=1.0)
    return c


class Score:
    """Errors of a student on unseen pairs, against its teacher and against the truth."""

    def __init__(self, teacher: api.Stereo, pairs: dict[str, StereoPair]):
        self._pairs = pairs
        self._truth = {name: ground_truth(pair) for name, pair in pairs.items()}
        self._teacher = dict(zip(pairs, predictor(teacher, 9)(list(pairs.values())), strict=True))

    def __call__(self, student: api.Stereo) -> dict[str, dict[str, float]]:
        """-> {"to_teacher" and each of METRICS: {pair: value}}"""
        out: dict[str, dict[str, float]] = {key: {} for key in ("to_teacher", *METRICS)}
        found = predictor(student, 9)(list(self._pairs.values()))
        for name, maps in zip(self._pairs, found, strict=True):
            theirs = self._teacher[name].points_cam1
            out["to_teacher"][name] = distance(maps.points_cam1, theirs)
            values = pair_metrics(maps, self._truth[name])
            for key in METRICS:
                out[key][name] = values[key]
        return {k: {n: float(f"{v:.6g}") for n, v in values.items()} for k, values in out.items()}


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean distance of points [2, H, W, 3] from the teacher's in % of their distance from the
    camera, after one scale a pair, the ratio of the median distances."""
    lengths = [np.linalg.norm(x.astype(np.float64), axis=-1) for x in (ours, theirs)]
    scale = np.median(lengths[1]) / np.median(lengths[0])
    return float(100 * np.mean(np.linalg.norm(scale * ours - theirs, axis=-1) / lengths[1]))


def unseen(test: int, real: pathlib.Path | None) -> dict[str, StereoPair]:
    """{"synthetic/..." and "real/...": pair}"""
    pairs = {f"synthetic/{p.name}": p for p in synthetic_pairs(0, test, SIZE)}
    if real is not None:
        pairs |= {f"real/{p.name}": p for p in open_folder(real, size=SIZE)}
    return pairs


def beginnings(
    teacher: api.Stereo, seed: int, training: list[StereoPair], calibration: int, methods, log
) -> dict[str, api.Stereo]:
    """{method: the student before training}"""
    fresh = api.build(student_config(teacher.config), seed)
    ours = flatten(fresh.params)
    encoder = inherited_encoder(flatten(teacher.params), ours, (teacher.config, fresh.config))
    given = api.Stereo(fresh.config, unflatten({**ours, **encoder}), {})
    drawn = np.random.default_rng([seed, 3]).permutation(len(training))[:calibration]
    images = stack_images([training[i] for i in drawn])
    made = {}
    for method in methods:
        made[method], report = init_student(teacher, given, method, images, seed)
        log({"init": method, "seed": seed, "seconds": report["seconds"], "share": report["share"]})
    return made


def run_seed(seed: int, teacher: api.Stereo, training, score: Score, args, log, done: set) -> None:
    """Trains all beginnings of a seed side by side, one compiled step for all."""
    config = get_config(args.steps, args.batch, seed, args.lr)
    plan = check_settings(config, has_teacher=True)
    made = beginnings(teacher, seed, training, args.calibration, args.methods, log)
    student = Student(made[args.methods[0]].config, plan.optim, plan.on, plan.compute)
    states = {
        method: first_state(
            student,
            [Trial(net.params, plan.runs[0].weights, plan.runs[0].lr, seed)],
            teacher.config.encoder.width,
        )
        for method, net in made.items()
    }
    targets_of = jax.jit(
        forward.live_teacher(teacher.config, plan.on, plan.settings, compute=Compute())
    )
    step_fn = make_train_step({"": student}, lambda _, batch, key: batch["targets"], plan.settings)
    key = jax.random.key(0)
    folder = args.workdir / f"seed{seed}"
    with Checkpoints(folder, args.every) as checkpoints:
        together, _ = checkpoints.restore(TrainState(jnp.zeros((), jnp.int32), states))
        first, states = int(together.step), dict(together.students)

        def look(step: int) -> None:
            for method in args.methods:
                if (seed, method, step) not in done:
                    params, _ = TrainState(step, {"": states[method]}).network("")
                    row = {"seed": seed, "method": method, "step": step}
                    log(row | score(api.Stereo(student.config, params, {})))

        if first == 0:
            look(0)
        batches = training_batches(
            training, seed=seed, batch=args.batch, augmented=True, matching=0, start=first
        )
        with Progress(args.steps, f"seed {seed}", done=first) as progress:
            for step in range(first + 1, min(args.until, args.steps) + 1):
                batch = next(batches)
                shared = {k: batch[k] for k in ("image1", "image2")}
                shared["targets"] = targets_of(teacher.variables, batch, key)
                losses = {}
                for method in args.methods:
                    state = TrainState(jnp.asarray(step - 1, jnp.int32), {"": states[method]})
                    state, metrics = step_fn(state, None, shared)
                    states[method] = state.students[""]
                    losses[method] = metrics[""]["loss"]
                if step in LOOKS or step == args.steps:
                    log(
                        {"losses": {m: float(v[0]) for m, v in losses.items()}}
                        | {"seed": seed, "step": step, "seconds": round(time.process_time(), 1)}
                    )
                    look(step)
                if step % args.every == 0 or step == args.steps:
                    checkpoints.save(TrainState(jnp.asarray(step, jnp.int32), states), {})
                progress.update(1)


def read_log(path: pathlib.Path) -> list[dict]:
    """The log's rows; a row that a killed run left unfinished is dropped."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/init_study"))
    parser.add_argument("--real", type=pathlib.Path, help="a folder of real pairs to score on")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-4, help="peak rate, of all methods")
    parser.add_argument("--until", type=int, default=10**9, help="go on later from this step")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--pairs", type=int, default=400, help="geometries to train on")
    parser.add_argument("--calibration", type=int, default=256, help="of these, for calibrated")
    parser.add_argument("--test", type=int, default=24, help="unseen geometries to score on")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    args = parser.parse_args()

    args.workdir = atomic.make_folder(args.workdir)
    jax.config.update("jax_compilation_cache_dir", str(args.workdir.absolute() / "compiled"))
    path = args.workdir / LOG
    rows = read_log(path)
    atomic.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    done = {(r["seed"], r["method"], r["step"]) for r in rows if "method" in r}

    def log(row: dict) -> None:
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")

    teacher = api.load("moonlet")
    pairs = unseen(args.test, args.real)
    score = Score(teacher, pairs)
    if not rows:
        counts = {
            net.config.name: sum(a.size for a in jax.tree.leaves(net.params))
            for net in (teacher, api.build(student_config(teacher.config)))
        }
        log(
            {
                "geometries": {name: pair.geometry for name, pair in pairs.items()},
                "parameters": counts,
                "student": student_config(teacher.config).to_dict(),
                "settings": {k: str(v) for k, v in vars(args).items() if k != "workdir"},
                "config": get_config(args.steps, args.batch, 0, args.lr).to_dict(),
                "teacher": score(teacher),
            }
        )
    training = []
    with Progress(args.pairs, "render") as progress:
        for pair in synthetic_pairs(FIRST_SEED, args.pairs, SIZE):
            training.append(pair)
            progress.update(1)
    for seed in args.seeds:
        if (seed, args.methods[-1], min(args.until, args.steps)) not in done:
            run_seed(seed, teacher, training, score, args, log, done)


if __name__ == "__main__":
    main()
