"""Matches against truth by formula: all of them true, none of them hidden, negatives negative."""

import dataclasses

import numpy as np
import pytest
import spheres
import tiny

from lunar_distill_jax.data import correspondences

SEEDS = range(8)


def drawn(seed, count=1200, negatives=0.5, **options):
    pair = spheres.ball_pair(seed, **options)
    found = correspondences.draw(pair, np.random.default_rng(seed), count, negatives=negatives)
    return pair, found


@pytest.mark.parametrize("seed", SEEDS)
def test_every_match_is_the_true_one_and_seen_by_both(seed):
    pair, found = drawn(seed)
    ok = found.valid
    assert ok.sum() > 400
    uv, seen = spheres.truth(pair, seed, found.pixels1[ok])
    assert seen.all()  # no hidden point is matched
    assert np.linalg.norm(found.pixels2[ok] - uv, axis=1).max() <= 0.6
    np.testing.assert_allclose(found.exact2[ok], uv, atol=1e-3)  # float32 depth; seen 6e-5
    back, seen = spheres.truth(pair, seed, found.pixels2[ok], 1, 0)
    assert seen.all() and np.abs(back - found.pixels1[ok]).max() < 0.501
    for pixels in (found.pixels1, found.pixels2):
        assert pixels.dtype == np.int32
        assert len(np.unique(pixels[ok], axis=0)) == ok.sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_negatives_are_negative(seed):
    pair, found = drawn(seed)
    assert (~found.valid).sum() > 20
    for mine, other, a, b in (
        (found.pixels1, found.pixels2, 0, 1),
        (found.pixels2, found.pixels1, 1, 0),
    ):
        uv, seen = spheres.truth(pair, seed, mine[~found.valid], a, b)
        assert not seen.any()
        # So no listed pixel of the other view shows their ground.
        away = np.linalg.norm(uv[:, None] - other[None], axis=-1).min(1)
        hidden = ((uv > -0.5) & (uv < [63.5, 47.5])).all(1)
        assert away[~hidden].min() > 1


def test_hidden_ground_would_be_matched_without_the_test(monkeypatch):
    """The scenes do hide ground: with the test switched off, wrong matches appear."""
    monkeypatch.setattr(correspondences, "MAX_RETURN_PX", np.inf)
    monkeypatch.setattr(correspondences, "MAX_SPREAD_PX", np.inf)
    wrong = 0
    for seed in SEEDS:
        pair, found = drawn(seed)
        wrong += (~spheres.truth(pair, seed, found.pixels1[found.valid])[1]).sum()
    assert wrong > 5  # seen 19 of 4800; none in 150 000 with the test on


def test_no_match_is_missed():
    """All pixels of an open plane that fall inside the other view have a partner or a neighbour."""
    pair = tiny.plane_pair(6, holes=0)
    v, u = np.mgrid[:32, :32].reshape(2, -1)
    _, exact, matched, away = correspondences.match(pair, np.stack([u, v], 1))
    inside = ((exact >= 0) & (exact <= 31)).all(1)
    near = np.hypot(*(exact - np.rint(exact)).T) <= 0.6
    assert not matched[~inside].any() and not (matched & away).any()
    # Not all: where one view is coarser, several pixels share a partner.
    assert matched[inside & near].mean() > 0.8
    assert away[~((exact >= -1.5) & (exact <= 32.5)).all(1)].all()


def test_rows_are_filled_as_documented():
    pair, found = drawn(1, count=400, negatives=0.25)
    assert found.valid.sum() == 300
    pair, found = drawn(1, count=400, negatives=1.0)
    assert found.valid.sum() < 200  # matches fill what lonely pixels cannot
    _, found = drawn(1, count=50_000)  # more than there are pixels: rows repeat
    assert len(found.valid) == 50_000 and 0 < found.valid.mean() < 1
    same = dataclasses.replace(
        pair,
        **{
            name: np.repeat(getattr(pair, name)[:1], 2, 0)
            for name in ("depth_m", "valid", "K", "T_world_cam", "image")
        },
    )
    found = correspondences.draw(same, np.random.default_rng(0), 500)
    assert found.valid.all() and (found.pixels1 == found.pixels2).all()


def test_without_depth_or_overlap_no_row_is_valid():
    pair = spheres.ball_pair(0)
    blind = dataclasses.replace(pair, valid=np.zeros_like(pair.valid))
    apart = dataclasses.replace(pair, T_world_cam=pair.T_world_cam.copy())
    apart.T_world_cam[1, :3, 3] += [1e6, 0, 0]
    behind = dataclasses.replace(pair, T_world_cam=pair.T_world_cam.copy())
    behind.T_world_cam[1, :3, :3] = behind.T_world_cam[1, :3, :3] @ np.diag([-1, 1, -1])
    for lost in (blind, apart, behind):
        found = correspondences.draw(lost, np.random.default_rng(0), 100)
        assert not found.valid.any() and np.isnan(found.exact2).all()
        assert (found.pixels1 >= 0).all() and (found.pixels1 < [64, 48]).all()


def test_draws_follow_the_generator():
    pair = spheres.ball_pair(2)
    a, b, c = (correspondences.draw(pair, np.random.default_rng(s), 300) for s in (5, 5, 6))
    np.testing.assert_array_equal(a.pixels1, b.pixels1)
    np.testing.assert_array_equal(a.pixels2, b.pixels2)
    assert not np.array_equal(a.pixels1, c.pixels1)
