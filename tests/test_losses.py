"""Means, distances, point regression and relief, against numpy and values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from maps import B, H, W, normalised, scene

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.losses import points, relief
from lunar_distill_jax.losses.reduce import Mean, masked_median
from lunar_distill_jax.losses.scale import distance, normalise

pytestmark = pytest.mark.usefixtures("strict_ranks")

# Reductions ---------------------------------------------------------------------------------------


def masked_mean(x, mask):
    return Mean.over(x, mask).value()


def test_masked_mean_by_hand():
    x, mask = jnp.array([1.0, jnp.nan, 4.0]), jnp.array([True, False, True])
    value, grad = jax.value_and_grad(masked_mean)(x, mask)
    assert value == 2.5 and grad.tolist() == [0.5, 0, 0.5]
    value, grad = jax.value_and_grad(masked_mean)(x, jnp.zeros(3, bool))
    assert value == 0 and grad.tolist() == [0, 0, 0]


def test_means_of_parts_add_up_to_the_mean_of_the_whole():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    mask = jnp.asarray(rng.uniform(size=(6, 5)) < np.linspace(0, 1, 6)[:, None])

    def loss(x, mask):
        return Mean.over(x, mask) + 0.3 * Mean.of(x**2)

    whole = loss(x, mask)
    parts = [loss(x[i : i + 2], mask[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_allclose(
        sum(p.value(whole.count) for p in parts), whole.value(), rtol=2e-7, atol=0
    )
    assert abs(sum(p.value() for p in parts) / 3 - whole.value()) > 0.01  # masks are uneven


def test_masked_median_is_the_lower_middle():
    x = jnp.array([[5.0, jnp.nan, 1, 9, 3], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]])
    mask = jnp.array([[True, False, True, True, True], [True] * 5, [False] * 5])
    assert masked_median(x, mask).tolist() == [3, 3, 0]


def test_distance_by_hand():
    a, b = jnp.array([[3.0, 4, 0], [1, 1, 1]]), jnp.array([[0.0, 0, 0], [1, 1, 1]])
    assert distance(a, b).tolist() == [5, 0]
    grad = jax.grad(lambda a: distance(a, b).sum())(a)
    np.testing.assert_allclose(grad, [[0.6, 0.8, 0], [0, 0, 0]], rtol=1e-6)


# Points -------------------------------------------------------------------------------------------


def test_normalise_is_the_mean_distance_over_both_views():
    p, _, _, valid = scene()
    for ours, ref in zip(normalise(p, valid)[0], normalised(p, valid), strict=True):
        np.testing.assert_allclose(ours, ref, atol=2e-6)
    # By hand: lengths 5 and 1, mean 3.
    one, two = jnp.zeros((1, 1, 1, 3)).at[..., 0].set(5.0), jnp.ones((1, 1, 1, 3)) / 3**0.5
    mask = jnp.ones((1, 1, 1), bool)
    (a, b), unit = normalise((one, two), (mask, mask))
    np.testing.assert_allclose(unit, 3, rtol=1e-6)
    np.testing.assert_allclose(a[0, 0, 0], [5 / 3, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(b[0, 0, 0], [3**-1.5] * 3, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_normalised_distance_does_not_see_the_scale(scale):
    p, g, _, valid = scene()

    def error(p):
        a, b = normalise(p, valid)[0], normalise(g, valid)[0]
        return points.mean_error(tuple(map(distance, a, b)), valid).value()

    np.testing.assert_allclose(error([scale * x for x in p]), error(p), rtol=1e-5)
    # So its gradient has no part along the points themselves (Euler's theorem).
    grads = jax.grad(error)(p)
    along = sum((x * y).sum() for x, y in zip(grads, p, strict=True))
    length = sum(jnp.abs(x * y).sum() for x, y in zip(grads, p, strict=True))
    assert abs(along) < 1e-5 * length


def test_confidence_weighted_is_equation_4():
    p, g, conf, valid = scene()
    errors = tuple(map(distance, p, g))
    ours = points.confidence_weighted(errors, conf, valid, alpha=0.3).value()
    expected = 0
    for error, c, v in zip(errors, conf, valid, strict=True):
        e, c = (np.asarray(x)[np.asarray(v)].astype(np.float64) for x in (error, c))
        expected += (e * c - 0.3 * np.log(c)).mean()
    np.testing.assert_allclose(ours, expected, rtol=1e-6)

    # The best confidence for an error e is alpha / e.
    def loss(c):
        return points.confidence_weighted((0.1 * c**0,) * 2, (c, c), (c > 0,) * 2).value()

    np.testing.assert_allclose(jax.grad(loss)(2 * jnp.ones((1, 1, 1))), 0, atol=1e-7)


def test_sky_is_an_error_that_points_cannot_change():
    p, g, conf, valid = scene()
    sky = tuple(~v for v in valid)
    settings = points.PointSettings(sky=2.0)
    sides = points.align(p, g, valid, settings)
    errors, mask = points.errors(*sides, settings, sky)
    for error, m, v in zip(errors, mask, valid, strict=True):
        assert m.all() and (error[~v] == 2).all()
    with pytest.raises(InputError, match="points.sky is 2 but points.weighting is 'none'"):
        points.PointSettings(sky=2.0, weighting="none")


def test_surest_leaves_out_a_share_of_each_sample():
    _, _, conf, valid = scene()
    kept = points.surest(conf[0], valid[0], quantile=0.25)
    for c, v, k in zip(conf[0], valid[0], kept, strict=True):
        assert k.sum() == v.sum() - int(0.25 * v.sum())
        assert not (k & ~v).any() and c[k].min() > c[v & ~k].max()
    assert (points.surest(conf[0], valid[0]) == valid[0]).all()
    empty = jnp.zeros_like(valid[0])
    assert not points.surest(conf[0], empty, quantile=0.5).any()


def test_gradient_difference_is_a_mean_of_finite_differences():
    p, g, _, valid = scene()
    spans = (1, 2)
    ours = relief.gradient_difference(p[0], g[0], valid[0], stride=3, spans=spans).value()
    error = np.asarray(p[0] - g[0], np.float64)[:, ::3, ::3]
    mask = np.asarray(valid[0])[:, ::3, ::3]
    means = []
    for span in spans:
        for axis in (1, 2):
            lengths = []
            for b, i, j in np.ndindex(mask.shape):
                k, m = (i + span, j) if axis == 1 else (i, j + span)
                if k < mask.shape[1] and m < mask.shape[2] and mask[b, i, j] and mask[b, k, m]:
                    lengths.append(np.linalg.norm(error[b, k, m] - error[b, i, j]))
            means.append(np.mean(lengths))
    np.testing.assert_allclose(ours, np.mean(means), rtol=2e-6)


def test_gradient_difference_is_blind_to_a_shift_only():
    p, _, _, valid = scene()
    shift = jnp.array([1.0, -2, 3])[None, None, None]
    shifted = relief.gradient_difference(p[0] + shift, p[0], valid[0]).value()
    assert shifted < 2e-6  # rounding of p + shift, nothing else
    assert relief.gradient_difference(1.1 * p[0], p[0], valid[0]).value() > 0.05


def test_relief_difference_is_the_residual_of_a_quadratic_fit():
    p, g, _, valid = scene()
    y, x = np.meshgrid(np.linspace(-1, 1, H), np.linspace(-1, 1, W), indexing="ij")
    A = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1).reshape(-1, 6)
    lengths = []
    for b in range(B):
        mask = np.asarray(valid[0][b])
        error = np.where(mask[..., None], np.asarray(p[0][b] - g[0][b], np.float64), 0)
        error = error.reshape(-1, 3)
        rest = error - A @ np.linalg.lstsq(A, error, rcond=None)[0]
        lengths.append(np.linalg.norm(rest, axis=1)[mask.ravel()])
    ours = relief.relief_difference(p[0], g[0], valid[0]).value()
    np.testing.assert_allclose(ours, np.concatenate(lengths).mean(), rtol=3e-6)
    # What varies slowly is not relief; a ripple is.
    everywhere = jnp.ones((B, H, W), bool)
    slow = jnp.asarray((A @ np.arange(18).reshape(6, 3)).reshape(1, H, W, 3), jnp.float32)
    assert relief.relief_difference(p[0] + slow, p[0], everywhere).value() < 1e-4
    ripple = jnp.asarray(np.sin(9 * x)[None, ..., None] * [0, 0, 1.0], jnp.float32)
    assert relief.relief_difference(p[0] + ripple, p[0], everywhere).value() > 0.4


def test_sobel_difference_is_a_slope_away_from_holes():
    y, x = np.mgrid[:H, :W].astype(np.float32)
    plane = np.stack([0 * x, 0 * x, 3 * x - 2 * y], -1)[None]
    everywhere = np.ones((1, H, W), bool)
    inside = relief.inner(jnp.asarray(np.pad(everywhere[:, 2:-2, 2:-2], ((0, 0), (2, 2), (2, 2)))))
    assert inside.sum() == (H - 6) * (W - 6)
    # Sobel / 4 of a slope a is 2 a; borders repeat, so a border row sees half of it.
    slopes = relief.sobel_mean(jnp.asarray(plane[..., 2]), inside).value()
    np.testing.assert_allclose(slopes, 2 * (3 + 2), rtol=1e-6)
    # What lies in a hole changes nothing, nor do the pixels beside it.
    valid = jnp.asarray(everywhere).at[0, 5, 6].set(False)
    results = [
        relief.sobel_difference(jnp.asarray(plane).at[0, 5, 6].set(fill), plane * 0, valid)
        for fill in (0.0, np.nan)
    ]
    assert results[0].value() == results[1].value()
    assert results[0].count.tolist() == [H * W - 9] * 3
