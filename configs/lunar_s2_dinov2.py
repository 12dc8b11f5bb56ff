r"""S2 of the paper on StereoLunar: DINOv2 ViT-S/14, decoder 512 / 6 layers; its best.

    lunar-distill train --config configs/lunar_s2_dinov2.py --workdir runs/lunar_s2_dinov2 \
        --config.teacher=MAST3R.pth --config.data.source=FOLDER \
        --config.sets.test.source=FOLDER
    lunar-distill train --config configs/lunar_s2_dinov2.py:tiny --workdir runs/tiny

The full run needs the released teacher and the data set, and was not made here; `:tiny` is three
steps of the same recipe with the embedded teacher on rendered ground, which slow tests run.
"""

from lunar_distill_jax.train import recipes


def get_config(mode: str = "full"):
    return recipes.lunar("s2", mode, tiny_student="slim-s")
