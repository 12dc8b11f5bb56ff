"""Pairs rendered ahead: what comes out of the files is what the Moon shows."""

import numpy as np
import pytest

from lunar_distill_jax.data import rendered
from lunar_distill_jax.data.synthetic import SyntheticPairs
from lunar_distill_jax.moon.pairs import make_lightings


@pytest.fixture(scope="module")
def rendering():
    return rendered.Rendering(1_000_000, 3, 32, cameras=2, trajectories=("nadir", "dynamic"))


def test_pairs_are_those_of_the_moon_to_the_depths_last_step(rendering, tmp_path):
    pairs = rendered.RenderedPairs(tmp_path, rendering)
    want = [
        pair
        for terrain, kind in enumerate(("nadir", "dynamic", "nadir"))
        for pair in make_lightings(1_000_000 + terrain, kind, 32, (0, 1, 2), geometries=2)
    ]
    geometries = list(dict.fromkeys(p.geometry for p in want))
    assert len(pairs) == 6 * len(geometries)
    for i, geometry in enumerate(geometries):
        same = [p for p in want if p.geometry == geometry]
        for j, (one, two) in enumerate(rendered.LIGHTINGS):
            got = pairs[6 * i + j]
            assert (got.geometry, got.trajectory) == (geometry, same[0].trajectory)
            np.testing.assert_array_equal(got.image[0], same[one].image[0])
            np.testing.assert_array_equal(got.image[1], same[two].image[1])
            np.testing.assert_array_equal(got.valid, same[0].valid)
            np.testing.assert_array_equal(got.T_world_cam, same[0].T_world_cam)
            np.testing.assert_array_equal(got.K, same[0].K)
            step = np.ptp(same[0].depth_m[same[0].valid]) / rendered.DEPTH_STEPS
            assert np.abs(got.depth_m - same[0].depth_m).max() <= step


def test_a_lost_file_is_rendered_again_with_the_same_bytes(rendering, tmp_path):
    rendered.RenderedPairs(tmp_path, rendering)
    (file,) = tmp_path.glob("*.npz")
    before = {k: v.copy() for k, v in np.load(file).items()}
    file.unlink()
    rendered.RenderedPairs(tmp_path, rendering)
    for key, value in np.load(file).items():
        np.testing.assert_array_equal(value, before[key])


def test_crossed_pairs_share_all_but_the_light():
    same = SyntheticPairs(3, 2, 32, suns=(0, 1, 2))
    crossed = SyntheticPairs(3, 2, 32, crossed=True)
    assert len(crossed) == 2
    for geometry in range(2):
        pair = crossed[geometry]
        one, two = (same[3 * geometry + (geometry + k) % 3] for k in range(2))
        np.testing.assert_array_equal(pair.image[0], one.image[0])
        np.testing.assert_array_equal(pair.image[1], two.image[1])
        np.testing.assert_array_equal(pair.depth_m, one.depth_m)
        assert pair.geometry == one.geometry and pair.name.endswith(two.name[-5:])
