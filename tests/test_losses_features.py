"""Matching, features and targets, against numpy and values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from maps import B, H, W, pixel_list, unit

from lunar_distill_jax.losses import features, infonce, matching
from lunar_distill_jax.losses.reciprocal import nearest, reciprocal_matches
from lunar_distill_jax.losses.reduce import Mean
from lunar_distill_jax.losses.targets import symmetrised

pytestmark = pytest.mark.usefixtures("strict_ranks")

# Features and matching ----------------------------------------------------------------------------


def test_cosine_margin_leaves_aligned_tokens_alone():
    angle = np.deg2rad([0.0, 20, 60, 120])  # cosines 1, 0.94, 0.5, -0.5
    student = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], -1)[None] * 3, jnp.float32)
    teacher = jnp.tile(jnp.array([2.0, 0]), (1, 4, 1))

    def loss(student, teacher, margin=0.9):
        return features.cosine_margin(student, teacher, margin=margin).value()

    np.testing.assert_allclose(loss(student, teacher, margin=0.9), (0.5 + 1.5) / 2, rtol=1e-6)
    np.testing.assert_allclose(loss(student, teacher, margin=0.2), 1.5, rtol=1e-6)
    everything = (0 + 1 - np.cos(angle[1]) + 0.5 + 1.5) / 4
    np.testing.assert_allclose(loss(student, teacher, margin=1.0), everything, rtol=1e-6)
    value, grad = jax.value_and_grad(loss)(student, teacher, margin=-0.9)
    assert value == 0 and not grad.any()
    grad = jax.grad(loss)(student, teacher, margin=0.9)
    assert not grad[0, :2].any() and grad[0, 2:].any(1).all()
    assert not jax.grad(loss, argnums=1)(student, teacher).any()  # the teacher is not taught
    assert np.isfinite(jax.grad(loss)(jnp.zeros((1, 4, 2)), teacher)).all()


def cross_entropies(a, b, temperature=0.05):
    e = np.exp(a.astype(np.float64) @ b.astype(np.float64).T / temperature)
    own = np.diagonal(e)
    return -np.log(own / e.sum(1)[: len(own)]) - np.log(own / e.sum(0)[: len(own)])


@pytest.mark.parametrize("kind", ["cosine", "unit"])
@pytest.mark.parametrize("block", [3, 4, 100])
def test_info_nce_is_cross_entropy_both_ways_for_any_block(block, kind):
    rng = np.random.default_rng(0)
    a, b = (unit(rng.normal(size=(9, 6))).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(
        infonce.info_nce(a, b, block=block, kind=kind), cross_entropies(a, b), rtol=3e-6
    )

    # Its gradient, which is written by hand, against that of the plain formula.
    weights = jnp.asarray(rng.uniform(size=9), jnp.float32)

    def plain(a, b):
        s = a @ b.T / 0.05
        return (weights * (-jax.nn.log_softmax(s, 1) - jax.nn.log_softmax(s, 0)).diagonal()).sum()

    def ours(a, b):
        return (weights * infonce.info_nce(a, b, block=block, kind=kind)).sum()

    for x, y in zip(jax.grad(ours, (0, 1))(a, b), jax.grad(plain, (0, 1))(a, b), strict=True):
        np.testing.assert_allclose(x, y, atol=5e-5)  # seen 2.5e-5 of 29


def test_info_nce_bounds():
    one_hot = jnp.eye(8)
    loss = infonce.info_nce
    np.testing.assert_allclose(loss(one_hot, one_hot), 2 * np.log1p(7 * np.exp(-20)), atol=1e-6)
    clueless = jnp.ones((8, 8)) / 8**0.5
    np.testing.assert_allclose(loss(clueless, clueless), 2 * np.log(8), rtol=1e-5)
    wrong = loss(one_hot, one_hot[::-1])
    np.testing.assert_allclose(wrong, 2 * 20, rtol=1e-4)
    floored = loss(one_hot, one_hot[::-1], floor=1e-8)
    np.testing.assert_allclose(floored, 2 * 8 * np.log(10), rtol=1e-5)


def test_average_precision_by_hand():
    a = jnp.eye(4)
    b = jnp.array([[1.0, 0, 0, 0], [0, 0.2, 0, 0], [0, 0.3, 0.5, 0], [0, 0.9, 0, 1.0]])
    assert infonce.average_precision(a, b, block=3).tolist() == pytest.approx([1, 1 / 3, 1, 1])


def test_groups_are_losses_of_their_own():
    rng = np.random.default_rng(1)
    desc = [jnp.asarray(unit(rng.normal(size=(B, H, W, 6))), jnp.float32) for _ in range(2)]
    pixels = [jnp.asarray(pixel_list(rng, 8)) for _ in range(2)]
    order = jnp.stack([jnp.asarray(rng.permutation(8)) for _ in range(B)])
    settings = matching.MatchingSettings(groups=2)
    ours = matching.losses(desc, pixels, settings, order)
    for i in range(B):
        a, b = (
            np.asarray(matching.gather_pixels(d, p))[i] for d, p in zip(desc, pixels, strict=True)
        )
        for group in np.asarray(order[i]).reshape(2, 4):
            # A small loss is a difference of logits of up to 20, whose last place is 1.9e-6: seen
            # 2.6e-6 with AVX-512.
            np.testing.assert_allclose(
                ours[i, group], cross_entropies(a[group], b[group]), rtol=5e-6, atol=5e-6
            )


def test_divergence_is_0_only_for_equal_similarities():
    rng = np.random.default_rng(2)
    desc = [jnp.asarray(unit(rng.normal(size=(1, H, W, 6))), jnp.float32) for _ in range(2)]
    pixels = [jnp.asarray(pixel_list(rng, 7))[:1] for _ in range(2)]
    one, two = (matching.gather_pixels(d, p) for d, p in zip(desc, pixels, strict=True))
    Q = jnp.asarray(np.linalg.qr(rng.normal(size=(6, 6)))[0], jnp.float32)  # turned alike
    same = matching.divergence(desc, (one @ Q, two @ Q), pixels, temperature=0.1, block=3)
    np.testing.assert_allclose(same.value(), 0, atol=1e-6)
    other = matching.divergence(desc, (one[:, ::-1], two), pixels, temperature=0.1, block=3)
    assert other.value() > 0.5


def test_reciprocal_matches_find_the_shift():
    rng = np.random.default_rng(3)
    one = unit(rng.normal(size=(2, 12, 16, 8)))
    two = np.roll(one, (2, 3), (1, 2))
    two[:, :6] = unit(rng.normal(size=(2, 6, 16, 8)))  # half of view 2 is something else
    matches = jax.jit(reciprocal_matches, static_argnums=3)
    pixels1, pixels2, valid = matches(
        jnp.asarray(one, jnp.float32), jnp.asarray(two, jnp.float32), jax.random.key(0), 40
    )
    found = np.asarray((np.asarray(pixels1) + [3, 2]) % [16, 12] == np.asarray(pixels2)).all(-1)
    seen = np.asarray(pixels2)[..., 1] >= 6
    assert found[valid & seen].all() and (valid & seen).sum(1).min() > 10
    for i in range(2):  # each match is found once
        kept = np.asarray(pixels1)[i][np.asarray(valid)[i]]
        assert len(np.unique(kept, axis=0)) == len(kept)
    query, desc = (
        jnp.asarray(one[0, 0], jnp.float32),
        jnp.asarray(one[0].reshape(-1, 8), jnp.float32),
    )
    assert nearest(query, desc, block=50).tolist() == list(range(16))


def test_a_valid_pair_is_kept_where_an_earlier_start_came_back_in_vain():
    rng = np.random.default_rng(0)
    desc = unit(rng.normal(size=(2, 1, 16, 16, 3)))
    count, key = 200, jax.random.key(0)
    pixels1, _, valid = reciprocal_matches(*jnp.asarray(desc, jnp.float32), key, count)
    start = np.asarray(jax.random.randint(jax.random.split(key)[0], (count,), 0, 256))
    one, two = desc.reshape(2, 256, 3)
    similar = one @ two.T
    there = similar.argmax(1)[start]
    back = similar.argmax(0)[there]
    mutual = back[similar.argmax(1)[back] == there]
    assert len(np.unique(mutual)) < len(mutual)  # some pixels are found twice
    kept = np.asarray(pixels1)[0][np.asarray(valid)[0]]
    assert sorted(kept[:, 0] + 16 * kept[:, 1]) == sorted(np.unique(mutual))


def test_a_bad_loss_is_a_quantile_of_what_is_valid():
    rng = np.random.default_rng(3)
    loss = jnp.asarray(rng.normal(size=(B, 7)), jnp.float32)
    valid = rng.uniform(size=(B, 7)) < 0.7
    for quantile in (0.1, 0.5, 1.0):
        expected = np.quantile(np.asarray(loss)[valid], quantile)
        found = matching.bad_loss(loss, jnp.asarray(valid), quantile)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_shapes_that_would_broadcast_are_refused():
    x, mask = jnp.ones((B, H, W)), jnp.ones((1, H, W), bool)
    with pytest.raises(AssertionError, match="different shapes"):
        Mean.over(x, mask)
    rng = np.random.default_rng(3)
    desc = tuple(jnp.asarray(unit(rng.normal(size=(B, H, W, 6))), jnp.float32) for _ in "12")
    conf = tuple(jnp.ones((B, H, W)) for _ in "12")
    pixels = tuple(jnp.asarray(pixel_list(rng, 8)) for _ in "12")
    settings, valid = matching.MatchingSettings(confidence="mean"), jnp.ones((B, 8), bool)
    assert matching.matching(desc, conf, pixels, valid, settings).count == B * 8
    for wrong in (
        (desc, conf, pixels, valid[:1]),
        (desc, tuple(c[:1] for c in conf), pixels, valid),
        (desc, conf, tuple(p[:, :1] for p in pixels), valid),
    ):
        with pytest.raises(AssertionError, match="shape"):
            matching.matching(*wrong, settings)


def test_a_batch_without_any_match_has_no_bad_loss():
    rng = np.random.default_rng(3)
    desc = tuple(jnp.asarray(unit(rng.normal(size=(B, H, W, 6))), jnp.float32) for _ in "12")
    conf = tuple(jnp.asarray(rng.uniform(1, 2, (B, H, W)), jnp.float32) for _ in "12")
    pixels = tuple(jnp.asarray(pixel_list(rng, 8)) for _ in "12")
    settings = matching.MatchingSettings(confidence="mean", negatives=0.9)

    def loss(desc, conf, valid):
        return matching.matching(desc, conf, pixels, valid, settings).value()

    none = jnp.zeros((B, 8), bool)
    value, gradients = jax.value_and_grad(loss, (0, 1))(desc, conf, none)
    assert value == 0 and all((g == 0).all() for g in jax.tree.leaves(gradients))
    assert loss(desc, conf, none.at[0, 0].set(True)) != 0


# Features -----------------------------------------------------------------------------------------


def test_relational_is_0_for_features_turned_alike_and_sees_two_views():
    rng = np.random.default_rng(4)
    one, two = (jnp.asarray(rng.normal(size=(B, 5, 6)), jnp.float32) for _ in range(2))
    Q = jnp.asarray(np.linalg.qr(rng.normal(size=(6, 6)))[0], jnp.float32)
    np.testing.assert_allclose(
        features.relational(one @ Q, two @ Q, one, two).value(), 0, atol=1e-5
    )
    assert features.relational(one, one, one, two).value() > 0.5


def test_in_basis_is_a_relative_error():
    rng = np.random.default_rng(5)
    teacher = jnp.asarray(rng.normal(size=(B, 5, 8)), jnp.float32)
    basis = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    assert features.in_basis(teacher @ basis, teacher, basis).value() == 0
    np.testing.assert_allclose(
        features.in_basis(1.1 * teacher @ basis, teacher, basis).value(), 0.01, rtol=1e-4
    )


# Targets ------------------------------------------------------------------------------------------


def test_symmetrised_rows_take_turns_in_their_own_camera():
    rng = np.random.default_rng(6)
    batch = {
        f"{key}{v}": rng.normal(size=(B, 2, 2, 3)) for key in ("image", "points") for v in (1, 2)
    }
    batch |= {f"pixels{v}": pixel_list(rng, 4) for v in (1, 2)}
    batch["pixels_valid"] = rng.uniform(size=(B, 4)) < 0.5
    T = np.tile(np.eye(4), (B, 1, 1))
    T[:, :3, :3] = np.linalg.qr(rng.normal(size=(B, 3, 3)))[0]
    T[:, :3, 3] = rng.normal(size=(B, 3))
    out = symmetrised(
        {k: jnp.asarray(v) for k, v in batch.items()} | {"T_cam2_cam1": jnp.asarray(T)}
    )
    for key in ("image", "pixels"):
        for v, w in ((1, 2), (2, 1)):
            np.testing.assert_array_equal(out[f"{key}{v}"][0::2], jnp.asarray(batch[f"{key}{v}"]))
            np.testing.assert_array_equal(out[f"{key}{v}"][1::2], jnp.asarray(batch[f"{key}{w}"]))
    assert (np.asarray(out["pixels_valid"]) == np.repeat(batch["pixels_valid"], 2, 0)).all()
    moved = np.einsum("bij,bhwj->bhwi", T[:, :3, :3], batch["points2"]) + T[:, None, None, :3, 3]
    np.testing.assert_allclose(out["points1"][1::2], moved, atol=1e-5)
    np.testing.assert_array_equal(out["points1"][0::2], jnp.asarray(batch["points1"]))
