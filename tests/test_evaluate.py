"""Metrics on constructed scenes, alignment, baselines and the runner."""

import csv
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lunar_distill_jax import geometry
from lunar_distill_jax.data import stereolunar
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.evaluation import align, baselines, metrics, poses, run
from lunar_distill_jax.types import PointMaps, StereoPair

SAMPLES = pathlib.Path(__file__).parents[2] / "shared" / "samples" / "stereolunar"
H, W = 24, 32
ERRORS = ("abs_rel", "point_error_pct", "point_error_median_pct", "point_error_p90_pct")
quick = settings(max_examples=25, deadline=None)


def rotation(axis, angle_deg):
    """Rodrigues' formula: R [3, 3]."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    A = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(angle_deg)
    return np.eye(3) + np.sin(angle) * A + (1 - np.cos(angle)) * A @ A


def pose(R, t):
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, t
    return T


def make_pair(relief=0.02, seed=0, name="p", geometry_name="g", trajectory="nadir", shape=(H, W)):
    """Two views of the plane n . X = 30 km, each depth times (1 + relief * noise)."""
    rng = np.random.default_rng(seed)
    K = np.array([[40.0, 0, shape[1] / 2 - 0.5], [0, 40.0, shape[0] / 2 - 0.5], [0, 0, 1]])
    T_cam1_cam2 = pose(rotation([0.2, 1, 0.3], 12), [5000, 800, -300])
    T_world_cam1 = pose(rotation([1, 2, 3], 70), [5e4, -3e4, -1.76e6])
    n, d = np.array([0.2, -0.1, 1.0]), 3e4
    rays = geometry.pixel_rays(K, *shape)
    planes = [
        d / (rays @ n),
        (d - n @ T_cam1_cam2[:3, 3]) / (rays @ (T_cam1_cam2[:3, :3].T @ n)),
    ]
    depth = np.stack(planes) * (1 + relief * rng.standard_normal((2, *shape)))
    return StereoPair(
        name=name,
        geometry=geometry_name,
        trajectory=trajectory,
        image=np.zeros((2, *shape, 3), np.uint8),
        depth_m=depth.astype(np.float32),
        valid=np.ones((2, *shape), bool),
        K=np.stack([K, K]),
        T_world_cam=np.stack([T_world_cam1, T_world_cam1 @ T_cam1_cam2]),
    )


def predict(pair, change=lambda points: points, conf=None):
    points = change(geometry.pointmaps_cam1(pair)).astype(np.float32)
    return PointMaps(points, np.ones(points.shape[:3], np.float32) if conf is None else conf)


def score(pair, *args, **kwargs):
    return metrics.pair_metrics(predict(pair, *args, **kwargs), metrics.ground_truth(pair))


def from_own_depths(pair, depths):
    """Point maps whose own-camera depth is `depths` [2, H, W], along the pixels' rays."""
    own = [geometry.backproject(z, K) for z, K in zip(depths, pair.K, strict=True)]
    second = geometry.transform(geometry.relative_pose(pair.T_world_cam), own[1])
    return PointMaps(np.stack([own[0], second]).astype(np.float32), np.ones((2, H, W), np.float32))


# Metrics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-4, 37.0])
def test_perfect_prediction_up_to_scale_scores_zero(scale):
    values = score(make_pair(), lambda points: points * scale)
    assert list(values) == list(metrics.METRICS)
    for name in (*ERRORS, "point_error_sim3_pct", "sim3_rotation_deg", "sim3_translation_pct"):
        assert values[name] < 2e-5, name  # float32 point maps: 6e-6 %
    assert values["relief_corr"] > 1 - 1e-9 and values["relief_corr_detrended"] > 1 - 1e-9
    assert values["conf_mean"] == 1 and values["conf_rank_corr"] == 0


@quick
@given(st.floats(-3, 3), st.integers(-10, 10), st.integers(0, 1000))
def test_metrics_do_not_depend_on_the_scale_of_a_prediction(exponent, power_of_two, seed):
    pair = make_pair(seed=seed)
    noise = 1 + 0.01 * np.random.default_rng(seed + 1).standard_normal((2, H, W, 1))
    a = score(pair, lambda points: points * noise)
    b = score(pair, lambda points: points * noise * 2.0**power_of_two)
    c = score(pair, lambda points: points * noise * 10**exponent)
    for name in metrics.METRICS:
        assert a[name] == pytest.approx(b[name], rel=1e-6, abs=1e-9), name  # rounds alike
        # A trimmed fit drops other points when a float32 rounds otherwise: 0.05604 and 0.05731
        # degrees were seen. So where roundings differ, only what no trimming decides is compared.
        if "sim3" not in name:
            assert a[name] == pytest.approx(c[name], rel=1e-3, abs=1e-5), name


def test_errors_grow_and_relief_falls_with_noise():
    pair = make_pair()
    noise = np.random.default_rng(7).standard_normal((2, H, W, 1))
    levels = [0, 0.001, 0.003, 0.01, 0.03, 0.1]
    rows = [score(pair, lambda points, s=s: points * (1 + s * noise)) for s in levels]
    for name in (*ERRORS, "point_error_sim3_pct"):
        assert (np.diff([row[name] for row in rows]) > 0).all(), name
    for name in ("relief_corr", "relief_corr_detrended"):
        assert (np.diff([row[name] for row in rows]) < 0).all(), name
    # By hand: z and distance both change by the factor 1 + 0.01 N(0, 1), whose mean size is
    # 0.01 sqrt(2 / pi) of the depth.
    assert rows[3]["abs_rel"] == pytest.approx(0.01 * np.sqrt(2 / np.pi), rel=0.05)


def test_abs_rel_uses_each_views_own_camera_and_averages_views():
    pair = make_pair()
    depths = pair.depth_m.astype(np.float64)
    tenth = np.zeros((H, W), bool)
    tenth[:, :3] = True
    depths[1, tenth] *= 1.04  # along the rays of view 2; too few to move the median scale
    values = metrics.pair_metrics(from_own_depths(pair, depths), metrics.ground_truth(pair))
    assert values["abs_rel"] == pytest.approx(0.04 * tenth.mean() / 2, rel=1e-4)
    assert values["point_error_median_pct"] < 2e-5


def test_relief_corr_ignores_the_gain_of_relief_but_not_its_sign():
    pair = make_pair()
    truth = metrics.ground_truth(pair)
    for gain, want in ((1, 1), (0.3, 1), (-0.3, -1)):
        depths = truth.plane + gain * (truth.depth - truth.plane)
        values = metrics.pair_metrics(from_own_depths(pair, depths), truth)
        assert values["relief_corr"] == pytest.approx(want, abs=2e-3)
        assert values["relief_corr_detrended"] == pytest.approx(want, abs=2e-3)


def test_only_detrending_forgives_a_tilt():
    pair = make_pair()
    truth = metrics.ground_truth(pair)
    tilt = 1 + 0.3 * (truth.rays[..., 0] - truth.rays[..., 1])
    values = metrics.pair_metrics(from_own_depths(pair, truth.depth / tilt), truth)
    assert values["relief_corr"] < 0.5 < 0.9 < values["relief_corr_detrended"]


def test_invalid_pixels_do_not_count():
    pair = make_pair()
    pair.valid[:, 3:9, 5:20] = False
    clean = score(pair, lambda points: points * 1.001 ** np.arange(W)[:, None])
    predicted = predict(pair, lambda points: points * 1.001 ** np.arange(W)[:, None])
    predicted.points_cam1[~pair.valid] = np.nan
    predicted.conf[~pair.valid] = np.inf
    assert metrics.pair_metrics(predicted, metrics.ground_truth(pair)) == clean


def test_confidence_that_knows_the_error_ranks_first():
    pair = make_pair()
    noise = 0.01 * np.random.default_rng(3).standard_normal((2, H, W))
    conf = (1 + 1 / (1 + 1e3 * np.abs(noise))).astype(np.float32)
    knows = score(pair, lambda points: points * (1 + noise[..., None]), conf)
    assert knows["conf_rank_corr"] > 0.97 and knows["conf_mean"] == pytest.approx(conf.mean())
    wrong = score(pair, lambda points: points * (1 + noise[..., None]), 3 - conf)
    assert wrong["conf_rank_corr"] == pytest.approx(-knows["conf_rank_corr"], abs=1e-6)


def test_spearman_by_hand():
    a = np.array([1.0, 2.0, 2.0, 7.0])  # ranks .5, 2, 2, 3.5 up to a constant
    assert metrics.spearman(a, a**3) == pytest.approx(1)
    assert metrics.spearman(a, np.array([4.0, 3.0, 2.0, 1.0])) == pytest.approx(-4.5 / 22.5**0.5)
    assert metrics.spearman(a, np.ones(4)) == 0


def test_unusable_predictions_are_named():
    pair = make_pair()
    truth = metrics.ground_truth(pair)
    bad = predict(pair)
    bad.points_cam1[0, 2, 3, 1] = np.nan
    with pytest.raises(ValueError, match=f"1 of {2 * H * W} predicted points are not finite"):
        metrics.pair_metrics(bad, truth)
    with pytest.raises(ValueError, match=r"have the shapes .*expected"):
        metrics.pair_metrics(PointMaps(bad.points_cam1[:, ::2], bad.conf), truth)
    pair.valid[1] = False
    with pytest.raises(InputError, match=rf"pair p have \[{H * W}, 0\] pixels of valid depth"):
        metrics.ground_truth(pair)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_degenerate_predictions_still_have_finite_scores(value):
    values = score(make_pair(), lambda points: np.full_like(points, value))
    assert np.isfinite(list(values.values())).all()
    assert abs(values["relief_corr_detrended"]) < 0.2 and values["point_error_pct"] > 20


# Alignment ----------------------------------------------------------------------------------------

angles = st.floats(0, 179)
axes = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda axis: np.linalg.norm(axis) > 0.1)
shifts = st.tuples(*[st.floats(-10, 10)] * 3)


@quick
@given(axes, angles, shifts, st.floats(-2, 2), st.integers(0, 99))
def test_a_known_similarity_is_recovered_despite_outliers(axis, angle, shift, exponent, seed):
    rng = np.random.default_rng(seed)
    source = rng.standard_normal((200, 3))
    want = align.Similarity(10**exponent, rotation(axis, angle), np.array(shift))
    scale, R, t = geometry.umeyama(source, want(source))
    assert scale == pytest.approx(want.scale)
    np.testing.assert_allclose(R, want.rotation, atol=1e-9)
    np.testing.assert_allclose(t, want.translation, atol=1e-9 * max(1, want.scale))
    moved = want(source)
    moved[:10] += 0.5 * want.scale  # 5 % of the points, all the same way
    got = align.fit_similarity(source, moved)
    np.testing.assert_allclose(got(source), want(source), atol=1e-7 * want.scale)
    assert align.rotation_angle_deg(got.rotation) == pytest.approx(angle, abs=1e-5)


def test_similarity_variant_forgives_and_reports_what_it_removed():
    pair = make_pair()
    R, t = rotation([1, 1, 0], 3), np.array([900.0, 0, -1200])
    values = score(pair, lambda points: (points - t) @ R * 5e-5)  # truth = R X / 5e-5 + t
    assert values["point_error_sim3_pct"] < 2e-5 < 1 < values["point_error_pct"]
    assert values["sim3_rotation_deg"] == pytest.approx(3, abs=1e-4)
    depth = np.median(pair.depth_m)
    assert values["sim3_translation_pct"] == pytest.approx(100 * 1500 / depth, rel=1e-4)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-3, 30, 90, 179.9999, 180])
def test_rotation_angle(angle):
    R = rotation([1, -2, 0.5], angle)
    assert align.rotation_angle_deg(R) == pytest.approx(angle, rel=1e-6, abs=1e-12)


def test_one_scale_for_both_views():
    pair = make_pair()
    values = score(pair, lambda points: points * np.array([1, 1.5])[:, None, None, None])
    assert values["point_error_pct"] > 10  # a scale per view would have hidden it


# Baselines ----------------------------------------------------------------------------------------


def test_plane_baseline_is_exact_on_a_plane_and_has_no_relief():
    pair = make_pair(relief=0)
    (predicted,) = baselines.plane_baseline([pair])
    values = metrics.pair_metrics(predicted, metrics.ground_truth(pair))
    assert values["point_error_pct"] < 2e-5 and values["abs_rel"] < 2e-7
    assert values["relief_corr"] == values["relief_corr_detrended"] == 0
    bumpy = make_pair(relief=0.02)
    (predicted,) = baselines.plane_baseline([bumpy])
    values = metrics.pair_metrics(predicted, metrics.ground_truth(bumpy))
    assert abs(values["relief_corr"]) < 0.1 and values["relief_corr_detrended"] == 0
    assert values["abs_rel"] == pytest.approx(0.02 * np.sqrt(2 / np.pi), rel=0.1)


def test_mean_baseline_is_per_trajectory_and_blind_to_scale():
    nadir, far = make_pair(seed=1), make_pair(seed=1)
    far.depth_m[:] *= 3
    far.T_world_cam[1, :3, 3] += 2 * (far.T_world_cam[1, :3, 3] - far.T_world_cam[0, :3, 3])
    oblique = make_pair(seed=2, trajectory="oblique")
    predictor = baselines.mean_baseline(baselines.trajectory_means([nadir, far, oblique]))
    asked = [nadir, oblique, make_pair(trajectory="unknown")]
    maps = predictor(asked)
    for pair, predicted in zip(asked[:2], maps, strict=False):
        assert metrics.pair_metrics(predicted, metrics.ground_truth(pair))["abs_rel"] < 2e-7
    np.testing.assert_allclose(
        maps[2].points_cam1, (2 * maps[0].points_cam1 + maps[1].points_cam1) / 3, atol=1e-6
    )


def test_baselines_that_know_nothing_say_what_they_say():
    pairs = [make_pair(seed=i, trajectory="nadir") for i in range(3)]
    means = baselines.trajectory_means(pairs)
    T = geometry.inverse(geometry.relative_pose(pairs[0].T_world_cam))
    (one,) = baselines.mean_baseline(baselines.trajectory_means(pairs[:1]))(pairs[:1])
    assert max(poses.pose_errors(one.T_cam2_cam1, T)) < 1e-3
    # Matches of the mean map by the mean pose are right where both are the pair's own.
    assert poses.match_metrics(one.matches, pairs[0])["match_within_2px"] > 50
    (still,) = baselines.identity_baseline(means)(pairs[:1])
    np.testing.assert_array_equal(still.T_cam2_cam1[:3, :3], np.eye(3))
    np.testing.assert_array_equal(still.matches[:, :2], still.matches[:, 2:])
    first, again = (baselines.random_baseline(means)(pairs[:1])[0] for _ in range(2))
    np.testing.assert_array_equal(first.matches, again.matches)
    assert poses.match_metrics(first.matches, pairs[0])["match_within_2px"] < 5


def test_mean_baseline_continues_over_pixels_no_pair_has_seen():
    pair = make_pair(relief=0)
    full = baselines.mean_baseline(baselines.trajectory_means([pair]))([pair])[0].points_cam1
    pair.valid[0, :2] = False
    pair.depth_m[0, :2] = 0
    got = baselines.mean_baseline(baselines.trajectory_means([pair]))([pair])[0].points_cam1
    ratio = np.linalg.norm(got[1]) / np.linalg.norm(full[1])
    np.testing.assert_allclose(got[0, :2], full[0, :2] * ratio, atol=0.05)


def test_mean_baseline_needs_pairs_of_one_size():
    with pytest.raises(InputError, match="got 0 training pairs"):
        baselines.trajectory_means([])
    predictor = baselines.mean_baseline(baselines.trajectory_means([make_pair()]))
    with pytest.raises(InputError, match=r"small has \[12, 16\] pixels, expected \[24, 32\]"):
        predictor([make_pair(name="small", shape=(12, 16))])


# Runs ---------------------------------------------------------------------------------------------


def test_evaluate_feeds_chunks_of_one_size_and_scores_all_models(tmp_path):
    pairs = [make_pair(seed=i, name=f"p{i}", geometry_name=f"g{i // 2}") for i in range(5)]
    pairs.append(make_pair(name="small", geometry_name="g9", shape=(12, 16)))
    asked, done = [], []

    def perfect(batch):
        asked.append([pair.name for pair in batch])
        return [predict(pair) for pair in batch]

    result = run.evaluate(
        {"perfect": perfect, "baseline_plane": baselines.plane_baseline},
        iter(pairs),
        chunk=3,
        progress=done.append,
    )
    assert asked == [["p0", "p1", "p2"], ["p3", "p4"], ["small"]] and done == [3, 2, 1]
    assert result.summary["perfect"]["geometries"] == 4 and len(result.rows) == 12
    assert result.summary["perfect"]["abs_rel"] < result.summary["baseline_plane"]["abs_rel"]
    run.write_metrics(tmp_path / "metrics.json", result)
    run.write_pairs(tmp_path / "pairs.csv", result)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert set(written) == {"perfect", "baseline_plane"}
    assert {"abs_rel", "point_error_pct", "relief_corr", "trajectory"} <= set(written["perfect"])
    with (tmp_path / "pairs.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["pair"] for line in table if line["model"] == "perfect"][-1] == "small"
    assert all(line["relief_corr"] == "1" for line in table if line["model"] == "perfect")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "pairs.csv"]


def test_evaluate_names_what_is_wrong():
    with pytest.raises(InputError, match="nothing to evaluate"):
        run.evaluate({"m": baselines.plane_baseline}, [])
    with pytest.raises(ValueError, match="m returned 0 point maps for 1 pairs"):
        run.evaluate({"m": lambda batch: []}, [make_pair()])
    nothing = PointMaps(np.full((2, H, W, 3), np.nan), np.ones((2, H, W)))
    with pytest.raises(ValueError, match="^m on p: .* not finite"):
        run.evaluate({"m": lambda batch: [nothing]}, [make_pair()])


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"the real sample frames are absent ({SAMPLES})")
def test_real_samples_perfect_plane_and_cross_type_mean():
    pairs = [stereolunar.load_pair(ref, 64) for ref in stereolunar.find_pairs(SAMPLES)]
    models = {
        "perfect": lambda batch: [predict(pair) for pair in batch],
        "baseline_plane": baselines.plane_baseline,
        "baseline_mean": baselines.mean_baseline(
            baselines.trajectory_means(p for p in pairs if p.trajectory != "dynamic")
        ),
    }
    got = run.evaluate(models, pairs).summary
    assert got["perfect"]["point_error_pct"] < 2e-5 and got["perfect"]["relief_corr"] > 1 - 1e-9
    assert got["perfect"]["geometries"] == 3 and got["perfect"]["pairs"] == 9
    plane = got["baseline_plane"]
    assert plane["abs_rel"] == pytest.approx(0.0184, abs=5e-4)
    assert abs(plane["relief_corr"]) < 0.05 and plane["relief_corr_detrended"] == 0
    # The same point maps for training: exact there, poor on the trajectory it never saw.
    mean = got["baseline_mean"]["trajectory"]
    assert mean["nadir"]["abs_rel"] < 2e-7
    assert mean["dynamic"]["abs_rel"] > 3 * plane["trajectory"]["dynamic"]["abs_rel"]
