"""Resampling a frame: image, depth and intrinsics keep telling the same story."""

import numpy as np
import pytest

from lunar_distill_jax import geometry
from lunar_distill_jax.data import images


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
