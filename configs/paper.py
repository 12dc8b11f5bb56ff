r"""The paper's recipe for its students, and ours: the step that tools/aot_tpu.py compiles.

    lunar-distill train --config configs/paper.py:s3 --workdir runs/s3 \
        --config.teacher=MAST3R.pth --config.data.source=FOLDER
    python tools/aot_tpu.py --config configs/paper.py:s3 --topology v5e:4x4

Modes: the name of a student, or NAME-sweep8, eight trials of it in one program. The 16 micro-
batches are for 16 devices of 16 GB; 256 devices need --config.accumulate=1.
"""

import ml_collections as mlc

from lunar_distill_jax.train.plan import base_config


def get_config(mode: str = "s3") -> mlc.ConfigDict:
    student, _, sweep = mode.partition("-sweep")
    c = base_config()
    c.teacher, c.student, c.init = "mast3r", student, "fresh"
    c.steps, c.batch, c.accumulate, c.matches, c.symmetric = 40_000, 256, 16, 8192, True
    c.data = dict(source="", size=512, geometries=1, seed=0)
    c.loss.update(points=1.0, matching=0.075, features=0.1, sobel=1.0)
    c.loss_settings.points.metric = False
    c.loss_settings.matching.confidence = "mean"
    c.optim.update(lr=3e-4, warmup=1000, final=1e-6)
    c.compute.dtype = c.teacher_compute.dtype = "bfloat16"
    if sweep:
        c.trials = tuple({"lr": 3e-4 * 2 ** (i / 2 - 2), "seed": i} for i in range(int(sweep)))
        c.mesh.trial = int(sweep)
    return c
