r"""S3 of the paper on StereoLunar: DINOv2 ViT-S/14, decoder 256 / 4 layers.

    lunar-distill train --config configs/lunar_s3_small_decoder.py --workdir runs/s3 \
        --config.teacher=MAST3R.pth --config.data.source=FOLDER \
        --config.sets.test.source=FOLDER
    lunar-distill train --config configs/lunar_s3_small_decoder.py:tiny --workdir runs/tiny

The full run needs the released teacher and the data set, and was not made here; `:tiny` is three
steps of the same recipe with the embedded teacher on rendered ground, which slow tests run.
"""

from lunar_distill_jax.train import recipes


def get_config(mode: str = "full"):
    return recipes.lunar("s3", mode, tiny_student="slim-s")
