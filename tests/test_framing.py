"""Photographs of any size to a network's frame: the reference's pixels, and the way back."""

import hashlib
import json
import pathlib

import numpy as np
import pytest
from goldens import recipe
from PIL import Image

from lunar_distill_jax import geometry
from lunar_distill_jax.data import framing

GOLDENS = pathlib.Path(__file__).parents[2] / "shared" / "goldens"


def picture(name, facts):
    """The picture that a golden was made of: a stored frame, or noise by formula."""
    if not name.startswith("syn_"):
        return Image.open(GOLDENS / "images" / name)
    shape = name.removeprefix("syn_").removesuffix("_exif6")
    height, width = map(int, shape.split("x"))
    noise = recipe.img(facts[f"syn/{shape}"]["img_seed"], 1, height, width)[0].transpose(1, 2, 0)
    out = Image.fromarray(np.clip(np.round((noise + 1) * 127.5), 0, 255).astype(np.uint8))
    if name.endswith("_exif6"):  # stored lying down; the tag asks viewers to turn it
        out.getexif()[0x0112] = 6
    return out


@pytest.mark.skipif(not GOLDENS.is_dir(), reason=f"no goldens at {GOLDENS}")
def test_frames_are_the_references():
    facts = json.loads((GOLDENS / "postproc.json").read_text())
    seen = 0
    for key, want in facts.items():
        if not key.startswith("load/") or "NLE" in key:  # those photographs are not ours to keep
            continue
        image, where = framing.frame(
            picture(key.split("/")[1], facts),
            want["size"],
            patch=want["patch_size"],
            square=want["square_ok"],
        )
        assert list(image.shape) == want["out_shape"] and where.box[2:] == image.shape[:2], key
        digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
        assert digest == want["sha256_u8_HWC"], key
        seen += 1
    assert seen == 29


@pytest.mark.parametrize("size, shape", [(512, (300, 700)), (512, (900, 700)), (224, (300, 411))])
def test_pixels_and_intrinsics_survive_the_way_there_and_back(size, shape):
    height, width = shape
    image, where = framing.frame(Image.new("RGB", (width, height)), size)
    assert where.original == shape and all(n % 16 == 0 for n in image.shape[:2])
    K = np.array([[650.0, 0, width / 2 - 0.5], [0, 655, height / 2 + 3], [0, 0, 1]])
    points = np.random.default_rng(0).uniform(-1, 1, (50, 3)) + [0, 0, 4]
    pixels = geometry.project(K, points)
    in_frame = geometry.project(where.intrinsics(K), points)
    np.testing.assert_allclose(where.to_frame(pixels), in_frame, atol=1e-9)
    np.testing.assert_allclose(where.to_original(in_frame), pixels, atol=1e-9)
    corners = where.to_original(
        np.array([[-0.5, -0.5], [image.shape[1] - 0.5, image.shape[0] - 0.5]])
    )
    assert (corners >= -0.51).all() and (corners <= np.array([width, height]) - 0.49).all()
