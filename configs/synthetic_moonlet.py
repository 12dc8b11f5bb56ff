r"""The embedded teacher's own student on rendered ground; it inherits what fits.

    lunar-distill train --config configs/synthetic_moonlet.py --workdir runs/synthetic_moonlet
    lunar-distill train --config configs/synthetic_moonlet.py:tiny --workdir runs/tiny

`:tiny` takes three steps on rendered ground.
"""

from lunar_distill_jax.train import recipes


def get_config(mode: str = "full"):
    c = recipes.synthetic("moonlet-student", mode, tiny_student="moonlet-student")
    c.init = "inherit"
    return c
