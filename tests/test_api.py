"""The public functions as a notebook meets them: what they refuse, how they show themselves."""

import numpy as np
import pytest
import tiny

import lunar_distill_jax as ld
from lunar_distill_jax.errors import InputError

GOOD = np.zeros((1, 32, 32, 3), np.float32)


@pytest.fixture(scope="module")
def stereo():
    return ld.build(tiny.CONFIG, seed=1)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.full(GOOD.shape, 200, np.uint8),
            r"is uint8, expected float32 in \[-1, 1\]: give image",
        ),
        (GOOD.astype(np.int64), "is int64"),
        (GOOD + 255, "holds 255 to 255, expected -1 to 1: give image. / 127.5 - 1"),
        (GOOD - 1.5, "holds -1.5 to -1.5"),
        (np.where(np.arange(3) == 1, np.nan, GOOD), "holds nan to nan, expected .* without holes"),
        (GOOD + np.inf, "holds inf to inf"),
        (GOOD[0], r"has shape \(32, 32, 3\), expected \[B, H, W, 3\]: give image.\[None\]"),
        (GOOD[0, ..., 0], r"has shape \(32, 32\): expected"),
        (GOOD[..., :1], r"has shape \(1, 32, 32, 1\)"),
        (GOOD[:0], r"has shape \(0, 32, 32, 3\)"),
        (GOOD[:, :, :0], r"has shape \(1, 32, 0, 3\)"),
        (GOOD[:, :30], "multiples of 16"),
        ("left.jpg", "is a str, expected an array .* ld.read_image"),
        (GOOD.tolist(), "is a list, expected an array"),
        (None, "is a NoneType"),
    ],
)
def test_predict_refuses_what_it_would_misread(image, message, stereo):
    for images in ((image, GOOD), (GOOD, image)):
        with pytest.raises(InputError, match=message):
            ld.predict(stereo, *images)
