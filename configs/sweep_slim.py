r"""Our slim students against the paper's, by one recipe: error against cost.

    lunar-distill sweep --config configs/sweep_slim.py --workdir runs/sweep_slim \
        --config.teacher=MAST3R.pth --config.data.source=FOLDER --config.sets.test.source=FOLDER
    lunar-distill sweep --config configs/sweep_slim.py:tiny --workdir runs/tiny
"""

from lunar_distill_jax.train import recipes

STUDENTS = ("slim-m", "slim-s", "slim-s-catconv", "slim-ti", "slim-mobile", "s1", "s2", "s3", "s4")


def get_config(mode: str = "full"):
    c = recipes.lunar("slim-s", mode, tiny_student="moonlet-student")
    c.init = "fresh"
    return c


def get_sweep(mode: str = "full"):
    for student in ("moonlet-student", "slim-ti") if mode == "tiny" else STUDENTS:
        for seed in range(1 if mode == "tiny" else 3):
            yield {"student": student, "seed": seed}
