"""The public functions as a notebook meets them: what they refuse, how they show themselves."""

import re

import numpy as np
import pytest
import tiny
from PIL import Image

import lunar_distill_jax as ld
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.zoo import architecture

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


# How they show themselves -------------------------------------------------------------------------


def test_a_network_is_one_line_and_one_table():
    teacher = ld.load("moonlet")
    line = repr(teacher)
    assert line.startswith("<Stereo moonlet: parameters 4,315,920; training ") and "\n" not in line
    assert line.endswith("licence Apache-2.0>") and "128x128" in line and len(line) < 400
    table = teacher.replace(meta={"licence": "a <b>"})._repr_html_()
    assert table.startswith("<table>") and "a &lt;b&gt;" in table and "4,315,920" in table


def test_the_package_lists_its_public_names_and_its_version():
    assert set(dir(ld)) == {*ld.__all__, "__version__", "__doc__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", ld.__version__)
    for name in ld.__all__:
        assert callable(getattr(ld, name)), name


def test_listed_names_are_loaded_and_built():
    names = ld.list_models()
    assert set(names) == {"models", "architectures", "encoders"}
    for name in names["models"]:
        assert ld.load(name).config.name in names["architectures"]
    assert {"mast3r", "slim-s"} <= set(names["architectures"])
    architecture(f"slim-s@{names['encoders'][-1]}")


def test_a_photograph_is_read_as_predict_takes_it(tmp_path, stereo):
    pixels = np.random.default_rng(0).integers(0, 256, (75, 100, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    whole = ld.read_image(tmp_path / "one.png")
    assert whole.shape == (1, 64, 96, 3) and whole.dtype == np.float32
    np.testing.assert_allclose(whole[0], pixels[5:69, 2:98] / 127.5 - 1, atol=1e-6)
    small = ld.read_image(str(tmp_path / "one.png"), 32)
    assert small.shape == (1, 16, 32, 3)
    assert ld.predict(stereo, small, small)[0].pts3d.shape == small.shape
    with pytest.raises(InputError, match="one.png becomes 0 x 16 pixels at size 20: give a size"):
        ld.read_image(tmp_path / "one.png", 20)
