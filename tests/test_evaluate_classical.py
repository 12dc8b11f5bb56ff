"""Classical baselines: exact where their input is, honest where they fail, right on real frames."""

import dataclasses
import pathlib

import numpy as np
import pytest
import waves

from lunar_distill_jax import geometry
from lunar_distill_jax.data import stereolunar
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.evaluation import classical, colmap, ours, rectified, run
from lunar_distill_jax.evaluation.protocol import OURS
from lunar_distill_jax.twoview import essential

SAMPLES = pathlib.Path(__file__).parents[2] / "shared" / "samples" / "stereolunar"
needs_opencv = pytest.mark.skipif(not essential.has_opencv(), reason="OpenCV is not installed")
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no sample frames at {SAMPLES}")


def same(pair):
    return pair


@pytest.fixture(scope="module")
def pair():
    return waves.wavy_pair(size=112, shortest=2000.0)


def test_interpolation_is_exact_on_a_plane_and_continues_it():
    rng = np.random.default_rng(0)
    pixels = rng.uniform(20, 60, (200, 2))

    def plane(x, y):  # 1 / z of a plane is affine in the pixel
        return 1 / (1e-4 + 1e-7 * x - 2e-7 * y)

    depth, near = classical.densify(pixels, plane(*pixels.T), (80, 90))
    y, x = np.indices((80, 90))
    np.testing.assert_allclose(depth, plane(x, y), rtol=1e-9)  # far outside of the points as well
    assert near[40, 40] > near[0, 0] and 1 < near.min() and near.max() <= 2
    wrong = plane(*pixels.T)
    wrong[:10] *= 1.5  # measurements that are wrong do not tilt what lies beyond
    depth, _ = classical.densify(pixels, wrong, (80, 90))
    np.testing.assert_allclose(depth[0], plane(x, y)[0], rtol=1e-3)
    line = np.stack([np.arange(20.0), np.arange(20.0)], 1)  # no triangle at all
    assert np.isfinite(classical.densify(line, np.full(20, 5.0), (30, 30))[0]).all()


def test_pixels_change_frames_at_their_centres(pair):
    small = dataclasses.replace(pair, valid=pair.valid[:, ::2, ::2])
    corners = np.array([[-0.5, -0.5, 111.5, 111.5]])
    np.testing.assert_allclose(classical.to_frame(corners, pair, small), [[-0.5, -0.5, 55.5, 55.5]])


def test_true_matches_give_the_true_surface(pair):
    """Triangulation and interpolation from perfect matches and pose, by protocol `ours`."""
    truth = ours.prepare(pair)
    at = np.argwhere(truth.flow.seen)[::5, ::-1].astype(float)
    matches = np.concatenate([at, truth.flow.uv[truth.flow.seen][::5]], 1)
    T = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
    T[:3, 3] /= np.linalg.norm(T[:3, 3])
    seen = classical.TwoView(pair, matches, np.ones(len(matches), bool), T)
    values, _ = ours.score(classical.sparse(pair, pair, seen, matches), truth)
    assert values["point_error_median_pct"] < 0.05 and values["relief_corr"] > 0.9
    assert values["rra_deg"] < 1e-6 and values["match_error_px"] < 1e-6
    nothing = classical.sparse(pair, pair, None, matches)
    assert np.isnan(nothing.points_cam1).all() and np.isnan(nothing.T_cam2_cam1).all()


def test_rectified_rows_match(pair):
    T = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
    frames = rectified.rectify(pair.K, T, pair.valid.shape[1:])
    points = geometry.pointmaps_cam1(pair)[0].reshape(-1, 3)[::97]
    T_cam2_cam1 = T[:3, :3], T[:3, 3]
    second = points @ T_cam2_cam1[0].T + T_cam2_cam1[1]
    one, two = (
        geometry.project(frames.K, p @ R.T) for p, R in zip((points, second), frames.R, strict=True)
    )
    np.testing.assert_allclose(one[:, 1], two[:, 1], atol=1e-6)
    assert (one[:, 0] > two[:, 0]).all()  # disparities are positive
    depth = (points @ frames.R[0].T)[:, 2]
    baseline = np.linalg.norm(T[:3, 3])
    np.testing.assert_allclose(one[:, 0] - two[:, 0], frames.K[0, 0] * baseline / depth, rtol=1e-9)


def test_cameras_in_line_cannot_be_rectified(pair):
    T = np.eye(4)
    T[:3, 3] = [0.05, 0, -1]
    assert rectified.rectify(pair.K, T, (112, 112)) is None


def test_disparities_must_agree_both_ways():
    left = np.full((4, 20), 3.0)
    right = np.full((4, 20), 3.0)
    right[1] = 9.0
    right[2] = np.nan
    kept = np.isfinite(rectified.consistent(left, right, -1))
    assert kept[[0, 3]].all() and not kept[[1, 2]].any()


@needs_opencv
@pytest.mark.parametrize("make", [classical.sift_baseline, rectified.sgm_baseline])
def test_a_frame_without_texture_has_no_answer(make, pair):
    blank = dataclasses.replace(pair, image=np.full_like(pair.image, 90))
    (got,) = make(same)([blank])
    assert np.isnan(got.points_cam1).all() and np.isnan(got.T_cam2_cam1).all()
    summary = run.evaluate({"m": make(same)}, [blank], protocol=OURS).summary["m"]
    assert summary["failed_pct"] == summary["pose_failed_pct"] == 100
    assert summary["pose_auc10"] == 0 and np.isinf(summary["rra_deg"])


@needs_opencv
@needs_samples
def test_sift_on_a_real_pair_of_each_trajectory():
    """All nine pairs give medians of 0.26 and 0.79 degrees (docs/evaluation.md)."""
    seen = []
    for ref in stereolunar.find_pairs(SAMPLES)[::3]:
        full = stereolunar.load_pair(ref)
        found = classical.pose_of(full, classical.sift_matches(*full.image))
        T = geometry.inverse(geometry.relative_pose(full.T_world_cam))
        seen.append(ours.poses.pose_errors(found.T_cam2_cam1, T))
    rra, rta = np.median(seen, axis=0)
    assert rra < 0.5 and rta < 1.5  # seen 0.34 and 0.84


@pytest.mark.skipif(not colmap.has_colmap(), reason="pycolmap is not installed")
@needs_samples
def test_colmap_on_a_real_pair():
    full = stereolunar.load_pair(stereolunar.find_pairs(SAMPLES)[3])
    (got,) = colmap.colmap_baseline(same)([full])
    T = geometry.inverse(geometry.relative_pose(full.T_world_cam))
    rra, rta = ours.poses.pose_errors(got.T_cam2_cam1, T)
    assert rra < 0.2 and rta < 1.0  # seen 0.017 and 0.16
    values = ours.poses.match_metrics(got.matches, full)
    assert values["match_error_px"] < 0.3  # pixel corners are pixel centres again; seen 0.10


def test_missing_libraries_are_named(monkeypatch, pair):
    monkeypatch.setattr(colmap, "has_colmap", lambda: False)
    with pytest.raises(InputError, match=r"needs pycolmap.*\[colmap\]"):
        colmap.colmap_baseline(same)
    monkeypatch.setattr(essential, "has_opencv", lambda: False)
    with pytest.raises(InputError, match=r"need OpenCV.*\[baselines\]"):
        classical.sift_baseline(same)([pair])
