"""The training loop: it learns, resumes bit by bit, and says what is wrong before it starts."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import optax
import pytest
import tiny

import lunar_distill_jax as ld
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.train import optim
from lunar_distill_jax.train.loop import METRICS, STUDENT, read_history, train
from lunar_distill_jax.train.plan import base_config, check_settings, complete
from lunar_distill_jax.train.state import flatten, unflatten

STEPS = 9
STUDENT_CONFIG = dataclasses.replace(
    tiny.CONFIG,
    decoder=dataclasses.replace(tiny.CONFIG.decoder, depth=1),
    head=dataclasses.replace(tiny.CONFIG.head, plane=False),
)
TEACHER = dataclasses.replace(
    STUDENT_CONFIG,
    name="tiny-teacher",
    encoder=dataclasses.replace(tiny.CONFIG.encoder, width=24),
)


def get_config(**changes):
    c = mlc.ConfigDict()
    c.seed, c.steps, c.batch, c.augment, c.matches = 0, STEPS, 4, True, 16
    c.loss = dict(points=1.0, features=0.3, gradient=1.0, matching=0.05)
    c.optim = dict(lr=5e-3, final=1e-3, warmup=3, weight_decay=0.05, clip=1.0)
    c.log_every, c.checkpoint_every = 1, 4
    c.update(changes)
    return c


@pytest.fixture(scope="module")
def pairs():
    return [tiny.plane_pair(i) for i in range(6)]


@pytest.fixture(scope="module")
def teacher():
    built = ld.build(TEACHER, 7)
    # A fresh head says next to nothing; this one draws relief on a plane in front of the camera.
    for head in ("head1", "head2"):
        last = built.params[head]["dpt"]["head2"]
        last["kernel"] *= 20
        last["bias"][:] = [0.1, -0.2, 1.0, 0.5]
    return built.replace(meta={"licence": "CC-BY-NC-SA-4.0", "source": "a teacher of this test"})


@pytest.fixture(scope="module")
def student():
    return ld.build(STUDENT_CONFIG, 0)


@pytest.fixture(scope="module")
def unbroken(pairs, teacher, student, tmp_path_factory):
    """(workdir, trained student, teacher parameters before) of one run from first to last step."""
    before = copy.deepcopy(teacher.params)
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, train(get_config(), workdir, pairs, teacher=teacher, student=student), before


def assert_bit_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


# Learning -----------------------------------------------------------------------------------------


def test_loss_falls(unbroken):
    rows = read_history(unbroken[0])
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert set(rows[0]) == {
        *("step", "loss", "lr", "grad_norm", "skipped"),
        *("points", "features", "gradient", "matching"),
    }
    first, last = (np.mean([row["loss"] for row in part]) for part in (rows[:3], rows[-3:]))
    assert last < 0.8 * first, (first, last)
    weights = get_config().loss
    for row in rows:
        assert row["loss"] == pytest.approx(sum(weights[k] * row[k] for k in weights), rel=1e-5)


def test_student_file_is_complete_and_loads_from_the_workdir(unbroken, student):
    workdir, trained, _ = unbroken
    loaded = ld.load(workdir)
    assert loaded.config == STUDENT_CONFIG
    assert_bit_equal(loaded.params, trained.params)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), trained.params, student.params)
    assert sum(jax.tree.leaves(changed)) > 0.8 * len(jax.tree.leaves(changed))
    assert {path.name for path in workdir.iterdir()} == {
        *(STUDENT, METRICS, "checkpoints", "run.json", "tensorboard", ".lock")
    }


def test_student_carries_the_licence_of_its_teacher(unbroken):
    meta = ld.load(unbroken[0]).meta
    assert meta["licence"] == "CC-BY-NC-SA-4.0"
    assert meta["teacher"] == "a teacher of this test"
    assert meta["trained"] == f"{STEPS} steps of batch 4"


def test_teacher_is_left_alone(unbroken, teacher):
    assert_bit_equal(teacher.params, unbroken[2])


# Stopping and going on ----------------------------------------------------------------------------


def test_killed_and_resumed_run_equals_the_unbroken_one(
    unbroken, pairs, teacher, student, tmp_path
):
    def power_cut(row):
        if row["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(get_config(), tmp_path, pairs, teacher=teacher, student=student, on_log=power_cut)
    assert not (tmp_path / STUDENT).exists()
    with pytest.raises(InputError, match="holds no finished training"):
        ld.load(tmp_path)
    with open(tmp_path / METRICS, "a") as log:
        log.write('{"step": 12, "lo')  # the cut came in the middle of a line

    resumed = []
    trained = train(
        get_config(), tmp_path, pairs, teacher=teacher, student=student, on_log=resumed.append
    )
    assert resumed[0]["step"] == 5  # after the checkpoint of step 4, not from the start
    assert read_history(tmp_path) == read_history(unbroken[0])
    assert_bit_equal(trained.params, unbroken[1].params)

    # A finished run does no step again.
    again = []
    same = train(
        get_config(), tmp_path, pairs, teacher=teacher, student=student, on_log=again.append
    )
    assert not again
    assert_bit_equal(same.params, trained.params)
    assert read_history(tmp_path) == read_history(unbroken[0])


def test_workdir_of_another_network_is_refused(unbroken, pairs, teacher, tmp_path):
    workdir = unbroken[0]
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    wider = dataclasses.replace(
        STUDENT_CONFIG, head=dataclasses.replace(STUDENT_CONFIG.head, desc=6)
    )
    with pytest.raises(InputError, match="is of another network or other losses"):
        train(get_config(), workdir, pairs, teacher=teacher, student=ld.build(wider))
    assert before == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_loss_that_is_not_finite_names_its_step(pairs, teacher, student, tmp_path):
    broken = student.replace(params=jax.tree.map(np.copy, student.params))
    broken.params["head1"]["dpt"]["head2"]["bias"][0] = np.nan
    # Logged rarely: the state is looked at before it is kept all the same.
    config = get_config(log_every=100)
    with pytest.raises(
        FloatingPointError, match="not finite at step 1; it was last finite at step 0"
    ):
        train(config, tmp_path / "a", pairs, teacher=teacher, student=broken)
    assert not list((tmp_path / "a/checkpoints").iterdir())
    assert not (tmp_path / "a" / STUDENT).exists()


# What cannot work is said first -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "has_teacher", "message"),
    [
        ({"loss": {"pointz": 1.0}}, True, "Unknown loss pointz: choose from points, confidence"),
        ({}, False, "loss.features is 0.3 but there is no teacher to imitate: set it to 0"),
        ({"matches": 0}, True, "config.matches is 0 but loss.matching is on"),
        ({"steps": 0}, True, "config.steps is 0: give 1 or more"),
        ({"batch": 0}, True, "config.batch is 0: give 1 or more"),
        ({"log_every": 0}, True, "config.log_every is 0: give 1 or more"),
        ({"checkpoint_every": 0}, True, "config.checkpoint_every is 0: give 1 or more"),
        ({"seed": -1}, True, "config.seed is -1: give 0 or more"),
    ],
)
def test_wrong_settings_leave_no_folder(
    changes, has_teacher, message, pairs, teacher, student, tmp_path
):
    with pytest.raises(InputError) as error:
        train(
            get_config(**changes),
            tmp_path / "run",
            pairs,
            teacher=teacher if has_teacher else None,
            student=student,
        )
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_wrong_pairs_leave_no_folder(teacher, student, tmp_path):
    mixed = [tiny.plane_pair(0), tiny.plane_pair(1, size=(48, 48))]
    for pairs, message in (([], "no pair to train on"), (mixed, "different sizes")):
        with pytest.raises(InputError, match=message):
            train(get_config(), tmp_path / "run", pairs, teacher=teacher, student=student)
        assert not (tmp_path / "run").exists()


def test_what_a_config_leaves_out_has_its_default():
    config = get_config()
    config.loss = {"points": 2.0}
    plan = check_settings(config, has_teacher=False)
    assert plan.on == ("points",) and dict(plan.runs[0].weights) == {"points": 2.0}
    assert plan.runs[0].lr == 5e-3 and plan.optim.eps == 1e-8
    full = complete(config)
    assert full.accumulate == 1 and full.optim.warmup == 3 and full.matches == 16
    assert set(full) == set(base_config())


def test_trials_change_numbers_only():
    config = get_config(
        trials=({"lr": 1e-4}, {"seed": 7, "loss": {"features": 0.0, "relief": 1.0}})
    )
    plan = check_settings(config, has_teacher=True)
    assert [(run.lr, run.seed) for run in plan.runs] == [(1e-4, 0), (5e-3, 7)]
    assert plan.on == ("points", "gradient", "relief", "features", "matching")
    assert "features" not in plan.runs[1].weights and "relief" not in plan.runs[0].weights
    with pytest.raises(
        InputError, match=r"config.trials\[0\] changes batch: trials of one program"
    ):
        check_settings(get_config(trials=({"batch": 2},)), has_teacher=True)


# The optimizer ------------------------------------------------------------------------------------


def test_learning_rate_warms_up_and_falls_as_a_half_cosine(unbroken):
    def rate(step, warmup=10, steps=110):
        return float(optim.learning_rate(step, 1.0, final=0.2, warmup=warmup, steps=steps))

    assert [rate(step) for step in (0, 5, 10)] == pytest.approx([0, 0.5, 1])
    assert rate(60) == pytest.approx(0.6) and rate(110) == pytest.approx(0.2)
    assert rate(35) == pytest.approx(0.6 + 0.4 * np.cos(np.pi / 4))
    # Warm-up longer than the run: still defined, still rising.
    assert [rate(step, 50, 5) for step in (0, 2, 4)] == pytest.approx([0, 0.5, 1])
    assert rate(0, 50, 1) == 1
    rows = read_history(unbroken[0])
    assert [row["lr"] for row in rows[:4]] == pytest.approx([0, 5e-3 / 3, 1e-2 / 3, 5e-3])


def updated(params, grads, **settings):
    """Directions and the optimizer's state after one step."""
    tx = optim.make_optimizer(optim.OptimSettings(steps=1, **settings))
    return tx.update(grads, tx.init(params), params)


def test_weight_decay_spares_vectors():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "token": jnp.ones((1, 1, 3))}
    directions, _ = updated(params, jax.tree.map(jnp.zeros_like, params), weight_decay=0.5)
    np.testing.assert_allclose(directions["kernel"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(directions["token"], 0.5, rtol=1e-6)
    assert not directions["bias"].any()


def test_gradients_are_clipped_by_their_global_norm():
    params = {"a": jnp.zeros(2), "b": jnp.zeros((1, 2))}
    large = {"a": jnp.array([30.0, 0]), "b": jnp.array([[0.0, 40]])}
    _, state = updated(params, large, weight_decay=0.0)
    inner = optax.tree.get(state, "inner_states")
    vectors, matrices = inner["vectors"], inner["matrices"]
    # 0.1 of the clipped gradient: beta 0.9
    np.testing.assert_allclose(optax.tree.get(vectors, "mu"), [0.06, 0], rtol=1e-6)
    np.testing.assert_allclose(optax.tree.get(matrices, "mu")["b"], [[0, 0.08]], rtol=1e-6)
    # 0.05 of its square: beta 0.95
    np.testing.assert_allclose(optax.tree.get(vectors, "nu"), [0.05 * 0.36, 0], rtol=1e-5)
    np.testing.assert_allclose(optax.tree.get(matrices, "nu")["b"], [[0, 0.05 * 0.64]], rtol=1e-5)


def test_muons_steps_are_orthogonal_and_as_long_as_adams():
    rng = np.random.default_rng(0)
    shapes = {"block/kernel": (6, 24), "conv/kernel": (3, 3, 2, 8), "head2/kernel": (6, 24)}
    grads = {"bias": jnp.ones(3)}
    grads |= {k: jnp.asarray(rng.normal(size=shape), jnp.float32) for k, shape in shapes.items()}
    tree = unflatten(grads)
    zeros = jax.tree.map(jnp.zeros_like, tree)
    directions, _ = updated(zeros, tree, kind="muon", weight_decay=0.0, clip=1e9)
    directions = flatten(directions)
    for name in ("block/kernel", "conv/kernel"):
        step = np.asarray(directions[name])
        matrix = step.reshape(-1, step.shape[-1])
        scale = 0.2 * max(matrix.shape) ** 0.5
        # Five Newton-Schulz rounds bring singular values to 0.7 to 1.2 of that (Jordan 2024).
        values = np.linalg.svd(matrix, compute_uv=False) / scale
        assert 0.6 < values.min() and values.max() < 1.3
        assert 0.12 < np.sqrt((matrix**2).mean()) < 0.26
    for name in ("head2/kernel", "bias"):  # Adam's first step is the sign
        np.testing.assert_allclose(directions[name], np.sign(grads[name]), rtol=1e-4)
    with pytest.raises(InputError, match="optim.kind is 'sgd': choose from adamw, muon"):
        optim.OptimSettings(steps=1, kind="sgd")


def test_multipliers_are_by_name_and_the_first_match_counts():
    params = {"encoder": {"block0": jnp.ones(2), "block1": jnp.ones(2)}, "head": jnp.ones(2)}
    table = ((".*block0", 0.25), ("encoder/.*", 0.5))
    directions, _ = updated(params, params, multipliers=table)
    ratios = [directions["encoder"][k] / directions["head"] for k in ("block0", "block1")]
    np.testing.assert_allclose(ratios, [[0.25] * 2, [0.5] * 2], rtol=1e-6)


def test_patterns_must_match_whole_names():
    names = ("encoder/a/kernel", "head/kernel", "unused/mask_token")
    assert optim.frozen_names(names, ()) == {"unused/mask_token"}
    assert optim.frozen_names(names, ("encoder/.*",)) == {"unused/mask_token", "encoder/a/kernel"}
    for patterns, message in (
        (("encodr/.*",), "optim.freeze has 'encodr/.*', which matches no parameter"),
        (("encoder",), "it must match a whole name, such as encoder/a/kernel"),
        (("(",), "no regular expression"),
        ((".*",), "leaves no parameter to train"),
    ):
        with pytest.raises(InputError) as error:
            optim.frozen_names(names, patterns)
        assert message in str(error.value)
    with pytest.raises(InputError, match="optim.multipliers has 'encodr', which matches no"):
        optim.factors(names, (("encodr", 0.1),))


def test_history_of_no_run_is_empty(tmp_path):
    assert read_history(tmp_path) == []
    (tmp_path / METRICS).write_text(json.dumps({"step": 1}) + "\n{")
    assert read_history(tmp_path) == [{"step": 1}]
