r"""Our slim-ti from random numbers on rendered ground, taught by the embedded teacher.

    lunar-distill train --config configs/synthetic_slim_ti.py --workdir runs/synthetic_slim_ti
    lunar-distill train --config configs/synthetic_slim_ti.py:tiny --workdir runs/tiny

`:tiny` takes three steps on rendered ground.
"""

from lunar_distill_jax.train import recipes


def get_config(mode: str = "full"):
    return recipes.synthetic("slim-ti", mode, tiny_student="slim-ti")
