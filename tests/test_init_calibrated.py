"""Initialisation from activations: exact where it can be, better than weights alone elsewhere."""

import jax.numpy as jnp
import numpy as np
import pytest
from planted import (
    STUDENT,
    TEACHER,
    difference,
    images,
    outputs,
    planted_teacher,
    random_teacher,
    relabelled,
    stereo,
)

import lunar_distill_jax as ld
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.init.activations import Grid, decoder_block
from lunar_distill_jax.init.attention_maps import MapDistances
from lunar_distill_jax.init.calibration import Backend
from lunar_distill_jax.init.regression import ALLOWED, Pairs, unexplained
from lunar_distill_jax.init.store import Store
from lunar_distill_jax.init.student import init_student
from lunar_distill_jax.init.tree import Affine, below
from lunar_distill_jax.models.rope import grid_positions

CALIBRATION = images(40, seed=1)


@pytest.fixture(scope="module")
def pictures():
    return images(3)


def from_calibrated(flat, student):
    return init_student(stereo(flat), student, "calibrated", CALIBRATION)


def test_a_block_taken_apart_is_the_networks_block():
    teacher, pictures = random_teacher(), images(3)
    views = ld.predict(stereo(teacher), *pictures, features=True)
    tokens = [np.asarray(v.features["encoder"]) for v in views]
    embed = below(teacher, "decoder/embed/")
    x, y = ((t @ embed["kernel"] + embed["bias"]).astype(np.float32) for t in tokens)
    grid = Grid.of(grid_positions(2, 3), 8, TEACHER.rope_base)
    block = {k: v.astype(np.float32) for k, v in below(teacher, "decoder/view1_block0/").items()}
    want = np.asarray(views[0].features["decoder"][0])
    for xp in (np, jnp):
        made = decoder_block(xp, block, x, y, grid, TEACHER.decoder.heads)
        np.testing.assert_allclose(made.out, want, atol=1e-5 * np.abs(want).max())  # seen 1e-6
        np.testing.assert_allclose(made.cross_attn.weights.sum(-1), 1, atol=1e-5)
        written = made.attn.update + made.cross_attn.update + made.mlp.update
        np.testing.assert_allclose(x + written, made.out, atol=1e-5)


def test_same_sizes_give_the_teacher_back(pictures):
    teacher = random_teacher()
    student, report = from_calibrated(teacher, TEACHER)
    got, want = (outputs(n, pictures) for n in (student, stereo(teacher)))
    assert difference(got, want) < 1e-4
    assert report["stitching"]["r2"] > 0.9999
    assert all(block["stream_r2"] > 0.9999 for block in report["blocks"].values())


def test_a_stream_that_fits_is_kept(pictures):
    teacher = planted_teacher()
    student, _ = from_calibrated(teacher, STUDENT)
    assert difference(outputs(student, pictures), outputs(stereo(teacher), pictures)) < 1e-4


def test_relabelling_the_teacher_changes_nothing(pictures):
    teacher = random_teacher()
    students = [from_calibrated(t, STUDENT)[0] for t in (teacher, relabelled(teacher))]
    assert difference(*(outputs(s, pictures) for s in students)) < 1e-4  # seen 5e-7


def test_activations_tell_more_than_weights(pictures):
    teacher = random_teacher()
    want = outputs(stereo(teacher), pictures)[0]
    off = {}
    for method in ("paper", "structured", "calibrated"):
        student, _ = init_student(stereo(teacher), STUDENT, method, CALIBRATION)
        off[method] = np.abs(outputs(student, pictures)[0] - want).mean() / np.abs(want).mean()
    # Seen 0.15, 0.040, 0.033, with 192 tokens a view to fit to.
    assert off["calibrated"] < 0.95 * off["structured"] < 0.5 * off["paper"], off


def test_ridge_regression_keeps_a_good_prior_and_tells_r2_on_what_it_has_not_seen():
    rng = np.random.default_rng(0)
    x, truth = rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12)), rng.normal(size=(12, 3))
    y = x @ truth + 0.5
    pairs, noise = Pairs(12, 3), Pairs(12, 3)
    for rows, held in ((slice(0, 400), False), (slice(400, 500), True)):
        pairs.add(x[rows], y[rows], held)
        noise.add(x[rows], rng.normal(size=y[rows].shape), held)
    exact = Affine(truth, np.full(3, 0.5))
    np.testing.assert_allclose(pairs.fit(exact).layer.kernel, truth, atol=1e-9)
    fit = pairs.fit()
    np.testing.assert_allclose(fit.layer.kernel, truth, atol=5e-3)  # the least ridge shrinks
    assert fit.r2 > 1 - 1e-6 and noise.fit().r2 < 0.02
    some = Pairs(2, 3)
    for rows, held in ((slice(0, 400), False), (slice(400, 500), True)):
        some.add(x[rows][:, [0, 3]], y[rows], held)
    taken = pairs.take(np.array([0, 3])).fit()
    np.testing.assert_allclose(taken.layer.kernel, some.fit().layer.kernel, rtol=1e-9)


def test_the_largest_ridge_that_is_about_as_good_is_taken():
    """Two inputs that are nearly one: least squares leans on their difference, the fit does not."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 1)) + 1e-3 * rng.normal(size=(500, 2))
    y = x @ np.array([[1.0], [1.0]]) + 0.1 * rng.normal(size=(500, 1))
    pairs = Pairs(2, 1)
    for rows, held in ((slice(0, 400), False), (slice(400, 500), True)):
        pairs.add(x[rows], y[rows], held)
    fit, held, fitted = pairs.fit(), pairs.centred(True), pairs.centred()
    least = np.linalg.solve(fitted.S, fitted.C)
    squares = Affine(least, fitted.mean_out - fitted.mean_in @ least)
    assert unexplained(fit.layer, held) <= (1 + ALLOWED) * unexplained(squares, held)
    assert fit.ridge >= 1e-2 and np.abs(least).max() > 3  # seen 0.01 and 5.1
    np.testing.assert_allclose(fit.layer.kernel, 1, atol=0.1)
    assert pairs.fit(fit.layer).ridge == np.inf  # a prior that is good enough stays


def test_maps_are_compared_by_where_they_look():
    weights = np.zeros((1, 3, 4, 4), np.float32)
    weights[0, 0], weights[0, 1], weights[0, 2] = np.eye(4), np.eye(4), np.eye(4)[::-1]
    maps = MapDistances([np.eye(2), 2 * np.eye(2), np.zeros((2, 2))])
    maps.add_maps(weights)
    np.testing.assert_allclose(maps.distance[0], [0, 0, np.log(2)], atol=1e-6)
    context = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype(np.float32)
    context[0, 1] = context[0, 0]
    maps.add_context(context)
    assert maps.energy[2] == 0
    np.testing.assert_allclose(maps.energy[1], 4 * maps.energy[0], rtol=1e-5)


def test_without_pairs_it_says_what_to_do():
    with pytest.raises(InputError, match="needs pairs of images: give calibration"):
        init_student(stereo(random_teacher()), STUDENT, "calibrated")
    one = tuple(v[:1] for v in CALIBRATION)
    with pytest.raises(InputError, match="There is 1 calibration pair"):
        init_student(stereo(random_teacher()), STUDENT, "calibrated", one)


def test_an_accelerators_arrays_give_the_same_numbers():
    """The backend of jax, on the CPU's device: one block of both views."""
    teacher = random_teacher()
    from lunar_distill_jax.init.calibration import network

    rng = np.random.default_rng(0)
    tokens = {v: rng.normal(size=(4, 6, 16)).astype(np.float32) for v in (1, 2)}
    net = network(TEACHER, teacher, tokens, grid_positions(2, 3), 1)
    embed = (teacher[f"decoder/embed/{k}"] for k in ("kernel", "bias"))
    net.start(*embed, Store(), "start")
    one, other = (
        Backend(*args).run(net, range(1), np.arange(4)) for args in ((np,), (jnp, ("cpu",)))
    )
    for view in (1, 2):
        np.testing.assert_allclose(one[0][view].out, other[0][view].out, atol=1e-4)
