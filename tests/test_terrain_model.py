"""Terrain models from points: heights, planes of windows, and depths freed from HALF's steps."""

import numpy as np
import pytest
import waves

from lunar_distill_jax import geometry
from lunar_distill_jax.evaluate import metrics, points, terrain
from lunar_distill_jax.twoview import dem


def sloped(slope_deg, azimuth_deg=30.0, cell=50.0, shape=(24, 30)):
    y, x = np.indices(shape) * cell
    rise = np.tan(np.radians(slope_deg))
    turn = np.radians(azimuth_deg)
    return 900 + rise * (x * np.cos(turn) + y * np.sin(turn))


@pytest.mark.parametrize("slope", [0.0, 3.0, 12.0, 40.0])
def test_windows_on_a_plane_are_exact_with_holes(slope):
    height = sloped(slope)
    height[np.random.default_rng(0).random(height.shape) < 0.2] = np.nan
    fit = dem.windows(height, 50.0)
    known = np.isfinite(fit.slope_deg)
    assert known[3:-3, 3:-3].mean() > 0.7 and not known[~np.isfinite(height)].any()
    np.testing.assert_allclose(fit.slope_deg[known], slope, atol=1e-6)  # seen 8e-8
    assert fit.roughness_m[known].max() < 1e-3


def test_windows_need_half_of_their_cells():
    height = np.full((9, 9), np.nan)
    height[4] = 1.0  # a line of cells fixes no plane
    assert np.isnan(dem.windows(height, 10.0).slope_deg).all()
    assert np.isnan(dem.windows(np.full((9, 9), np.nan), 10.0).slope_deg).all()


def test_roughness_is_what_the_plane_leaves():
    rng = np.random.default_rng(1)
    bumps = rng.standard_normal((60, 60)) * 4
    rough = dem.windows(sloped(10, shape=(60, 60)) + bumps, 50.0).roughness_m
    by_hand = []
    for i, j in ((10, 10), (30, 41)):
        cut = bumps[i - 2 : i + 3, j - 2 : j + 3].ravel()
        y, x = np.indices((5, 5)).reshape(2, -1)
        A = np.stack([x, y, np.ones(25)], 1)
        by_hand.append((cut - A @ np.linalg.lstsq(A, cut, rcond=None)[0]).std())
    np.testing.assert_allclose([rough[10, 10], rough[30, 41]], by_hand, rtol=1e-9)


def test_cells_take_the_median_of_their_points():
    grid = dem.Grid(0.0, 0.0, 10.0, 2, 2)
    cloud = [(1, 1, 5.0), (2, 2, 7.0), (3, 3, 100.0), (12, 1, 1.0), (13, 2, 2.0), (99, 99, 3.0)]
    got = dem.rasterise(np.array(cloud), grid)
    np.testing.assert_array_equal(got, [[7.0, 1.5], [np.nan, np.nan]])
    np.testing.assert_array_equal(dem.fill(got), [[7.0, 1.5], [7.0, 1.5]])
    empty = dem.rasterise(np.zeros((0, 3)), grid)
    assert np.isnan(empty).all() and np.isnan(dem.fill(empty)).all()


def test_a_stray_point_does_not_ask_for_gigabytes():
    cloud = np.random.default_rng(0).uniform(0, 1e3, (500, 2))
    cloud[:20] *= 1e5
    grid = dem.Grid.over(cloud, 1.0)
    assert max(grid.rows, grid.columns) <= dem.MOST_CELLS + 1


def test_the_local_frame_stands_on_the_moon():
    pair = waves.wavy_pair(size=32)
    points_cam1 = geometry.pointmaps_cam1(pair).reshape(-1, 3)
    frame = dem.local_frame(points_cam1, pair.T_world_cam[0])
    assert frame.radius_m == pytest.approx(waves.RADIUS_M, rel=1e-3)
    world = geometry.transform(pair.T_world_cam[0], points_cam1)
    radial = np.linalg.norm(world, axis=1)
    height = frame(points_cam1)[:, 2]
    # Heights above the sphere, not above its tangent plane, which is 45 m lower at 12.5 km.
    np.testing.assert_allclose(height - np.median(height), radial - np.median(radial), atol=1.0)
    local = dem.local_frame(points_cam1, np.eye(4))
    up = local.T_local_cam1[2, :3]
    assert local.radius_m == np.inf and up @ [0, 0, -1] > 0.9


@pytest.mark.parametrize("shortest, gain", [(900.0, 1.0), (4000.0, 2.0)])
def test_dequantised_depth_is_nearer_to_the_truth_where_the_ground_is_smooth(shortest, gain):
    exact = waves.wavy_pair(size=128, shortest=shortest)
    stored = waves.as_half(exact)
    got = dem.dequantise(stored.depth_m[0], stored.valid[0])
    step = dem.half_step(stored.depth_m[0].astype(float))
    assert (np.abs(got - stored.depth_m[0]) <= step + 1e-9).all()
    error = [np.std(z - exact.depth_m[0]) for z in (got, stored.depth_m[0])]
    assert gain * error[0] <= error[1] * 1.001  # seen: 1.00 and 2.3 times nearer
    hole = stored.valid[0].copy()
    hole[5:9, 5:20] = False
    partial = dem.dequantise(np.where(hole, stored.depth_m[0], np.inf), hole)
    assert np.isfinite(partial).all() and (partial[~hole] == 0).all()


@pytest.mark.parametrize("depth", [8200.0, 16_000.0, 16_400.0, 30_000.0, 60_000.0])
def test_half_step_is_the_rounding_of_float16(depth):
    near = np.nextafter(np.float16(depth), np.float16(np.inf))
    spacing = float(near) - float(np.float16(depth))
    assert dem.half_step(np.array(float(np.float16(depth)))) == spacing / 2


def test_hazard_rates_by_hand():
    true = np.concatenate([np.full(100, 3.0), np.full(50, 12.0)])
    rates = terrain.hazard_rates(true, true)
    assert rates["hazard_10_miss_pct"] == rates["hazard_10_false_alarm_pct"] == 0
    assert np.isnan(rates["hazard_15_miss_pct"])  # nothing is that steep
    flat = terrain.hazard_rates(np.zeros(150), true)
    assert flat["hazard_10_miss_pct"] == flat["hazard_10_miss_nominal_pct"] == 100
    # Slopes that are all 4 degrees too small order the cells as well as the truth does.
    biased = terrain.hazard_rates(true - 4, true)
    assert biased["hazard_10_miss_pct"] == 0 and biased["hazard_10_miss_nominal_pct"] == 100
    rng = np.random.default_rng(0)
    blind = terrain.hazard_rates(rng.random(15_000), np.repeat(true, 100))
    assert blind["hazard_10_miss_pct"] == pytest.approx(95, abs=1)


def test_a_tilt_is_forgiven_where_the_name_says_so():
    pair = waves.wavy_pair(size=48)
    truth = metrics.ground_truth(pair)
    ground = terrain.reference(pair, truth, points.ground_samples(truth, pair.K))
    assert ground.baseline_m == pytest.approx(10 * 3e4 / pair.K[0, 0, 0], rel=0.05)
    T = ground.frame.T_local_cam1
    local = geometry.transform(T, truth.points_cam1.reshape(-1, 3))
    local[:, 2] += 0.05 * local[:, 0] + 70
    moved = terrain.terrain_metrics(geometry.transform(geometry.inverse(T), local), ground)
    assert moved["height_rmse_m"] > 300 and moved["height_rmse_tilt_m"] < 12
