"""The losses against numpy, values worked out by hand, and those of the original (goldens)."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lunar_distill_jax.losses import distill, features, matching, points
from lunar_distill_jax.losses.reduce import masked_mean
from lunar_distill_jax.types import Prediction

pytestmark = pytest.mark.usefixtures("strict_ranks")

GOLDENS = pathlib.Path(__file__).parents[2] / "shared" / "goldens"
needs_goldens = pytest.mark.skipif(
    not (GOLDENS / "losses.npz").is_file(), reason=f"the golden losses are absent ({GOLDENS})"
)
B, H, W = 2, 17, 20


def scene(seed=0):
    """points, targets, confidences and masks of both views: six pairs of arrays, jax float32."""
    rng = np.random.default_rng(seed)
    p = [rng.normal(size=(B, H, W, 3)) + [0, 0, 4] for _ in range(2)]
    g = [3 * (x + 0.1 * rng.normal(size=x.shape)) for x in p]
    conf = [1 + rng.exponential(size=(B, H, W)) for _ in range(2)]
    valid = [rng.uniform(size=(B, H, W)) < 0.7 for _ in range(2)]
    floats = [[jnp.asarray(x, jnp.float32) for x in pair] for pair in (p, g, conf)]
    return (*floats, [jnp.asarray(x) for x in valid])


def all_finite(tree):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


def normalised(p, valid):
    """The clouds over their joint mean distance, sample by sample, in numpy."""
    p, valid = [np.asarray(x, np.float64) for x in p], [np.asarray(x) for x in valid]
    out = [np.zeros_like(x) for x in p]
    for b in range(len(p[0])):
        inside = np.concatenate([x[b][v[b]] for x, v in zip(p, valid, strict=True)])
        scale = np.linalg.norm(inside, axis=-1).mean()
        for o, x, v in zip(out, p, valid, strict=True):
            o[b][v[b]] = x[b][v[b]] / scale
    return out


# Reductions ---------------------------------------------------------------------------------------


def test_masked_mean_by_hand():
    x, mask = jnp.array([1.0, jnp.nan, 4.0]), jnp.array([True, False, True])
    value, grad = jax.value_and_grad(masked_mean)(x, mask)
    assert value == 2.5 and grad.tolist() == [0.5, 0, 0.5]
    value, grad = jax.value_and_grad(masked_mean)(x, jnp.zeros(3, bool))
    assert value == 0 and grad.tolist() == [0, 0, 0]


def test_distance_by_hand():
    a, b = jnp.array([[3.0, 4, 0], [1, 1, 1]]), jnp.array([[0.0, 0, 0], [1, 1, 1]])
    assert points.distance(a, b).tolist() == [5, 0]
    grad = jax.grad(lambda a: points.distance(a, b).sum())(a)
    np.testing.assert_allclose(grad, [[0.6, 0.8, 0], [0, 0, 0]], rtol=1e-6)


# Points -------------------------------------------------------------------------------------------


def test_normalise_is_the_mean_distance_over_both_views():
    p, _, _, valid = scene()
    for ours, ref in zip(points.normalise(*p, *valid), normalised(p, valid), strict=True):
        np.testing.assert_allclose(ours, ref, atol=2e-6)
    # By hand: lengths 5 and 1, mean 3.
    one, two = jnp.zeros((1, 1, 1, 3)).at[..., 0].set(5.0), jnp.ones((1, 1, 1, 3)) / 3**0.5
    mask = jnp.ones((1, 1, 1), bool)
    a, b = points.normalise(one, two, mask, mask)
    np.testing.assert_allclose(a[0, 0, 0], [5 / 3, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(b[0, 0, 0], [3**-1.5] * 3, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_normalised_distance_does_not_see_the_scale(scale):
    p, g, _, valid = scene()

    def error(p):
        a, b = points.normalise(*p, *valid), points.normalise(*g, *valid)
        return sum(
            masked_mean(points.distance(x, y), v) for x, y, v in zip(a, b, valid, strict=True)
        )

    np.testing.assert_allclose(error([scale * x for x in p]), error(p), rtol=1e-5)
    # So its gradient has no part along the points themselves (Euler's theorem).
    grads = jax.grad(error)(p)
    along = sum((x * y).sum() for x, y in zip(grads, p, strict=True))
    length = sum(jnp.abs(x * y).sum() for x, y in zip(grads, p, strict=True))
    assert abs(along) < 1e-5 * length


def test_confidence_weighted_is_equation_4():
    p, g, conf, valid = scene()
    error = points.distance(p[0], g[0])
    ours = points.confidence_weighted(error, conf[0], valid[0], alpha=0.3)
    e, c = (np.asarray(x)[np.asarray(valid[0])].astype(np.float64) for x in (error, conf[0]))
    np.testing.assert_allclose(ours, (e * c - 0.3 * np.log(c)).mean(), rtol=1e-6)
    # The best confidence for an error e is alpha / e.
    best = jax.grad(lambda c: points.confidence_weighted(0.1 * jnp.ones((1, 1, 1)), c, c > 0))
    np.testing.assert_allclose(best(2 * jnp.ones((1, 1, 1))), 0, atol=1e-7)


def test_gradient_difference_is_a_mean_of_finite_differences():
    p, g, _, valid = scene()
    spans = (1, 2)
    ours = points.gradient_difference(p[0], g[0], valid[0], stride=3, spans=spans)
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
    shifted = points.gradient_difference(p[0] + shift, p[0], valid[0])
    assert shifted < 2e-6  # rounding of p + shift, nothing else
    assert points.gradient_difference(1.1 * p[0], p[0], valid[0]) > 0.05


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
    ours = points.relief_difference(p[0], g[0], valid[0])
    np.testing.assert_allclose(ours, np.concatenate(lengths).mean(), rtol=3e-6)
    # What varies slowly is not relief; a ripple is.
    everywhere = jnp.ones((B, H, W), bool)
    slow = jnp.asarray((A @ np.arange(18).reshape(6, 3)).reshape(1, H, W, 3), jnp.float32)
    assert points.relief_difference(p[0] + slow, p[0], everywhere) < 1e-4
    ripple = jnp.asarray(np.sin(9 * x)[None, ..., None] * [0, 0, 1.0], jnp.float32)
    assert points.relief_difference(p[0] + ripple, p[0], everywhere) > 0.4


# Features and matching ----------------------------------------------------------------------------


def test_cosine_margin_leaves_aligned_tokens_alone():
    angle = np.deg2rad([0.0, 20, 60, 120])  # cosines 1, 0.94, 0.5, -0.5
    student = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], -1)[None] * 3, jnp.float32)
    teacher = jnp.tile(jnp.array([2.0, 0]), (1, 4, 1))
    loss = features.cosine_margin
    np.testing.assert_allclose(loss(student, teacher, margin=0.9), (0.5 + 1.5) / 2, rtol=1e-6)
    np.testing.assert_allclose(loss(student, teacher, margin=0.2), 1.5, rtol=1e-6)
    everything = (0 + 1 - np.cos(angle[1]) + 0.5 + 1.5) / 4
    np.testing.assert_allclose(loss(student, teacher, margin=1.0), everything, rtol=1e-6)
    value, grad = jax.value_and_grad(loss)(student, teacher, margin=-0.9)
    assert value == 0 and not grad.any()
    grad = jax.grad(loss)(student, teacher, margin=0.9)
    assert not grad[0, :2].any() and grad[0, 2:].any(1).all()
    assert not jax.grad(loss, argnums=1)(student, teacher).any()  # the teacher is not taught
    assert all_finite(jax.grad(loss)(jnp.zeros((1, 4, 2)), teacher))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pixel_list(rng, count):
    return np.stack([rng.integers(0, W, (B, count)), rng.integers(0, H, (B, count))], -1)


def test_info_nce_is_cross_entropy_both_ways():
    rng = np.random.default_rng(0)
    desc = [unit(rng.normal(size=(B, H, W, 6))).astype(np.float32) for _ in range(2)]
    pixels = [pixel_list(rng, 9) for _ in range(2)]
    valid = rng.uniform(size=(B, 9)) < 0.6
    ours = matching.info_nce(*map(jnp.asarray, desc), *map(jnp.asarray, pixels), valid)
    losses = []
    for b, i in np.argwhere(valid):
        a, c = (
            d[b, p[b, :, 1], p[b, :, 0]].astype(np.float64)
            for d, p in zip(desc, pixels, strict=True)
        )
        e = np.exp(a @ c.T / 0.05)
        losses.append(-np.log(e[i, i] / e[i].sum()) - np.log(e[i, i] / e[:, i].sum()))
    np.testing.assert_allclose(ours, np.mean(losses), rtol=3e-6)


def test_info_nce_bounds():
    one_hot = jnp.asarray(np.eye(H * W).reshape(1, H, W, H * W), jnp.float32)
    pixels = jnp.asarray(np.stack([np.arange(8), np.arange(8)], -1)[None])
    valid = jnp.ones((1, 8), bool)
    found = matching.info_nce(one_hot, one_hot, pixels, pixels, valid)
    np.testing.assert_allclose(found, 2 * np.log1p(7 * np.exp(-20)), atol=1e-6)  # its minimum
    clueless = jnp.ones_like(one_hot) / (H * W) ** 0.5
    blind = matching.info_nce(clueless, clueless, pixels, pixels, valid)
    np.testing.assert_allclose(blind, 2 * np.log(8), rtol=1e-5)
    wrong = matching.info_nce(one_hot, one_hot, pixels, pixels[:, ::-1], valid)
    np.testing.assert_allclose(wrong, 2 * 20, rtol=1e-4)


# The objective ------------------------------------------------------------------------------------

OFF = dict.fromkeys(distill.TERMS, 0.0)


def prediction(p, conf, desc):
    return Prediction(p, conf, desc, conf)


def objective_inputs(seed=0):
    rng = np.random.default_rng(seed)
    p, g, conf, valid = scene(seed)
    desc = [jnp.asarray(unit(rng.normal(size=(B, H, W, 6))), jnp.float32) for _ in range(2)]
    tokens = [jnp.asarray(rng.normal(size=(B, 4, 8)), jnp.float32) for _ in range(4)]
    batch = {
        "pixels1": jnp.asarray(pixel_list(rng, 9)),
        "pixels2": jnp.asarray(pixel_list(rng, 9)),
        "pixels_valid": jnp.asarray(rng.uniform(size=(B, 9)) < 0.6),
    }
    return p, g, conf, valid, desc, tokens, batch


def objective(weights, inputs):
    p, g, conf, valid, desc, tokens, batch = inputs
    views = [prediction(*x) for x in zip(p, conf, desc, strict=True)]
    targets = distill.Targets(*g, *valid, *tokens[2:])
    return distill.objective(*views, tokens[:2], targets, batch, {**OFF, **weights})


def test_objective_is_the_weighted_sum_of_its_terms():
    inputs = objective_inputs()
    weights = dict(points=1.0, features=0.3, gradient=3.0, relief=10.0, matching=0.05)
    loss, terms = objective(weights, inputs)
    assert set(terms) == set(distill.TERMS)
    np.testing.assert_allclose(loss, sum(weights[k] * terms[k] for k in terms), rtol=1e-6)
    p, g, conf, valid, _, tokens, _ = inputs
    n, m = normalised(p, valid), normalised(g, valid)
    expected = 0
    for a, b, c, v in zip(n, m, conf, valid, strict=True):
        c, v = np.asarray(c, np.float64), np.asarray(v)
        expected += (np.linalg.norm(a - b, axis=-1) * c - 0.2 * np.log(c))[v].mean()
    np.testing.assert_allclose(terms["points"], expected, rtol=3e-6)
    both = [features.cosine_margin(tokens[i], tokens[i + 2]) for i in range(2)]
    np.testing.assert_allclose(terms["features"], sum(both) / 2, rtol=1e-6)


@pytest.mark.parametrize("term", distill.TERMS)
def test_a_weight_of_0_leaves_the_term_out(term):
    weights = dict.fromkeys(distill.TERMS, 1.0) | {term: 0.0}
    p, g, conf, valid, desc, tokens, batch = objective_inputs()
    if term == "matching":
        batch = {}
    if term == "features":
        tokens = [None] * 4
    _, terms = objective(weights, (p, g, conf, valid, desc, tokens, batch))
    assert set(terms) == set(distill.TERMS) - {term}


def test_a_nan_prediction_is_seen():
    p, g, conf, valid, *rest = objective_inputs()
    row, column = np.argwhere(valid[0][0])[0]
    p[0] = p[0].at[0, row, column, 2].set(jnp.nan)
    for term in ("points", "gradient", "relief"):
        assert not np.isfinite(objective({term: 1.0}, (p, g, conf, valid, *rest))[0]), term


@functools.partial(jax.jit, static_argnums=0)
def value_and_grad_under_masks(index, fill):
    """With `fill` under the masks of the points (0), targets (1) or confidences (2)."""
    p, g, conf, valid, *rest = objective_inputs()
    arrays = [p, g, conf]
    arrays[index] = [
        jnp.where(v[..., None] if x.ndim == 4 else v, x, fill)
        for x, v in zip(arrays[index], valid, strict=True)
    ]
    weights = {"points": 1.0, "gradient": 3.0, "relief": 10.0}

    def loss(p, conf):
        return objective(weights, (p, arrays[1], conf, valid, *rest))[0]

    return jax.value_and_grad(loss, argnums=(0, 1))(arrays[0], arrays[2])


@pytest.mark.parametrize("index", [0, 1, 2], ids=["points", "targets", "conf"])
def test_what_lies_under_the_mask_changes_nothing(index):
    clean = value_and_grad_under_masks(index, 1.0)
    for garbage in (np.nan, np.inf, 1e30):
        dirty = value_and_grad_under_masks(index, garbage)
        assert all_finite(dirty)
        for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
            np.testing.assert_array_equal(a, b)


def test_empty_masks_give_no_loss_and_no_gradient():
    p, g, conf, valid, desc, tokens, batch = objective_inputs()
    empty = [jnp.zeros_like(v) for v in valid]
    batch = {**batch, "pixels_valid": jnp.zeros_like(batch["pixels_valid"])}
    weights = {"points": 1.0, "gradient": 3.0, "relief": 10.0, "matching": 0.05}

    def fn(p, conf, desc):
        return objective(weights, (p, g, conf, empty, desc, tokens, batch))[0]

    loss, grads = jax.value_and_grad(fn, argnums=(0, 1, 2))(p, conf, desc)
    assert loss == 0
    for grad in jax.tree.leaves(grads):
        assert not np.asarray(grad).any()  # nan is truthy


# Goldens of the original --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def goldens():
    with np.load(GOLDENS / "losses.npz") as file:
        return dict(file), json.loads((GOLDENS / "losses.json").read_text())


def golden_points(values):
    """Predicted and true points of both views in camera 1, confidences, masks."""
    g = []
    to_cam1 = np.linalg.inv(values["in/camera_pose_1"].astype(np.float64))
    for view in (1, 2):
        x = values[f"in/gt_pts3d_{view}"].astype(np.float64)
        x = np.einsum("bij,bhwj->bhwi", to_cam1[:, :3, :3], x) + to_cam1[:, None, None, :3, 3]
        g.append(jnp.asarray(x, jnp.float32))
    p = [jnp.asarray(values[k]) for k in ("in/pred_pts3d_1", "in/pred_pts3d_in_other_view_2")]
    conf = [jnp.asarray(values[f"in/pred_conf_{view}"]) for view in (1, 2)]
    valid = [jnp.asarray(values[f"in/valid_mask_{view}"]) for view in (1, 2)]
    return p, g, conf, valid


def near(ours, golden, error):
    """Errors seen, relative to the largest number: values 1.4e-7, gradients 2.5e-6."""
    golden = np.asarray(golden)
    assert np.abs(np.asarray(ours) - golden).max() <= error * np.abs(golden).max()


@needs_goldens
@pytest.mark.parametrize(
    ("run", "alpha"),
    [("D_Regr3D_avg", None), ("Regr3D_Qavg_dis_nonemetric", None), ("D_ConfLoss_Regr3D", 0.2)],
)
def test_points_loss_is_the_original_s(goldens, run, alpha):
    values, _ = goldens
    p, g, conf, valid = golden_points(values)

    def loss(p, conf):
        a, b = points.normalise(*p, *valid), points.normalise(*g, *valid)
        views = zip(a, b, conf, valid, strict=True)
        if alpha is None:
            return sum(masked_mean(points.distance(x, y), v) for x, y, _, v in views)
        return sum(
            points.confidence_weighted(points.distance(x, y), c, v, alpha=alpha)
            for x, y, c, v in views
        )

    value, (grad_p, grad_conf) = jax.value_and_grad(loss, argnums=(0, 1))(p, conf)
    near(value, values[f"{run}/value"], 1e-6)
    near(grad_p[0], values[f"{run}/grad_pred_pts3d_1"], 1e-5)
    near(grad_p[1], values[f"{run}/grad_pred_pts3d_in_other_view_2"], 1e-5)
    if alpha is not None:
        for view in (0, 1):
            near(grad_conf[view], values[f"{run}/grad_pred_conf_{view + 1}"], 1e-5)


@needs_goldens
def test_matching_loss_is_the_original_s(goldens):
    values, _ = goldens
    desc = [jnp.asarray(values[f"in/pred_desc_{view}"]) for view in (1, 2)]
    rest = [jnp.asarray(values[k]) for k in ("in/corres_1", "in/corres_2", "in/valid_corres")]
    value, grads = jax.value_and_grad(matching.info_nce, argnums=(0, 1))(*desc, *rest)
    near(value, values["Matching_proper/value"], 1e-6)
    for view in (0, 1):
        near(grads[view], values[f"Matching_proper/grad_pred_desc_{view + 1}"], 1e-5)


@needs_goldens
@pytest.mark.parametrize(
    "run",
    ["proj_a0.9", "proj_margin", "proj_a1", "same_dim", "all_aligned"],
)
def test_feature_loss_is_the_original_s(goldens, run):
    values, about = goldens
    run = f"feat_cosmargin_{run}"
    student, teacher = (
        jnp.asarray(values[f"{run}/in_{k}"]).transpose(0, 2, 3, 1).reshape(2, 48, -1)
        for k in ("f_s", "f_t")
    )
    W = jnp.asarray(values[f"{run}/in_W"].T) if f"{run}/in_W" in values else jnp.eye(10)

    def loss(student, W):
        return features.cosine_margin(student @ W, teacher, margin=about[run]["alpha"])

    value, (grad, grad_W) = jax.value_and_grad(loss, argnums=(0, 1))(student, W)
    near(value, values[f"{run}/value"], 1e-6)
    near(grad.reshape(2, 6, 8, -1).transpose(0, 3, 1, 2), values[f"{run}/grad_f_s"], 1e-5)
    if f"{run}/grad_W" in values:
        near(grad_W.T, values[f"{run}/grad_W"], 1e-5)
