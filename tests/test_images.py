"""Resampling a frame: image, depth and intrinsics keep telling the same story."""

import numpy as np
import pytest
from PIL import Image

from lunar_distill_jax import geometry
from lunar_distill_jax.data import images
from lunar_distill_jax.errors import InputError


@pytest.mark.parametrize("new", [(12, 16), (18, 20), (48, 80)])
def test_resized_plane_is_exact(new):
    K = np.array([[40.0, 0, 15.5], [0, 42.0, 11.5], [0, 0, 1]])
    w = np.array([0.1, -0.3, 1.0]) / 3e4  # 1 / z = w . ray

    def plane(K, shape):
        return 1 / (geometry.pixel_rays(K, *shape) @ w)

    depth, valid = images.resize_depth(plane(K, (24, 32)), np.ones((24, 32), bool), *new)
    assert valid.all()
    K_new = images.resize_intrinsics(K, (24, 32), new)
    np.testing.assert_allclose(depth, plane(K_new, new), rtol=1e-7)  # float32


def test_resized_frame_projects_a_curved_surface_to_the_same_place():
    """A dome seen at 96 x 128 and resampled to half: points stay on the dome to 2nd order."""
    K = np.array([[150.0, 0, 63.5], [0, 150.0, 47.5], [0, 0, 1]])

    def dome_depth(K, shape):  # nearest hit of a ball of radius 2 at distance 5
        rays = geometry.pixel_rays(K, *shape)
        a, b = (rays**2).sum(-1), 5 * rays[..., 2]
        root = b**2 - a * (25 - 4)
        return np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, 0.0)

    depth = dome_depth(K, (96, 128))
    small, valid = images.resize_depth(depth, depth > 0, 48, 64)
    K_small = images.resize_intrinsics(K, (96, 128), (48, 64))
    points = geometry.backproject(small, K_small)[10:38, 18:46]
    assert valid[10:38, 18:46].all()
    # The sagitta of half a pixel of 1/50 on a ball of radius 2 is 1e-4.
    np.testing.assert_allclose(np.linalg.norm(points - [0, 0, 5], axis=-1), 2, atol=2e-4)
    assert not valid[:4, :4].any()  # sky stays sky
    ramp = np.repeat(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], 96, 0).repeat(3, -1)
    got = images.resize_image(ramp, 48, 64)[20, 5:-5, 0].astype(float)
    np.testing.assert_allclose(got, (2 * (2 * np.arange(64) + 0.5))[5:-5], atol=0.51)


def test_resizing_does_not_join_two_surfaces():
    depth = np.full((8, 8), 100.0)
    depth[:, 4:] = 200
    valid = np.ones((8, 8), bool)
    valid[0, 0] = False
    small, ok = images.resize_depth(depth, valid, 8, 7)
    assert set(np.unique(small[ok]).round(3)) == {100, 200}
    assert not ok[0, 0] and not ok[:, 3].any() and ok.sum() == 8 * 6 - 1


# Photographs of other kinds -----------------------------------------------------------------------

GREY = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)
SCALED = {
    "16 bits": (".png", GREY.astype(np.uint16) * 257),
    "16 bits in a TIFF": (".tif", GREY.astype(np.uint16) * 257),
    "32 bits": (".tif", GREY.astype(np.int32) * 257),
    "floats to 1": (".tif", GREY.astype(np.float32) / 255),
    "floats to 255": (".tif", GREY.astype(np.float32)),
}
NOT_SCALED = {
    "12 bits": (GREY.astype(np.uint16) * 16, "holds numbers from 0 to 4080, expected 0 to 65535"),
    "radiances": (GREY.astype(np.float32) * 3.7, "to 943.5, expected 0 to 1, or 0 to 255"),
    "heights": (GREY.astype(np.float32) / 300 - 0.5, "holds numbers from -0.5 to"),
    "large": (GREY.astype(np.int32) * 1000, "holds numbers from 0 to 255000"),
    "nan": (np.where(GREY > 250, np.nan, GREY / 255).astype(np.float32), "from nan to nan"),
}


@pytest.mark.parametrize("kind", SCALED)
def test_deep_pictures_are_read_as_their_8_bit_version(kind, tmp_path):
    suffix, values = SCALED[kind]
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(values).save(path)
    for read in (images.read_image, images.read_photograph):
        np.testing.assert_array_equal(np.asarray(read(path))[..., 1], GREY)


@pytest.mark.parametrize("kind", NOT_SCALED)
def test_pictures_whose_white_is_unknown_are_refused(kind, tmp_path):
    values, message = NOT_SCALED[kind]
    Image.fromarray(values).save(tmp_path / "deep.tif")
    with pytest.raises(InputError, match=message):
        images.read_photograph(tmp_path / "deep.tif")


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_animations_are_refused(suffix, tmp_path):
    path = tmp_path / f"moving{suffix}"
    first = Image.fromarray(GREY)
    first.save(path)
    images.read_photograph(path)  # of one picture it is one
    first.save(path, save_all=True, append_images=[first.rotate(90), first.rotate(45)])
    with pytest.raises(InputError, match="is an animation of 3 pictures, expected one"):
        images.read_photograph(path)
