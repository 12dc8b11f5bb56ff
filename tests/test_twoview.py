"""Matching, poses and focal lengths: against the reference's outputs and on known scenes."""

import pathlib

import numpy as np
import pytest
import tiny

from lunar_distill_jax import geometry
from lunar_distill_jax.evaluation import flow, poses
from lunar_distill_jax.moon import make_pair
from lunar_distill_jax.twoview import adjust, essential, focal, matching, pnp

GOLDENS = pathlib.Path(__file__).parents[2] / "shared" / "goldens"
needs_goldens = pytest.mark.skipif(not GOLDENS.is_dir(), reason=f"no goldens at {GOLDENS}")
needs_opencv = pytest.mark.skipif(not essential.has_opencv(), reason="OpenCV is not installed")


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDENS / "postproc.npz")


# Matches ------------------------------------------------------------------------------------------


@needs_goldens
@pytest.mark.parametrize("step", [8, 4, 1])
def test_matches_are_the_references(golden, step):
    got = matching.reciprocal_matches(golden["match/desc1"], golden["match/desc2"], step)
    for view in range(2):
        np.testing.assert_array_equal(got[view], golden[f"match/sub{step}_dot/{view}"])


@needs_goldens
def test_matches_of_both_ways_and_their_confidence(golden):
    desc = golden["match/desc1"], golden["match/desc2"]
    got = matching.reciprocal_matches(*desc, 8, both_ways=True)
    for view in range(2):
        np.testing.assert_array_equal(got[view], golden[f"match/nonsym_sub8/{view}"])
    conf = matching.match_confidence(golden["match/confA"], golden["match/confB"], *got)
    np.testing.assert_array_equal(conf, golden["match/nonsym_sub8/2"])


@needs_goldens
def test_the_device_finds_the_same_neighbours(golden):
    flat1, flat2 = (golden[f"match/desc{i}"].reshape(-1, 24) for i in (1, 2))
    got = matching.nearest_dot_on_device(flat1, flat2)
    np.testing.assert_array_equal(got, golden["match/bruteforce_dot/0"])


@needs_goldens
def test_tolerant_matches_and_brute_force(golden):
    desc1, desc2 = golden["match/desc1"], golden["match/desc2"]
    got = matching.tolerant_matches(desc1, desc2, matching.grid_pixels(48, 64, 8), 5)
    for view in range(2):
        np.testing.assert_array_equal(got[view], golden[f"match/init_xy_tol5/{view}"])
    flat1, flat2 = desc1.reshape(-1, 24), desc2.reshape(-1, 24)
    np.testing.assert_array_equal(
        matching.nearest_dot(flat1, flat2), golden["match/bruteforce_dot/0"]
    )
    np.testing.assert_array_equal(
        matching.nearest_dot(flat2, flat1), golden["match/bruteforce_dot/1"]
    )


def test_all_matches_are_mutual_and_blocks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    desc1, desc2 = (rng.standard_normal((*shape, 8)) for shape in ((9, 14), (12, 10)))
    one, two = matching.reciprocal_matches(desc1, desc2, 2)
    similarity = np.einsum("ijk,xyk->ijxy", desc1, desc2)
    for (x1, y1), (x2, y2) in zip(one, two, strict=True):
        assert (
            similarity[y1, x1, y2, x2] == similarity[y1, x1].max() == similarity[..., y2, x2].max()
        )
    monkeypatch.setattr(matching, "BLOCK", 500)
    again = matching.reciprocal_matches(desc1, desc2, 2)
    np.testing.assert_array_equal(again, (one, two))


# Focal lengths ------------------------------------------------------------------------------------


@needs_goldens
@pytest.mark.parametrize("i", [0, 1])
def test_focal_lengths_are_the_references(golden, i):
    points, centre = golden["focal/pts3d"][i], golden["focal/pp"][i]
    # The reference computes in float32; seen 6e-7 and 3e-7 relative.
    assert focal.focal_median(points, centre) == pytest.approx(golden["focal/median"][i], rel=3e-6)
    assert focal.focal_weiszfeld(points, centre) == pytest.approx(
        golden["focal/weiszfeld"][i], rel=3e-6
    )


def test_focal_lengths_are_exact_without_noise_and_robust_with_outliers():
    K = np.array([[70.0, 0, 20], [0, 70, 15], [0, 0, 1]])
    rng = np.random.default_rng(1)
    points = geometry.backproject(rng.uniform(5, 9, (30, 40)), K)
    points[3:6] += 0.5 * rng.standard_normal((3, 40, 3))  # a tenth of the rows
    assert focal.focal_median(points, (20, 15)) == pytest.approx(70, rel=1e-3)
    assert focal.focal_weiszfeld(points, (20, 15)) == pytest.approx(70, rel=1e-3)


# Poses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("angle", [0.0, 0.3, 2.1])
def test_camera_pose_is_exact_and_forgives_outliers(angle, flat):
    rng = np.random.default_rng(2)
    points = rng.uniform(-1, 1, (300, 3)) * [8, 8, 0.0 if flat else 2.0] + [0, 0, 30]
    T = np.eye(4)
    T[:3, :3] = tiny.rotation([0.3, -0.2, 1], angle)
    T[:3, 3] = [4, -3, 2]
    rays = geometry.transform(T, points)
    rays[:30] += rng.standard_normal((30, 3)) * 5  # a tenth look elsewhere
    got = pnp.camera_pose(points, rays / rays[:, 2:])
    np.testing.assert_allclose(got, T, atol=1e-7)  # seen 2e-9


@needs_goldens
def test_camera_pose_agrees_with_the_reference_as_far_as_its_noise(golden):
    points, mask = golden["pnp/pts3d"].astype(np.float64), golden["pnp/msk"]
    height, width = mask.shape
    rays = geometry.pixel_rays(
        np.array([[50.0, 0, width / 2], [0, 50, height / 2], [0, 0, 1]]), height, width
    )
    got = geometry.inverse(pnp.camera_pose(points[mask], rays[mask]))
    truth, reference = golden["pnp/true_cam2world"], golden["pnp/cam2world"]
    error, error_reference = (np.abs(T - truth).max() for T in (got, reference))
    assert error < error_reference


def test_camera_pose_says_when_there_is_none():
    rays = np.ones((9, 3))
    assert pnp.camera_pose(np.zeros((9, 3)), rays) is None
    assert pnp.camera_pose(np.full((9, 3), np.nan), rays) is None
    assert pnp.camera_pose(np.eye(3), np.eye(3)) is None


@needs_opencv
@needs_goldens
def test_pose_from_matches_is_the_references(golden):
    K = np.stack([golden["emat/K"]] * 2)
    T, mask = essential.relative_pose(golden["emat/pts0"], golden["emat/pts1"], K)
    assert mask.sum() == golden["emat/n_inliers"]
    # The same OpenCV gives the same bits (seen 0); another version may draw other samples.
    np.testing.assert_allclose(T[:3, :3], golden["emat/R"], atol=1e-6)
    np.testing.assert_allclose(T[:3, 3], golden["emat/t"], atol=1e-6)


@needs_opencv
def test_pose_from_matches_of_two_different_cameras():
    pair = tiny.plane_pair(3, size=(64, 96), holes=0.0)
    rng = np.random.default_rng(0)
    T_cam2_cam1 = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
    points = rng.uniform(-1, 1, (200, 3)) * [3000, 2000, 2500] + [0, 0, 1e4]
    pixels1 = geometry.project(pair.K[0], points)
    pixels2 = geometry.project(pair.K[1], geometry.transform(T_cam2_cam1, points))
    T, mask = essential.relative_pose(pixels1, pixels2, pair.K, 0.5)
    assert mask.all()
    np.testing.assert_allclose(T[:3, :3], T_cam2_cam1[:3, :3], atol=1e-6)
    t = T_cam2_cam1[:3, 3]
    np.testing.assert_allclose(T[:3, 3], t / np.linalg.norm(t), atol=1e-5)
    T[:3, 3] *= np.linalg.norm(t)
    np.testing.assert_allclose(
        essential.triangulate(pixels1, pixels2, pair.K, T), points, rtol=1e-3
    )
    assert essential.relative_pose(pixels1[:7], pixels2[:7], pair.K) is None


@needs_opencv
def test_maps_settle_what_matches_alone_leave_open():
    """Near-planar ground, a short baseline, perfect matches rounded to pixels of a small frame."""
    errors = {"alone": [], "maps": []}
    for seed in range(7):
        pair = make_pair(seed, "nadir", 128)
        points, pixels1, pixels2, T_cam2_cam1 = seen_by_both(pair)
        pixels2 = np.rint(pixels2)
        alone, _ = essential.relative_pose(pixels1, pixels2, pair.K)
        fit = adjust.adjust(points, np.concatenate([pixels1, pixels2], 1), pair.K)
        assert fit.agree.all()
        errors["alone"].append(poses.pose_errors(alone, T_cam2_cam1))
        errors["maps"].append(poses.pose_errors(fit.T_cam2_cam1, T_cam2_cam1))
    rotation, translation = np.median(errors["maps"], 0)
    assert rotation < 0.5 and translation < 8
    assert np.median(errors["alone"], 0)[1] > 40


def seen_by_both(pair):
    """-> true points of both views, pixels [N, 2] of both, T_cam2_cam1."""
    T_cam2_cam1 = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
    pixels1 = matching.grid_pixels(*pair.valid.shape[1:], 3)
    pixels2, seen = flow.carry(pair, pixels1.astype(np.float64))
    return geometry.pointmaps_cam1(pair), pixels1[seen], pixels2[seen], T_cam2_cam1


@pytest.mark.parametrize("trajectory", ["nadir", "oblique", "dynamic"])
def test_an_adjustment_leaves_what_agrees(trajectory):
    pair = make_pair(2, trajectory, 96)
    points, pixels1, pixels2, T_cam2_cam1 = seen_by_both(pair)
    fit = adjust.adjust(points, np.concatenate([pixels1, pixels2], 1), pair.K)
    rotation, translation = poses.pose_errors(fit.T_cam2_cam1, T_cam2_cam1)
    assert rotation < 1e-3 and translation < 0.02
    for own, true in zip(fit.points, points, strict=True):
        np.testing.assert_allclose(own, true, rtol=0, atol=1e-3 * np.abs(true).max())


def test_an_adjustment_takes_tilts_out():
    """Both maps bent, and the second moved as by a wrong pose: matches set all right."""
    pair = make_pair(2, "oblique", 96)
    points, pixels1, pixels2, T_cam2_cam1 = seen_by_both(pair)
    maps = adjust.slow_maps(geometry.pixel_rays(pair.K[0], 96, 96))
    turn = geometry.inverse(T_cam2_cam1)
    turn[:3, :3] = turn[:3, :3] @ np.diag([1, np.cos(0.05), np.cos(0.05)])
    turn[1, 2], turn[2, 1] = turn[1, 2] - np.sin(0.05), turn[2, 1] + np.sin(0.05)
    own2 = geometry.transform(T_cam2_cam1, points[1])
    bend = [np.exp(maps @ np.array(b)) for b in ([0.04, -0.03, 0, 0.01, 0], [0, 0.05, 0, 0, 0.01])]
    bent = points[0] * bend[0][..., None], geometry.transform(turn, own2 * bend[1][..., None])
    fit = adjust.adjust(bent, np.concatenate([pixels1, pixels2], 1), pair.K)
    before = _worst(bent, points), poses.pose_errors(geometry.inverse(turn), T_cam2_cam1)
    after = _worst(fit.points, points), poses.pose_errors(fit.T_cam2_cam1, T_cam2_cam1)
    print(before, after)
    assert after[0] < before[0] / 4 and after[1][0] < before[1][0] / 4


def _worst(points, true):
    """Median distance after one scale, as a fraction of the depth: the worse of two views."""
    scale = np.median(true[0][..., 2]) / np.median(points[0][..., 2])
    off = [np.linalg.norm(scale * p - t, axis=-1) for p, t in zip(points, true, strict=True)]
    return max(float(np.nanmedian(o)) for o in off) / np.median(true[0][..., 2])


def test_an_adjustment_bears_wrong_matches():
    pair = make_pair(1, "oblique", 128)
    rng = np.random.default_rng(0)
    points, pixels1, pixels2, T_cam2_cam1 = seen_by_both(pair)
    pixels2 = pixels2 + rng.normal(0, 1, pixels2.shape)
    wrong = rng.uniform(size=len(pixels2)) < 0.6
    pixels2[wrong] = rng.uniform(0, 127, (wrong.sum(), 2))
    matches = np.concatenate([pixels1, pixels2], 1)
    fit = adjust.adjust(points, matches, pair.K)
    rotation, translation = poses.pose_errors(fit.T_cam2_cam1, T_cam2_cam1)
    assert rotation < 1 and translation < 5
    assert fit.agree[wrong].mean() < 0.1 and fit.agree[~wrong].mean() > 0.8
    assert adjust.adjust(points, matches[:7], pair.K) is None
    assert adjust.adjust(points * np.nan, matches, pair.K) is None


def test_triangulation_says_where_there_is_no_point():
    K = np.stack([np.diag([50.0, 50, 1])] * 2)
    T = np.eye(4)
    T[0, 3] = -1  # camera 2 stands to the right
    got = essential.triangulate(
        np.array([[0, 0], [0, 0], [0, 0]]), np.array([[-10, 0], [10, 0], [0, 0]]), K, T
    )
    np.testing.assert_allclose(got[0], [0, 0, 5], atol=1e-9)
    assert np.isnan(got[1:]).all()  # behind, and at infinity


def test_missing_opencv_is_named(monkeypatch):
    monkeypatch.setattr(essential, "has_opencv", lambda: False)
    with pytest.raises(essential.InputError, match=r"need OpenCV.*\[baselines\]"):
        essential.relative_pose(np.zeros((9, 2)), np.zeros((9, 2)), np.stack([np.eye(3)] * 2))
