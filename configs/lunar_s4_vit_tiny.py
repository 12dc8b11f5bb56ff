r"""S4 of the paper on StereoLunar: ViT-Tiny/16, decoder 512 / 6 layers.

    lunar-distill train --config configs/lunar_s4_vit_tiny.py --workdir runs/lunar_s4_vit_tiny \
        --config.teacher=MAST3R.pth --config.data.source=FOLDER \
        --config.sets.test.source=FOLDER
    lunar-distill train --config configs/lunar_s4_vit_tiny.py:tiny --workdir runs/tiny

The full run needs the released teacher and the data set, and was not made here; `:tiny` is three
steps of the same recipe with the embedded teacher on rendered ground, which slow tests run.
"""

from lunar_distill_jax.train import recipes


def get_config(mode: str = "full"):
    return recipes.lunar("s4", mode, tiny_student="slim-ti")
