"""Augmentations keep the geometry, batches follow from (seed, step), matches are true."""

import dataclasses

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from lunar_distill_jax import geometry
from lunar_distill_jax.data import augment, batches
from lunar_distill_jax.errors import InputError

quick = settings(max_examples=20, deadline=None)
ARRAYS = ("image", "depth_m", "valid", "K", "T_world_cam")


def disagreement(pair, a=0, b=1):
    """Points of view a carried into view b: their z against the plane seen there, relative, [n].

    The inverse depth of a plane is affine in the pixel: known between the pixels of view b too.
    """
    v, u = np.nonzero(pair.valid[b])
    A = np.stack([u, v, np.ones_like(u)], -1).astype(np.float64)
    affine, *_ = np.linalg.lstsq(A, 1 / pair.depth_m[b][pair.valid[b]].astype(float), rcond=None)
    points = geometry.backproject(pair.depth_m[a].astype(float), pair.K[a])[pair.valid[a]]
    T_world_a, T_world_b = pair.T_world_cam[a], pair.T_world_cam[b]
    points = geometry.transform(geometry.inverse(T_world_b), geometry.transform(T_world_a, points))
    uv = geometry.project(pair.K[b], points)
    seen = 1 / (np.concatenate([uv, np.ones((len(uv), 1))], -1) @ affine)
    assert len(points) > 500
    return np.abs(seen / points[:, 2] - 1)


# Float32 depth rounds to 6e-8, which is the worst error seen.
EXACT = 3e-7


@given(st.integers(0, 50))
@quick
def test_constructed_pairs_agree(seed):
    pair = tiny.plane_pair(seed)
    assert disagreement(pair).max() < EXACT
    turned = dataclasses.replace(pair, T_world_cam=pair.T_world_cam[::-1])
    assert disagreement(turned).max() > 1e-3  # the measure sees a wrong pose


@given(st.integers(0, 50), st.integers(-4, 8), st.integers(-4, 8), st.booleans(), st.booleans())
@quick
def test_augmentations_keep_the_geometry(seed, turn1, turn2, flip, swap):
    pair = tiny.plane_pair(seed)
    if swap:
        pair = augment.swap_views(pair)
    if flip:
        pair = augment.mirror(pair)
    pair = augment.rotate_view(augment.rotate_view(pair, 0, turn1), 1, turn2)
    assert disagreement(pair, 0, 1).max() < EXACT
    assert disagreement(pair, 1, 0).max() < EXACT
    for T in pair.T_world_cam:
        np.testing.assert_allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(T[:3, :3]) == pytest.approx(1)


@given(st.integers(0, 10_000), st.sampled_from(("nadir", "oblique", "dynamic")))
@quick
def test_random_augmentation_keeps_the_geometry_and_its_input(seed, trajectory):
    pair = tiny.plane_pair(seed % 7, trajectory=trajectory)
    before = [getattr(pair, name).copy() for name in ARRAYS]
    changed = augment.augment(pair, np.random.default_rng(seed))
    assert disagreement(changed).max() < EXACT
    for name, old in zip(ARRAYS, before, strict=True):
        np.testing.assert_array_equal(getattr(pair, name), old)
        assert getattr(changed, name).dtype == old.dtype
    if trajectory != "dynamic":  # no view is turned: every row still holds what it held
        rows = np.sort(pair.depth_m, axis=2).tolist()
        assert all(view in rows for view in np.sort(changed.depth_m, axis=2).tolist())


def sideways(pair):
    """Where camera 2 lies to the right of camera 1, over the depth."""
    return geometry.relative_pose(pair.T_world_cam)[0, 3] / pair.depth_m[0].max()


def test_camera_2_of_a_nadir_pair_stays_on_its_side():
    seeds = [s for s in range(30) if abs(sideways(tiny.plane_pair(s))) > 0.03]
    assert len(seeds) > 10
    seen = {"nadir": set(), "oblique": set()}
    for kind, signs in seen.items():
        for seed in seeds:
            pair = tiny.plane_pair(seed, trajectory=kind)
            changed = augment.augment(pair, np.random.default_rng(seed))
            signs.add(np.sign(sideways(changed)) == np.sign(sideways(pair)))
    assert seen == {"nadir": {True}, "oblique": {True, False}}


def relative_roll(pair):
    R = geometry.relative_pose(pair.T_world_cam)
    return np.arctan2(R[1, 0], R[0, 0])


def test_dynamic_views_turn_apart_and_are_then_made_upright():
    pair = tiny.plane_pair(0, trajectory="dynamic")
    augmented = [augment.augment(pair, np.random.default_rng(i)) for i in range(40)]
    assert max(abs(relative_roll(p)) for p in augmented) <= np.pi / 4 + 1e-9
    turned = [augment.turn_and_swap(pair, np.random.default_rng(i)) for i in range(40)]
    rolls = [relative_roll(p) for p in turned]
    quarters = np.unique(np.rint(np.array(rolls) / (np.pi / 2)).astype(int) % 4)
    assert quarters.tolist() == [0, 1, 2, 3]


def test_rotation_moves_pixels_without_resampling():
    pair = tiny.plane_pair(3)
    turned = augment.rotate_view(pair, 1, 1)
    size = tiny.SIZE
    for name in ("image", "depth_m", "valid"):
        old, new = getattr(pair, name), getattr(turned, name)
        np.testing.assert_array_equal(new[0], old[0])
        for u, v in ((0, 0), (5, 2), (31, 31), (7, 30)):  # (u, v) goes to (v, W - 1 - u)
            np.testing.assert_array_equal(new[1, size - 1 - u, v], old[1, v, u])
    again = augment.rotate_view(turned, 1, 3)
    for name in ("image", "depth_m", "valid"):
        np.testing.assert_array_equal(getattr(again, name), getattr(pair, name))
    np.testing.assert_allclose(again.K, pair.K, atol=1e-12)
    np.testing.assert_allclose(again.T_world_cam, pair.T_world_cam, atol=1e-12)


@pytest.mark.parametrize("change", [augment.mirror, augment.swap_views])
def test_mirror_and_swap_are_their_own_inverse(change):
    pair = tiny.plane_pair(4)
    once, twice = change(pair), change(change(pair))
    assert not np.array_equal(once.image, pair.image)
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(twice, name), getattr(pair, name), atol=1e-12)
    np.testing.assert_array_equal(augment.mirror(pair).image[:, :, 0], pair.image[:, :, -1])


def test_jitter_changes_brightness_and_contrast_only():
    pair = tiny.plane_pair(1)
    same = augment.jitter(pair, np.random.default_rng(0), 0.0)
    np.testing.assert_array_equal(same.image, pair.image)
    changed = augment.jitter(pair, np.random.default_rng(0), 0.25)
    for view in range(2):
        x, y = (p.image[view].ravel().astype(float) for p in (pair, changed))
        inside = (y > 0) & (y < 255)
        slope, offset = np.polyfit(x[inside], y[inside], 1)
        assert 0.75**2 - 0.01 < slope < 1.25**2 + 0.01 and abs(slope - 1) > 1e-3
        assert np.abs(slope * x + offset - y)[inside].max() <= 0.55  # an affine map, rounded
    for name in ARRAYS[1:]:
        np.testing.assert_array_equal(getattr(changed, name), getattr(pair, name))


# The order of samples -----------------------------------------------------------------------------


@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 9))
@quick
def test_every_epoch_is_a_fresh_permutation(seed, count, batch):
    epochs = 3
    steps = -(-epochs * count // batch)
    order = np.concatenate([batches.sample_indices(seed, s, batch, count) for s in range(steps)])
    for e in range(epochs):
        assert sorted(order[e * count : (e + 1) * count]) == list(range(count))
    alone = batches.sample_indices(seed, steps - 1, batch, count)
    np.testing.assert_array_equal(alone, order[-batch:])  # steps before it do not matter
    if count > 20:
        assert not np.array_equal(order[:count], order[count : 2 * count])
        assert (
            not np.array_equal(
                order[: batch * 3],
                np.concatenate(
                    [batches.sample_indices(seed + 1, s, batch, count) for s in range(3)]
                ),
            )
            or batch < 3
        )


def take(count, **options):
    options = dict(seed=3, batch=3, augmented=True, matching=16) | options
    pairs = [tiny.plane_pair(i, trajectory="dynamic") for i in range(5)]
    stream = batches.training_batches(pairs, **options)
    return [next(stream) for _ in range(count)]


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_batches_from_step_k_are_those_of_the_unbroken_stream():
    whole, rest = take(6), take(3, start=3)
    assert all(same(a, b) for a, b in zip(whole[3:], rest, strict=True))
    assert not same(whole[0], whole[1])
    assert not same(whole[0], take(1, seed=4)[0])


def test_batch_has_the_documented_arrays():
    (batch,) = take(1)
    size = (3, tiny.SIZE, tiny.SIZE)
    for view in (1, 2):
        image, points = batch[f"image{view}"], batch[f"points{view}"]
        assert image.shape == points.shape == (*size, 3)
        assert image.dtype == points.dtype == np.float32
        assert -1 <= image.min() < -0.3 and 0.3 < image.max() <= 1
        assert batch[f"valid{view}"].shape == size and batch[f"valid{view}"].dtype == bool
        assert batch[f"pixels{view}"].shape == (3, 16, 2)
        assert batch[f"pixels{view}"].dtype == np.int32
        depth = points[batch[f"valid{view}"]][:, 2]
        assert 5 < np.median(depth) < 20  # kilometres
    assert batch["pixels_valid"].shape == (3, 16) and batch["pixels_valid"].any()
    assert not {k for k in take(1, matching=0)[0] if k.startswith("pixels")}


def test_points_of_a_batch_are_the_ground_truth_in_camera_1():
    pair = tiny.plane_pair(2)
    batch = batches.make_batch([pair], [None], augmented=False, matching=0)
    np.testing.assert_array_equal(batch["image1"][0], batches.network_image(pair.image[0]))
    z = pair.depth_m / 1000
    np.testing.assert_allclose(batch["points1"][0][..., 2], z[0], rtol=1e-6)
    points2 = batch["points2"][0].astype(float) * 1000
    back = geometry.transform(geometry.inverse(geometry.relative_pose(pair.T_world_cam)), points2)
    np.testing.assert_allclose(
        back[..., 2][pair.valid[1]], pair.depth_m[1][pair.valid[1]], rtol=1e-6
    )


def test_network_image_spans_minus_one_to_one():
    ends = batches.network_image(np.array([0, 255], np.uint8))
    assert ends.tolist() == [-1, 1] and ends.dtype == np.float32


def test_pairs_must_be_there_and_of_one_size():
    options = dict(seed=0, batch=2, augmented=False, matching=0)
    with pytest.raises(InputError, match="no pair to train on"):
        next(batches.training_batches([], **options))
    mixed = [tiny.plane_pair(0), tiny.plane_pair(1, size=(48, 48))]
    with pytest.raises(InputError, match="different sizes"):
        next(batches.training_batches(mixed, **options))
