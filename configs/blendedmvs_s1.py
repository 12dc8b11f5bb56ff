r"""S1 of the paper on BlendedMVS.

    lunar-distill train --config configs/blendedmvs_s1.py --workdir runs/blendedmvs_s1 \
        --config.teacher=MAST3R.pth --config.data.source=FOLDER \
        --config.sets.val.source=FOLDER
    lunar-distill train --config configs/blendedmvs_s1.py:tiny --workdir runs/tiny

The full run needs the released teacher and the data set, and was not made here; `:tiny` is three
steps of the same recipe with the embedded teacher on rendered ground, which slow tests run.
"""

from lunar_distill_jax.train import recipes


def get_config(mode: str = "full"):
    return recipes.blendedmvs("s1", mode, tiny_student="slim-mobile")
