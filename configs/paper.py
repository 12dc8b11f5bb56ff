r"""The paper's recipe at a TPU pod's size: one student, or trials of it in one program.

    python tools/aot_tpu.py --config configs/paper.py:s3 --topology v5e:4x4
    lunar-distill train --config configs/paper.py:s3 --workdir runs/s3 \
        --config.teacher=MAST3R.pth --config.data.source=FOLDER \
        --config.sets.test.source=FOLDER
    lunar-distill train --config configs/paper.py:tiny --workdir runs/tiny

Modes: the name of a student, NAME-sweep8 for eight trials of it, or tiny. Everything is that of
`recipes.lunar` but for the batch: 256 pairs a step in 16 micro-batches, for 16 devices of 16 GB;
256 devices need --config.accumulate=1. The rates are the recipe's, for its 16 pairs a step: which
ones 256 pairs want was not tried.
"""

from lunar_distill_jax.train import recipes


def get_config(mode: str = "s3"):
    if mode == "tiny":
        return recipes.lunar("s3", mode, tiny_student="slim-s")
    student, _, trials = mode.partition("-sweep")
    c = recipes.lunar(student, "full", tiny_student="slim-s")
    c.batch, c.accumulate = 256, 16
    if trials:
        rates = (c.optim.lr * 2 ** (i / 2 - 2) for i in range(int(trials)))
        c.trials = tuple({"lr": lr, "seed": i} for i, lr in enumerate(rates))
        c.mesh.trial = int(trials)
    return c
