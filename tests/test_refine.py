"""Matches made exact by the pictures, and what parallax then adds to a surface: known terrain."""

import types

import numpy as np
import pytest

from lunar_distill_jax import geometry
from lunar_distill_jax.data.synthetic import cross
from lunar_distill_jax.evaluation import flow, metrics, network, poses
from lunar_distill_jax.moon import make_lightings, make_pair
from lunar_distill_jax.twoview import adjust, matching
from lunar_distill_jax.twoview.refine import refine
from lunar_distill_jax.types import PointMaps


def noisy_matches(pair, deviation, seed=0):
    """-> [N, 4] with noise in view 2, the same without, and the true shapes [N, 2, 2]."""
    pixels = matching.grid_pixels(*pair.valid.shape[1:], 4).astype(np.float64)
    there, seen = flow.carry(pair, pixels)
    right, _ = flow.carry(pair, pixels + [1, 0])
    below, _ = flow.carry(pair, pixels + [0, 1])
    shapes = np.stack([right - there, below - there], -1)
    size = np.array(pair.valid.shape[:0:-1])
    seen &= np.isfinite(shapes).all((1, 2)) & ((there > 8) & (there < size - 9)).all(1)
    true = np.concatenate([pixels, there], 1)[seen]
    noise = np.random.default_rng(seed).normal(0, deviation, (len(true), 2))
    return true + np.pad(noise, ((0, 0), (2, 0))), true, shapes[seen]


@pytest.mark.parametrize("trajectory", ["nadir", "oblique", "dynamic"])
def test_a_pixel_s_error_becomes_a_tenth(trajectory):
    pair = make_pair(4, trajectory, 128)
    matches, true, shapes = noisy_matches(pair, 0.7)
    found, holds = refine(pair.image, matches, shapes)
    before = np.linalg.norm(matches[:, 2:] - true[:, 2:], axis=1)
    after = np.linalg.norm(found[:, 2:] - true[:, 2:], axis=1)
    print(
        trajectory, np.median(before), np.median(after), holds.mean(), (after[holds] < 0.5).mean()
    )
    np.testing.assert_array_equal(found[:, :2], matches[:, :2])
    assert np.median(after[holds]) < np.median(before) / 9  # seen: 10 to 20 times less
    assert holds.mean() > 0.7 and (after[holds] < 0.5).mean() > 0.9


def test_exposure_and_colour_do_not_matter():
    pair = make_pair(4, "nadir", 96)
    matches, _, shapes = noisy_matches(pair, 0.5)
    found, holds = refine(pair.image, matches, shapes)
    other = pair.image[0].astype(np.float64).mean(-1), 0.4 * pair.image[1].astype(np.float64) + 30
    again, still = refine(other, matches, shapes)
    np.testing.assert_array_equal(still, holds)
    np.testing.assert_allclose(again[holds], found[holds], atol=1e-3)


def test_under_another_sun_nothing_is_made_exact():
    pair = cross(*make_lightings(4, "nadir", 128, (0, 1)))
    matches, _, shapes = noisy_matches(pair, 0.7)
    _, holds = refine(pair.image, matches, shapes)
    assert holds.mean() < 0.15
    points = geometry.pointmaps_cam1(pair)
    matches[:, 2:] = np.rint(matches[:, 2:])
    with_pictures = adjust.adjust(points, matches, pair.K, pair.image)
    without = adjust.adjust(points, matches, pair.K)
    assert not with_pictures.exact
    np.testing.assert_array_equal(with_pictures.T_cam2_cam1, without.T_cam2_cam1)
    np.testing.assert_array_equal(with_pictures.points, without.points)


@pytest.mark.parametrize("trajectory", ["oblique", "dynamic"])
def test_parallax_gives_flat_maps_their_hills_and_the_camera_its_pose(trajectory):
    """Planes instead of maps, matches off by a pixel: pictures under one sun say the rest."""
    pair = make_pair(4, trajectory, 128)
    matches, _, _ = noisy_matches(pair, 1.0)
    matches[:, 2:] = np.rint(matches[:, 2:])
    points = planes(pair)
    truth = metrics.ground_truth(pair)
    T = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
    found = {}
    for name, images in (("matches", None), ("pictures", pair.image)):
        fit = adjust.adjust(points, matches, pair.K, images)
        maps = PointMaps(np.stack(fit.points).astype(np.float32), np.ones((2, 128, 128)))
        values = metrics.pair_metrics(maps, truth)
        error = poses.pose_errors(fit.T_cam2_cam1, T)
        found[name] = values["relief_corr_detrended"], values["point_error_pct"], *error
    print(trajectory, found)
    assert fit.exact
    # Seen: 0.17 and 0.91, 0.26 and 0.59.
    assert found["matches"][0] < 0.3 and found["pictures"][0] > 0.55
    assert found["pictures"][1] < found["matches"][1]
    assert found["pictures"][2] < 0.5 and found["pictures"][3] < 3


def poor(pair, wrong):
    """A quarter-tilted plane for each view, and matches of which a share says anything."""
    rng = np.random.default_rng(0)
    matches, _, _ = noisy_matches(pair, 1.0)
    matches[:, 2:] = np.rint(matches[:, 2:])
    lost = rng.random(len(matches)) < wrong
    matches[lost, 2:] = rng.integers(0, 128, (lost.sum(), 2))
    tilt = np.exp(0.25 * np.linspace(-1, 1, 128))[None, :, None]
    return [points * tilt for points in planes(pair)], matches


@pytest.mark.parametrize("trajectory", ["oblique", "dynamic"])
def test_a_few_right_matches_are_enough_where_the_pictures_are_alike(trajectory):
    # Not every scene: a plane in two views has two poses, and the tilt may speak for the other.
    pair = make_pair(7, trajectory, 128)
    points, matches = poor(pair, 0.7)
    assert not adjust.adjust(points, matches, pair.K).believable
    fit = adjust.adjust(points, matches, pair.K, pair.image)
    assert fit.exact and fit.believable and fit.agree.mean() < adjust.AGREEING
    T = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
    rotation, direction = poses.pose_errors(fit.T_cam2_cam1, T)
    print(trajectory, rotation, direction)
    assert rotation < 0.5 and direction < 2  # seen: 0.1, 0.1


def test_pictures_of_other_ground_make_nothing_exact():
    one, two = make_pair(4, "nadir", 128), make_pair(5, "nadir", 128)
    points, matches = poor(one, 0.7)
    fit = adjust.adjust(points, matches, one.K, [one.image[0], two.image[1]])
    assert fit is None or not (fit.exact or fit.believable)


def test_one_run_of_the_network_serves_both_answers(monkeypatch):
    """The adjusted maps are those of `adjust`, and the poses of both answers are one."""
    pair = make_pair(4, "oblique", 96)
    points = planes(pair)
    runs = []

    def network_of_planes(stereo, image1, image2, turns):
        runs.append(len(image1))
        views = []
        for i in range(2):
            flat, own = np.ones((1, 96, 96)), points[i].astype(np.float32)[None]
            views.append(types.SimpleNamespace(pts3d=own, conf=flat, desc=own, desc_conf=flat))
        return views

    matches, _, _ = noisy_matches(pair, 0.5)
    matches[:, 2:] = np.rint(matches[:, 2:])
    monkeypatch.setattr(network.api, "predict", network_of_planes)
    monkeypatch.setattr(network, "match", lambda desc, conf: matches)
    own, adjusted = network.predictors(types.SimpleNamespace(turns=1), batch=1)
    (said,), (bent,) = own([pair]), adjusted([pair])
    assert runs == [1]
    np.testing.assert_array_equal(said.points_cam1, np.float32(points))
    fit = adjust.adjust(said.points_cam1, matches, pair.K, pair.image)
    np.testing.assert_array_equal(bent.points_cam1, np.float32(fit.points))
    np.testing.assert_array_equal(said.T_cam2_cam1, bent.T_cam2_cam1)
    adjusted([make_pair(5, "oblique", 96)])
    assert runs == [1, 1]  # another pair is another run


def planes(pair):
    """The best plane through each view's own depth, along its rays, in camera 1."""
    out = []
    T = geometry.relative_pose(pair.T_world_cam)  # camera 2's points to camera 1
    for i in range(2):
        rays = geometry.pixel_rays(pair.K[i], *pair.valid.shape[1:])
        good = pair.valid[i]
        slopes = np.linalg.lstsq(rays[good], 1 / pair.depth_m[i][good], rcond=None)[0]
        own = rays / (rays @ slopes)[..., None]
        out.append(own if i == 0 else geometry.transform(T, own))
    return out


def test_detail_is_what_it_is_told_and_nothing_far_away():
    pixels = np.array([[20.0, 30], [21, 30], [60, 20]])
    ratios = np.array([0.01, 0.01, -0.02])
    factor = np.log(adjust._detail(pixels, ratios, np.full(3, 1e-5), np.ones(3), (80, 100)))
    np.testing.assert_allclose(factor[30, 20], 0.01, rtol=1e-3)
    np.testing.assert_allclose(factor[20, 60], -0.02, rtol=1e-3)
    assert abs(factor[79, 99]) < 1e-4
    noise = np.full(3, 0.003)
    sure = np.log(adjust._detail(pixels, ratios, noise, np.ones(3), (80, 100)))
    none = np.log(adjust._detail(pixels, ratios, noise, np.array([1, 1, 1e-6]), (80, 100)))
    # A match that fits no pose has no say.
    assert sure[20, 60] < -0.019 and abs(none[20, 60]) < 1e-4
