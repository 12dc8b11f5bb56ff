r"""Does the way a student begins matter? Every initialisation, two students, five seeds.

    lunar-distill sweep --config configs/sweep_init.py --workdir runs/sweep_init \
        --config.teacher=MAST3R.pth --config.data.source=FOLDER --config.sets.test.source=FOLDER
    lunar-distill sweep --config configs/sweep_init.py:tiny --workdir runs/tiny

`:tiny` has the embedded teacher, its student, and two ways to begin.
"""

from lunar_distill_jax.init.inherit import METHODS
from lunar_distill_jax.train import recipes


def get_config(mode: str = "full"):
    c = recipes.lunar("s3", mode, tiny_student="moonlet-student")
    c.calibration = 0 if mode == "tiny" else 64
    return c


def get_sweep(mode: str = "full"):
    tiny = mode == "tiny"
    for student in ("moonlet-student",) if tiny else ("s3", "slim-s"):
        for method in ("fresh", "inherit") if tiny else METHODS:
            for seed in range(2 if tiny else 5):
                yield {"student": student, "init": method, "seed": seed}
