r"""Our slim-mobile on StereoLunar, by the paper's recipe.

    lunar-distill train --config configs/lunar_slim_mobile.py --workdir runs/lunar_slim_mobile \
        --config.teacher=MAST3R.pth --config.data.source=FOLDER \
        --config.sets.test.source=FOLDER
    lunar-distill train --config configs/lunar_slim_mobile.py:tiny --workdir runs/tiny

The full run needs the released teacher and the data set, and was not made here; `:tiny` is three
steps of the same recipe with the embedded teacher on rendered ground, which slow tests run.
"""

from lunar_distill_jax.train import recipes


def get_config(mode: str = "full"):
    return recipes.lunar("slim-mobile", mode, tiny_student="slim-mobile")
