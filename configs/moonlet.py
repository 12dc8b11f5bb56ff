r"""The embedded teacher, from nothing, on the synthetic Moon: stages, each from the one before.

    lunar-distill train --config configs/moonlet.py:match --workdir runs/moonlet/match
    lunar-distill train --config configs/moonlet.py:surface --workdir runs/moonlet/surface
    lunar-distill train --config configs/moonlet.py:relief --workdir runs/moonlet/relief
    lunar-distill train --config configs/moonlet.py:settle --workdir runs/moonlet/settle
    lunar-distill train --config configs/moonlet.py:confidence --workdir runs/moonlet/confidence

`tools/train_moonlet.py` runs them in order, scores the result and packs it. "match" teaches where
the other view shows a token's ground, "surface" points and descriptors too, "relief" gives what is
left beside a smooth surface the most weight, "settle" lowers the rate to nothing with descriptors
given their due, "confidence" lets the network say how sure it is. Killed at any moment, the same
command goes on.
"""

from lunar_distill_jax.data.synthetic import TRAINING_SEEDS
from lunar_distill_jax.train.options import data_block, run_config

FOLDER = "runs/moonlet"
LADDER = ".*(ladder|catconv/add).*"  # reads shading; begun anew it has most to learn
STAGES = ("match", "surface", "relief", "settle", "confidence")


def get_config(stage: str = "match"):
    if stage not in STAGES:
        raise ValueError(f"Unknown stage {stage!r}: expected one of {', '.join(STAGES)}.")
    c = run_config()
    c.student = "moonlet"
    c.seed, c.batch, c.matches = STAGES.index(stage) + 1, 16, 256
    c.data = data_block(
        source="synthetic:stereolunar",
        seed=2 * TRAINING_SEEDS,
        geometries=2400,
        size=128,
        kept=f"{FOLDER}/pairs",
        cameras=4,
        # A descent's pairs are rolled, tilted and far apart: they need most practice.
        trajectories=("nadir", "oblique", "dynamic", "dynamic"),
    )
    c.pipeline.update(on=True, sizes=((128, 128),), crop="centre", turn="upright")
    c.pipeline.update(jitter=0.25, sensor=0.5)
    matching, points = c.loss_settings.matching, c.loss_settings.points
    matching.source, points.weighting = "flow", "none"
    c.optim.update(kind="muon", lr=1.5e-3, final=1.45e-3)
    if stage == "match":
        c.steps, c.optim.lr, c.optim.warmup = 500, 2e-3, 30
        c.loss.update(tokens=1.0, attention=1.0, covisibility=0.2, matching=0.05)
    elif stage == "surface":
        c.steps, c.optim.warmup = 400, 20
        c.loss.update(points=1.0, relief=4.0, matching=0.2, attention=0.5, covisibility=0.1)
    else:
        c.optim.update(lr=1e-3, warmup=20)
        # Adam takes the same rate worse than Muon: the few numbers of the plane move every point.
        c.optim.multipliers = ((".*plane.*", 0.1), (".*(stem|head2).*", 0.3), (LADDER, 3.0))
        c.loss.update(points=2.0, relief=20.0, gradient=10.0, attention=0.2, matching=0.03)
        if stage == "relief":
            c.steps, c.optim.final = 700, 3e-4
        elif stage == "settle":
            c.steps, c.matches, c.optim.final = 1500, 1024, 1e-6
            c.loss.update(points=3.0, matching=0.2)
        else:
            c.steps, c.matches, c.optim.lr, c.optim.final = 90, 1024, 2e-4, 1e-6
            c.loss.update(points=3.0, matching=0.1)
            points.weighting, matching.confidence, matching.negatives = "confidence", "mean", 0.9
    if stage != "match":
        c.start_from = f"{FOLDER}/{STAGES[STAGES.index(stage) - 1]}"
    c.log_every, c.checkpoint_every, c.tensorboard = 10, 100, False
    return c
