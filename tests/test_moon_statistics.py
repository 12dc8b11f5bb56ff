"""The measures by which real and synthetic frames are compared, on images whose answer is known."""

import dataclasses

import numpy as np
import pytest
import tiny

from lunar_distill_jax import geometry
from lunar_distill_jax.moon import likeness, statistics

RNG = np.random.default_rng


def power_law(exponent, n=256, seed=0):
    """Noise [n, n] with a radial power spectrum of k^exponent."""
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None])
    k[0, 0] = 1
    noise = np.fft.rfft2(RNG(seed).normal(size=(n, n))) * k ** (exponent / 2)
    field = np.fft.irfft2(noise, (n, n))
    return field / field.std()


# Seen: off by 0.04 at most. A Hann window cannot follow more than about k^-6.
@pytest.mark.parametrize("exponent", (-2.0, -3.0, -4.8))
def test_spectrum_slope_finds_the_exponent(exponent):
    ramp = np.add.outer(np.arange(256), 2 * np.arange(256)) * 0.01  # a plane is no relief
    slopes = [
        statistics.spectrum_slope(power_law(exponent, seed=s) + ramp, 0.02, 0.3) for s in range(3)
    ]
    assert np.mean(slopes) == pytest.approx(exponent, abs=0.1)


def test_image_statistics_of_a_ramp_and_of_noise():
    ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    found = statistics.image_statistics(ramp)
    assert found["mean"] == pytest.approx(127.5) and found["black %"] == pytest.approx(
        100 * 3 / 256
    )
    assert found["gradient p50"] == found["gradient p99"] == 1
    noise = np.clip(RNG(0).normal(120, 10, (256, 256)), 0, 255).astype(np.uint8)
    found = statistics.image_statistics(noise)
    assert found["sd"] == pytest.approx(10, rel=0.02)
    assert found["kurtosis"] == pytest.approx(3, abs=0.1)  # a difference of Gaussians is one
    # Of 10 / 120, a window of sigma 3 keeps all but the variance of its own mean.
    assert found["local contrast"] == pytest.approx(10 / 120, rel=0.03)
    assert found["spectrum high"] == pytest.approx(0, abs=0.1)


def test_terrain_statistics_of_a_tilted_wave():
    cell, n = 100.0, 200
    y, x = np.mgrid[:n, :n] * cell
    plane = 0.1 * x
    assert statistics.rms_slope_deg(plane, cell, 250) == pytest.approx(
        np.rad2deg(np.arctan(0.1 / np.sqrt(2))),
        rel=1e-6,  # both axes count, one of them is level
    )
    found = statistics.terrain_statistics(plane, cell)
    assert found["slope p50"] == pytest.approx(5.71, abs=0.01)
    assert found["relief m"] == pytest.approx(0.98 * np.ptp(plane), rel=0.02)


def test_height_patch_finds_the_ground():
    """A plane seen by a camera lies on a patch of smooth heights, with the camera's scale."""
    pair = tiny.plane_pair(2, holes=0, size=(64, 64))
    heights, cell = statistics.height_patch(pair, 0, 1000.0)
    assert heights.shape[0] == heights.shape[1] >= 8 and np.isfinite(heights).all()
    points = geometry.transform(pair.T_world_cam[0], geometry.backproject(*first(pair)))
    radius = np.linalg.norm(points, axis=-1) - 1737.4e3
    assert radius.min() - 1 <= heights.min() <= heights.max() <= radius.max() + 1


def first(pair):
    return pair.depth_m[0], pair.K[0]


def test_flight_statistics_of_cameras_placed_by_hand():
    """Two cameras 1 km apart, 10 km over a flat pole; the second rolled by 30, tilted by 20."""
    R = 1737.4e3
    down = np.diag([1.0, -1.0, -1.0])
    roll, tilt = np.deg2rad([30, 20])
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    lean = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[0, :3, :3], poses[1, :3, :3] = down, down @ lean @ turn
    poses[0, :3, 3], poses[1, :3, 3] = (0, 0, R + 1e4), (1000, 0, R + 1e4)
    base = tiny.plane_pair(0, holes=0)
    pair = dataclasses.replace(
        base,
        T_world_cam=poses,
        depth_m=np.full_like(base.depth_m, 1e4),
        valid=np.ones_like(base.valid),
    )
    found = statistics.flight_statistics(pair)
    assert found["altitude km"] == pytest.approx(10, abs=0.01)
    assert found["B/H"] == pytest.approx(0.1, rel=0.05)
    assert found["off-nadir"] == pytest.approx(0, abs=0.01)
    assert found["off-nadir 2"] == pytest.approx(20, abs=0.05)
    assert found["roll"] == pytest.approx(30, abs=0.01)
    cosine = (np.trace(lean @ turn) - 1) / 2
    assert found["rotation"] == pytest.approx(np.rad2deg(np.arccos(cosine)), abs=0.01)


def test_distance_counts_standard_deviations():
    real = RNG(0).normal(5, 2, 4000)
    assert likeness.distance(real, real[::-1]) == 0
    assert likeness.distance(real, real + 1) == pytest.approx(1 / real.std())
    assert likeness.distance(np.zeros(3), np.ones(3)) > 1e6  # a constant is nowhere near another


def test_auc_by_hand():
    label = np.array([1, 1, 0, 0])
    assert likeness.auc(np.array([3.0, 2, 1, 0]), label) == 1
    assert likeness.auc(np.array([3.0, 1, 2, 0]), label) == 0.75
    assert likeness.auc(np.zeros(4), label) == 0.5


def test_classifiers_find_a_difference_only_where_there_is_one():
    rng = RNG(1)
    real, fold = np.arange(600) < 200, ["abc"[i % 3] for i in range(600)]
    rows = rng.normal(size=(600, 5))
    for found in likeness.two_sample(rows, real, fold).values():
        assert 0.35 < found < 0.65
    rows[real, 2] += 2  # Phi(2 / sqrt 2) = 0.92
    for found in likeness.two_sample(rows, real, fold).values():
        assert 0.85 < found < 0.98


def test_texture_tells_grains_apart():
    """Patches of one brightness and contrast, of two grains."""
    rng = RNG(2)
    rough = rng.normal(size=(240, 16, 16))
    smooth = (rough + np.roll(rough, 1, 1) + np.roll(rough, 1, 2)) / np.sqrt(3)
    real = np.arange(240) < 120
    patches = 120 + 20 * np.where(real[:, None, None], rough, smooth)
    out = np.arange(240) % 4 == 0
    for rows, least, most in ((patches, 0.95, 1.0), (120 + 20 * rough, 0.25, 0.75)):
        seen = likeness.texture(rows, filters=8)
        score = likeness.logistic_scores(seen[~out], real[~out].astype(int), seen[out])
        assert least <= likeness.auc(score, real[out].astype(int)) <= most
