r"""The embedded teacher's student, seven times smaller: first its encoder alone, then all of it.

    lunar-distill train --config configs/moonlet_student.py:encoder --workdir runs/student/encoder
    lunar-distill train --config configs/moonlet_student.py:distil --workdir runs/student/distil

"encoder" teaches the student's encoder the teacher's tokens, from photographs alone; the compiler
drops all that does not lead to them. It stands for the pretrained encoder that other students bring
along. "distil" is the demo, given an hour.
"""

from lunar_distill_jax import demo
from lunar_distill_jax.data.synthetic import TRAINING_SEEDS
from lunar_distill_jax.train.options import data_block, run_config

FOLDER = "runs/student"


def get_config(stage: str = "distil"):
    if stage == "distil":
        c = demo.get_config("hour")
        c.encoder = f"{FOLDER}/encoder/student.safetensors"
    elif stage == "encoder":
        c = run_config()
        c.teacher, c.student, c.init = "moonlet", "moonlet-student", "inherit"
        c.seed, c.batch, c.steps = 1, 32, 700
        c.data = data_block(
            source="synthetic:stereolunar",
            seed=2 * TRAINING_SEEDS,
            geometries=2400,
            size=128,
            kept="runs/moonlet/pairs",
            cameras=4,
            trajectories=("nadir", "oblique", "dynamic", "dynamic"),
        )
        c.pipeline.update(on=True, sizes=((128, 128),), crop="centre", turn="upright")
        c.pipeline.update(jitter=0.25, sensor=0.5)
        c.loss.update(features=1.0)
        c.loss_settings.feature_kind = "mixed"
        c.optim.update(kind="adamw", lr=2e-3, final=2e-5, warmup=30)
        # What reads the stem's finer maps is the teacher's: so are they.
        c.optim.freeze = (r"encoder/stem/(down|norm|conv)[01]/.*",)
        c.log_every, c.checkpoint_every, c.tensorboard = 10, 100, False
    else:
        raise ValueError(f"Unknown stage {stage!r}: expected encoder or distil.")
    return c
