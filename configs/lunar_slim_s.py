r"""Our slim-s on StereoLunar, by the paper's recipe.

    lunar-distill train --config configs/lunar_slim_s.py --workdir runs/lunar_slim_s \
        --config.teacher=MAST3R.pth --config.data.source=FOLDER \
        --config.sets.test.source=FOLDER
    lunar-distill train --config configs/lunar_slim_s.py:tiny --workdir runs/tiny

The full run needs the released teacher and the data set, and was not made here; `:tiny` is three
steps of the same recipe with the embedded teacher on rendered ground, which slow tests run.
"""

from lunar_distill_jax.train import recipes


def get_config(mode: str = "full"):
    return recipes.lunar("slim-s", mode, tiny_student="slim-s")
