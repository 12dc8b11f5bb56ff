r"""The embedded teacher, from nothing, on the synthetic Moon: stages, each from the one before.

    lunar-distill train --config configs/moonlet.py:match --workdir runs/moonlet/match
    lunar-distill train --config configs/moonlet.py:surface --workdir runs/moonlet/surface
    lunar-distill train --config configs/moonlet.py:settle --workdir runs/moonlet/settle

`tools/train_moonlet.py` runs them in order, scores the result and packs it. "match" teaches where
the other view shows a token's ground, "surface" points and descriptors too, "settle" lowers the
rate and lets the network say how sure it is. Killed at any moment, the same command goes on.
"""

from lunar_distill_jax.data.synthetic import TRAINING_SEEDS
from lunar_distill_jax.train.options import data_block, run_config

FOLDER = "runs/moonlet"
STAGES = ("match", "surface", "settle")


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
    c.loss.update(tokens=1.0, attention=1.0, covisibility=0.2, matching=0.05)
    c.loss_settings.matching.source = "flow"
    c.loss_settings.points.weighting = "none"
    c.optim.update(kind="muon", lr=2e-3, final=1.5e-3, warmup=30, ema=0.998)
    c.steps = 600
    if stage != "match":
        c.start_from = f"{FOLDER}/{STAGES[STAGES.index(stage) - 1]}"
    c.log_every, c.checkpoint_every, c.tensorboard = 10, 100, False
    return c
