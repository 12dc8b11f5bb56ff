"""The objective: which terms are on, what they add up to, what masks keep out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from maps import B, H, W, normalised, pixel_list, scene

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.losses import distill, features, points, relief
from lunar_distill_jax.losses.correspondence import Flow
from lunar_distill_jax.losses.settings import (
    OF_THE_FLOW,
    TERMS,
    LossSettings,
    loss_settings,
    loss_weights,
)
from lunar_distill_jax.losses.targets import Targets
from lunar_distill_jax.types import Prediction

pytestmark = pytest.mark.usefixtures("strict_ranks")


# The objective ------------------------------------------------------------------------------------

ON = {term: 0.1 * (i + 1) for i, term in enumerate(TERMS)}
HOOKS = (0, 1, 2)


def objective_inputs(seed=0):
    """(points, confidences) of the student, tokens and descriptors by view; targets; extras."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    p, g, conf, valid = scene(seed)
    desc = [normal(B, H, W, 6) for _ in range(2)]
    desc = [d / jnp.linalg.norm(d, axis=-1, keepdims=True) for d in desc]
    count = (H // 4) * (W // 4)  # tokens of 4 x 4 pixels
    tokens = [
        {
            "encoder": normal(B, count, 5),
            "decoder": (normal(B, count, 3), normal(B, count, 3)),
            "cross": [(normal(B, 2, count, 3), normal(B, 2, count, 3)) for _ in range(2)],
        }
        for _ in "12"
    ]
    targets = Targets(
        points=tuple(g),
        valid=tuple(valid),
        conf=tuple(c + 0.5 for c in conf),
        tokens=tuple(normal(B, count, 8) for _ in "12"),
        decoder=tuple((normal(B, count, 7), normal(B, count, 7)) for _ in "12"),
        pixels=tuple(jnp.asarray(pixel_list(rng, 9)) for _ in "12"),
        matched=jnp.asarray(rng.uniform(size=(B, 9)) < 0.6),
        desc=tuple(normal(B, 9, 10) for _ in "12"),
        flow=tuple(
            Flow(
                jnp.asarray(rng.uniform(0, min(H, W) - 1, (B, H, W, 2)), jnp.float32),
                jnp.asarray(rng.uniform(size=(B, H, W)) < 0.9),
            )
            for _ in "12"
        ),
    )
    extras = {
        "projector": {"kernel": normal(5, 8)},
        "bases": {"0": normal(7, 3), "1": normal(7, 3)},
        "correspondence": {
            "encoder": {"kernel": normal(5, 6)},
            "decoder": {"kernel": normal(3, 6)},
            "covisible": {"kernel": normal(3, 1), "bias": normal(1)},
        },
    }
    return p, conf, desc, tokens, targets, extras


def objective(weights, inputs, counts=None):
    p, conf, desc, tokens, targets, extras = inputs
    views = tuple(Prediction(*x, f) for *x, f in zip(p, conf, desc, conf, tokens, strict=True))
    terms = distill.loss_terms(
        views, extras, targets, tuple(weights), LossSettings(), hooks=HOOKS, key=jax.random.key(0)
    )
    return distill.objective(terms, weights, counts), terms


@functools.cache
def of_whole_and_parts():
    """The objective of the batch, and of its samples one by one with the counts of the batch."""
    *arrays, extras = objective_inputs()

    def run(arrays):
        whole, terms = objective(ON, (*arrays, extras))
        counts = {k: m.count for k, m in terms.items()}
        parts = [jax.tree.map(lambda x, i=i: x[i : i + 1], arrays) for i in range(B)]
        return whole, [objective(ON, (*part, extras), counts)[0] for part in parts]

    return jax.jit(run).lower(arrays).compile({"xla_backend_optimization_level": 0})(arrays)


def test_objective_is_the_weighted_sum_of_its_terms():
    inputs = objective_inputs()
    (loss, values), _ = of_whole_and_parts()
    assert tuple(sorted(values)) == tuple(sorted(TERMS))
    np.testing.assert_allclose(loss, sum(ON[k] * values[k] for k in values), rtol=1e-6)
    p, conf, _, tokens, targets, extras = inputs
    n, m = normalised(p, targets.valid), normalised(targets.points, targets.valid)
    expected = 0
    for a, b, c, v in zip(n, m, conf, targets.valid, strict=True):
        c, v = np.asarray(c, np.float64), np.asarray(v)
        expected += (np.linalg.norm(a - b, axis=-1) * c - 0.2 * np.log(c))[v].mean()
    np.testing.assert_allclose(values["points"], expected, rtol=3e-6)
    np.testing.assert_allclose(values["confidence"], 2 * 0.5, rtol=1e-6)
    projected = [t["encoder"] @ extras["projector"]["kernel"] for t in tokens]
    both = [
        features.cosine_margin(*side).value()
        for side in zip(projected, targets.tokens, strict=True)
    ]
    np.testing.assert_allclose(values["features"], sum(both) / 2, rtol=1e-6)


NEEDS = {  # term -> what the targets hold for it
    "confidence": "conf",
    "features": "tokens",
    "relational": "tokens",
    "hooks": "decoder",
    "matching": "matched",
    "descriptors": "desc",
    **dict.fromkeys(OF_THE_FLOW, "flow"),
}


@pytest.mark.parametrize("term", TERMS)
def test_a_term_without_weight_is_left_out(term):
    *inputs, targets, extras = objective_inputs()
    on = {
        k: 1.0 for k in TERMS if k not in (term, *(k for k in NEEDS if NEEDS[k] == NEEDS.get(term)))
    }
    if term in NEEDS:
        targets = targets.replace(**{NEEDS[term]: None})
    terms = jax.eval_shape(lambda: objective(on, (*inputs, targets, extras))[1])
    assert set(terms) == set(on)


def test_parts_of_a_batch_add_up_to_the_whole():
    (loss, values), parts = of_whole_and_parts()
    np.testing.assert_allclose(sum(part[0] for part in parts), loss, rtol=1e-6)
    for k, v in values.items():
        np.testing.assert_allclose(sum(part[1][k] for part in parts), v, rtol=2e-6, err_msg=k)


@functools.cache
def value_and_grads():
    """(points, confidences, descriptors, targets) -> values by term, the loss's gradients; compiled
    once for all that follows."""
    on = dict.fromkeys(("points", "confidence", "gradient", "relief", "sobel", "matching"), 1.0)
    *_, tokens, targets, extras = objective_inputs()

    def loss(p, conf, desc, targets):
        (loss, values), _ = objective(on, (p, conf, desc, tokens, targets, extras))
        return loss, values

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    inputs = (*objective_inputs()[:3], targets)
    return run.lower(*inputs).compile({"xla_backend_optimization_level": 0})


def test_a_nan_prediction_is_seen():
    p, conf, desc, _, targets, _ = objective_inputs()
    # A pixel that every loss looks at: valid with all around it, on the coarse grid.
    row, column = np.argwhere(relief.inner(targets.valid[0])[0, ::2, ::2])[0] * 2
    p[0] = p[0].at[0, row, column, 2].set(jnp.nan)
    (_, values), _ = value_and_grads()(p, conf, desc, targets)
    for term in ("points", "gradient", "relief", "sobel"):
        assert not np.isfinite(values[term]), term


@pytest.mark.parametrize("index", [0, 1, 2], ids=["points", "targets", "conf"])
def test_what_lies_under_the_mask_changes_nothing(index):
    results = []
    for fill in (1.0, np.nan, np.inf, 1e30):
        p, conf, desc, _, targets, _ = objective_inputs()
        arrays = [p, list(targets.points), conf]
        arrays[index] = [
            jnp.where(v[..., None] if x.ndim == 4 else v, x, fill)
            for x, v in zip(arrays[index], targets.valid, strict=True)
        ]
        targets = targets.replace(points=tuple(arrays[1]))
        results.append(value_and_grads()(arrays[0], arrays[2], desc, targets))
    for dirty in results[1:]:
        for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(dirty), strict=True):
            assert np.isfinite(a).all()
            np.testing.assert_array_equal(a, b)


def test_empty_masks_give_no_loss_and_no_gradient():
    p, conf, desc, _, targets, _ = objective_inputs()
    targets = targets.replace(
        valid=tuple(jnp.zeros_like(v) for v in targets.valid),
        matched=jnp.zeros_like(targets.matched),
    )
    (loss, _), grads = value_and_grads()(p, conf, desc, targets)
    assert loss == 0
    for grad in jax.tree.leaves(grads):
        assert not np.asarray(grad).any()  # nan is truthy


# What cannot work is said -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"margn": 0.9}, "have no key margn: did you mean margin?"),
        ({"points": {"norm": "avg"}}, "points.norm is 'avg': choose from none, avg_dis"),
        ({"matching": {"mode": "both"}}, "matching.mode is 'both': choose from proper"),
        ({"least_confidence": 0.2}, "least_confidence is 0.2, which leaves every pixel in"),
        ({"least_sure": 1.0}, "least_sure is 1.0: give a share"),
    ],
)
def test_wrong_loss_settings(values, message):
    with pytest.raises(InputError) as error:
        loss_settings(values)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_settings_nest_and_weights_of_0_are_off():
    settings = loss_settings({"margin": 0.5, "points": {"sky": 2.0}})
    assert settings.margin == 0.5 and settings.points == points.PointSettings(sky=2.0)
    assert loss_weights({"points": 1.0, "relief": 0.0}, has_teacher=False) == {"points": 1.0}
    with pytest.raises(InputError, match="No loss is on"):
        loss_weights({"points": 0.0}, has_teacher=True)
    with pytest.raises(InputError, match="loss.descriptors is 1 but there is no teacher"):
        loss_weights({"descriptors": 1.0}, has_teacher=False)
