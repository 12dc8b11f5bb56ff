r"""S1 of the paper on StereoLunar: MobileNetV3-L encoder, decoder 512 / 6 layers.

    lunar-distill train --config configs/lunar_s1_mobilenet.py --workdir runs/lunar_s1_mobilenet \
        --config.teacher=MAST3R.pth --config.data.source=FOLDER \
        --config.sets.test.source=FOLDER
    lunar-distill train --config configs/lunar_s1_mobilenet.py:tiny --workdir runs/tiny

The full run needs the released teacher and the data set, and was not made here; `:tiny` is three
steps of the same recipe with the embedded teacher on rendered ground, which slow tests run.
"""

from lunar_distill_jax.train import recipes


def get_config(mode: str = "full"):
    return recipes.lunar("s1", mode, tiny_student="slim-mobile")
