"""The students: sizes to the parameter, wiring, gradients, files, and one of your own."""

import dataclasses
import functools
import json
import math
import re
import warnings

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import REPOSITORY

import lunar_distill_jax as ld
from lunar_distill_jax import cli
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.accounting import mac_counts, parameter_counts, part_of
from lunar_distill_jax.models.catconv import depth_to_space
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.encoders.config import AdaptedEncoderConfig, MobileNetV3Config
from lunar_distill_jax.models.fresh import array_shapes, fresh_params, parameter_shapes
from lunar_distill_jax.models.stereo import StereoNet
from lunar_distill_jax.models.zoo import ENCODERS, STUDENTS, architecture

# Sizes --------------------------------------------------------------------------------------------

PAPER = {  # spec of MASt3R, section 2
    "s1": 135_712_440,
    "s2": 154_936_328,
    "s3": 94_907_144,
    "s4": 138_464_840,
}
SHELL_UNUSED = {512: 393_728 + 1_024 + 512, 256: 196_864 + 512 + 256}  # patch_embed, enc_norm, mask
HEADS_UNUSED = 4 * 590_080  # of the coarsest fusion, as in the teacher
ENCODER_UNUSED = {"s1": 2_179_464, "s2": 384, "s3": 384, "s4": 0}  # MobileNet's tail, DINOv2's mask


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_students_have_its_parameters_to_the_unit(name):
    config = architecture(name)
    counts = parameter_counts(config)
    assert sum(counts.values()) == PAPER[name]
    unused = SHELL_UNUSED[config.decoder.width] + HEADS_UNUSED + ENCODER_UNUSED[name]
    assert counts["unused"] == unused
    # What is trained and sharded is what is in the tree: no dead weight.
    shapes = parameter_shapes(config)
    assert sum(map(math.prod, shapes.values())) == PAPER[name] - unused
    assert not [n for n in shapes if part_of(n) in ("unused", "other")]


BUDGETS = {  # parameters, and MACs of a 512 x 384 pair
    "slim-s": (34e6, 75e9),
    "slim-s-catconv": (34e6, 75e9),
    "slim-ti": (14e6, 40e9),
    "slim-mobile": (15e6, 30e9),
    "slim-m": (94_907_144, 255e9),  # between slim-s and s3
}


@pytest.mark.parametrize("name", BUDGETS)
def test_slim_students_keep_their_budgets(name):
    counts, macs = parameter_counts(architecture(name)), mac_counts(architecture(name), 384, 512)
    assert "unused" not in counts
    assert sum(counts.values()) <= BUDGETS[name][0]
    assert sum(macs.values()) <= BUDGETS[name][1]
    if name == "slim-m":
        assert sum(counts.values()) > 34e6 and sum(macs.values()) > 75e9


def xla_flops(config, height: int, width: int) -> float:
    """XLA's own count of the forward pass over one pair, before it optimises; nothing is run."""
    flat = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in array_shapes(config).items()}
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    statistics = params.pop("batch_stats", {})
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    net = StereoNet(config, Compute(attention="plain"))  # a loop's body would be counted once

    def forward(variables, one, two):
        return [outputs(view) for view in net.apply(variables, one, two)]

    variables = {"params": params, "batch_stats": statistics}
    return jax.jit(forward).lower(variables, image, image).cost_analysis()["flops"]


# XLA also adds up norms, softmax and activations; the others take as long each.
COUNTED = [n if n == "slim-s" else pytest.param(n, marks=pytest.mark.slow) for n in STUDENTS]


@pytest.mark.parametrize("name", [*COUNTED, pytest.param("mast3r", marks=pytest.mark.slow)])
def test_macs_are_xla_s_own_within_2_percent(name):
    config = architecture(name)
    ratio = xla_flops(config, 384, 512) / 2 / sum(mac_counts(config, 384, 512).values())
    assert 0.98 < ratio < 1.02, ratio


def test_the_budgets_cover_all_students():
    assert {*PAPER, *BUDGETS} == set(STUDENTS)


def test_decoder_heads_of_ours_have_the_teacher_s_64_channels():
    for name in BUDGETS:
        decoder = architecture(name).decoder
        assert decoder.width // decoder.heads == 64


# Every architecture -------------------------------------------------------------------------------


def small(config: StereoConfig) -> StereoConfig:
    """The same wiring with narrow layers: family and options of the encoder, hooks, heads."""
    model = config.encoder.model
    if not isinstance(model, MobileNetV3Config):
        model = dataclasses.replace(model, width=32, depth=1, heads=2, grid=4)
    decoder = dataclasses.replace(
        config.decoder, width=16, heads=2, depth=config.decoder.depth // 2
    )
    head = dataclasses.replace(
        config.head, width=16, layers=(8, 8, 8, 8), last=8, desc=4, desc_ratio=0.5
    )
    encoder = dataclasses.replace(config.encoder, model=model, width=16)
    return dataclasses.replace(config, encoder=encoder, decoder=decoder, head=head)


def build_quietly(config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return ld.build(config)


def photographs(height=32, width=48, batch=2):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (2, batch, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("name", STUDENTS)
def test_students_survive_their_weight_file(name, tmp_path):
    student = build_quietly(small(architecture(name)))
    ld.save(student, tmp_path / "s.safetensors")
    loaded = ld.load(tmp_path / "s.safetensors")
    assert loaded.config == student.config
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(student.variables)
    for a, b in zip(jax.tree.leaves(loaded.arrays), jax.tree.leaves(student.arrays), strict=True):
        np.testing.assert_array_equal(a, b)
    assert bool(student.batch_stats) == ("mobile" in name or name == "s1")


def forward_and_step(config):
    """Loss before and after one gradient step, gradients, new moments; batch norms in training."""
    net, (one, two) = StereoNet(config, train=True), photographs()
    student = build_quietly(config)

    def loss(params):
        variables = {**student.variables, "params": params}
        views, new = net.apply(variables, one, two, mutable=["batch_stats"])
        views = [outputs(view) for view in views]
        # A smooth function of every output.
        return sum(jnp.mean(jnp.log1p(jnp.square(o))) for v in views for o in v), (views, new)

    loss_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (before, (views, new)), grads = jax.device_get(loss_and_gradient(student.params))
    params = jax.tree.map(lambda p, g: p - 1e-3 * g, student.params, grads)
    (after, _), _ = loss_and_gradient(params)
    return before, grads, views, new, after


def outputs(view):
    return view.pts3d, view.conf, view.desc, view.desc_conf


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_one_forward_and_one_gradient_step(name):
    config = small(architecture(name))
    before, grads, views, new, after = forward_and_step(config)
    for points, conf, desc, desc_conf in views:
        assert points.shape == (2, 32, 48, 3) and conf.shape == desc_conf.shape == (2, 32, 48)
        np.testing.assert_allclose(np.linalg.norm(desc, axis=-1), 1, atol=1e-5)
        assert (conf >= 1).all() and all(np.isfinite(o).all() for o in (points, conf, desc_conf))
    assert np.isfinite(before) and after < before
    flat = flax.traverse_util.flatten_dict(grads, sep="/")
    assert all(np.isfinite(g).all() for g in flat.values())
    # Nothing in the tree is dead weight. The second view's last norm_y apart, every tensor counts.
    dead = [n for n, g in flat.items() if not g.any() and not n.endswith("bias")]
    assert not dead, dead
    moments = jax.tree.leaves(new.get("batch_stats", {}))
    assert bool(moments) == ("encoder" in new.get("batch_stats", {}))
    assert all(np.isfinite(m).all() for m in moments)


def test_inference_reads_the_running_moments():
    """Batch norms in inference: samples of a batch do not see each other."""
    student = build_quietly(small(architecture("slim-mobile")))
    one, two = photographs()
    both = ld.predict(student, one, two)
    moved = jax.tree.map(lambda m: m + 0.5, student.batch_stats)
    other = ld.predict(student.replace(batch_stats=moved), one, two)
    assert np.abs(both[0].pts3d - other[0].pts3d).max() > 1e-6
    changed = ld.predict(student, np.concatenate([one[:1], -one[1:]]), two)
    # 2e-5: sums of equal numbers in another order
    np.testing.assert_allclose(both[0].pts3d[0], changed[0].pts3d[0], atol=2e-5)


@pytest.mark.parametrize("base", ["s2", "slim-ti"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_student_takes_any_encoder(base, encoder):
    config = architecture(f"{base}@{encoder}")
    config.check()
    assert (
        config.encoder.model == ENCODERS[encoder] and config.decoder == architecture(base).decoder
    )
    assert config.encoder.pixels == ("unit" if encoder == "vit-ti" else "imagenet")
    assert StereoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("slim-x", "no architecture 'slim-x': did you mean 'slim-"),
        ("slim-s@dinov3-huge", "no encoder 'dinov3-huge': did you mean"),
        ("mast3r@vit-ti", "The encoder of mast3r cannot be another: choose from s1, s2"),
    ],
)
def test_names_that_are_not_there(name, message):
    with pytest.raises(InputError) as error:
        architecture(name)
    assert message in str(error.value) and "\n" not in str(error.value)


def change(config, **encoder):
    data = json.loads(json.dumps(config.to_dict()))
    model = encoder.pop("model", {})
    data["encoder"].update(encoder)
    data["encoder"]["model"].update(model)
    return data


@pytest.mark.parametrize(
    ("name", "encoder", "message"),
    [
        ("s2", {"align": "pixels"}, "encoder.align is 'pixels'; choose from image, features"),
        ("s2", {"pixels": "0..1"}, "encoder.pixels is '0..1'; choose from imagenet, unit"),
        ("s2", {"width": 0}, "encoder.width is 0"),
        ("s2", {"colour": 1}, "Unknown key colour in encoder: it has align, model, pixels, width"),
        ("s2", {"model": {"heads": 5}}, "encoder.model.width 384 is not a multiple of"),
        ("s2", {"model": {"depth": -1}}, "encoder.model.depth is -1"),
        (
            "s2",
            {"model": {"family": "resnet"}},
            "encoder.model.family is 'resnet': choose from cust",
        ),
        ("s1", {"model": {"stages": 6}}, "encoder.model.stages is 6; choose 5 or 7"),
        ("s2@dinov3-s", {"model": {"heads": 7}}, "encoder.model.heads 7"),
        ("s2@dinov3-convnext-tiny", {"model": {"stages": 9}}, "and stages 9; give a width"),
    ],
)
def test_unusable_encoders_are_one_sentence(name, encoder, message):
    with pytest.raises(InputError) as error:
        StereoConfig.from_dict(change(architecture(name), **encoder))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_portrait_pictures_in_landscape_arrays_are_the_teacher_s_alone():
    config = dataclasses.replace(architecture("s3"), landscape_only=True)
    with pytest.raises(InputError, match="landscape_only needs MASt3R's plain patch embedding"):
        config.check()


# The convolutional head ---------------------------------------------------------------------------


def test_depth_to_space_by_hand():
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 4 * 5)).astype(np.float32)
    out = np.asarray(depth_to_space(x, 2))
    for row in range(6):
        for column in range(4):
            i = (row % 2) * 2 + column % 2
            expected = x[:, row // 2, column // 2, 5 * i : 5 * i + 5]
            np.testing.assert_array_equal(out[:, row, column], expected)


@pytest.mark.parametrize(
    "head", [{"width": 10}, {"late_double": True}, {"kind": "linear"}, {"last_norm": True}]
)
def test_heads_that_cannot_be(head):
    config = architecture("slim-s-catconv")
    config = dataclasses.replace(config, head=dataclasses.replace(config.head, **head))
    with pytest.raises(InputError, match="head"):
        config.check()


# An encoder of one's own --------------------------------------------------------------------------


class TwoConvolutions(nn.Module):
    width: int = 24

    @nn.compact
    def __call__(self, image):
        x = nn.relu(nn.Conv(8, (4, 4), (4, 4))(image))
        return nn.Conv(self.width, (4, 4), (4, 4))(x)


def test_a_student_of_one_s_own(tmp_path):
    config = ld.custom_student("mine", TwoConvolutions())
    config = dataclasses.replace(
        config,
        decoder=small(architecture("slim-s")).decoder,
        head=small(architecture("slim-s")).head,
    )
    student = ld.build(config)  # and no warning: nobody published this encoder
    assert "encoder/backbone/module/Conv_1/kernel" in parameter_shapes(config)
    one, two = ld.predict(student, *photographs())
    assert one.pts3d.shape == (2, 32, 48, 3) and np.isfinite(two.pts3d).all()

    ld.save(student, tmp_path / "mine.safetensors")
    with pytest.raises(
        InputError, match=r"the encoder 'TwoConvolutions', which a file cannot hold"
    ):
        ld.load(tmp_path / "mine.safetensors")
    loaded = ld.load(tmp_path / "mine.safetensors", encoder=TwoConvolutions())
    assert loaded.config == config
    np.testing.assert_array_equal(ld.predict(loaded, *photographs())[0].pts3d, one.pts3d)
    ld.save(build_quietly(small(architecture("s3"))), tmp_path / "s3.safetensors")
    with pytest.raises(InputError, match="whose encoder is known: load it without"):
        ld.load(tmp_path / "s3.safetensors", encoder=TwoConvolutions())


def test_the_student_of_the_documentation_is_short_and_works(tmp_path, monkeypatch, capsys):
    text = (REPOSITORY / "docs" / "students.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) < 25
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "documentation"}
    exec(compile(code, "docs/students.md", "exec"), names)
    assert capsys.readouterr().out == "(1, 96, 128, 3)\n"
    again, student = names["again"], names["student"]
    assert again.config == student.config
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(student.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_any_function_can_be_an_encoder():
    def every_16th_pixel(image):
        return nn.Dense(3)(image[:, ::16, ::16])

    shapes = parameter_shapes(ld.custom_student("mine", every_16th_pixel, like="slim-ti"))
    assert shapes["encoder/backbone/Dense_0/kernel"] == (3, 3)
    assert shapes["encoder/adapter/kernel"] == (1, 1, 3, 192)
    with pytest.raises(InputError, match="like is mast3r, no student"):
        ld.custom_student("mine", every_16th_pixel, like="mast3r")


# Fresh parameters and the command line ------------------------------------------------------------


def test_fresh_students_warn_of_what_is_lost():
    with pytest.warns(UserWarning, match=r"slim-mobile starts with a random encoder: its 792,488"):
        student = ld.build("slim-mobile")
    flat = flax.traverse_util.flatten_dict(student.arrays, sep="/")
    assert {k: v.shape for k, v in flat.items()} == array_shapes(student.config)
    moments = {k: v for k, v in flat.items() if k.startswith("batch_stats/")}
    assert all((v == k.endswith("/var")).all() for k, v in moments.items()) and moments


def test_fresh_tokens_and_positions_are_drawn():
    config = small(architecture("slim-s@dune-s"))
    own = fresh_params(config, 0)["encoder"]["backbone"]
    for name in ("cls_token", "pos_embed", "register_tokens"):
        assert 0.01 < own[name].std() < 0.03
    assert (own["block0"]["scale1"] == 1).all()


@functools.lru_cache(maxsize=1)
def s3_facts():
    import contextlib
    import io

    with contextlib.redirect_stdout(out := io.StringIO()):
        assert cli.main(["info", "s3", "--size", "64x64", "--json"]) == 0
    return json.loads(out.getvalue())


def test_info_puts_both_counts_side_by_side():
    facts = s3_facts()
    assert facts["parameters"]["total"] == PAPER["s3"]
    assert facts["parameters_used"] == PAPER["s3"] - facts["parameters"]["unused"]
    parts = {"encoder", "decoder", "dpt", "local_features", "total"}
    assert parts <= set(facts["macs"]) and parts <= set(facts["peak_activation_bytes"])
    peaks = dict(facts["peak_activation_bytes"])
    assert peaks.pop("total") == max(peaks.values())


def test_an_adapter_width_follows_the_decoder():
    for name in STUDENTS:
        config = architecture(name)
        assert isinstance(config.encoder, AdaptedEncoderConfig)
        assert config.encoder.width == config.decoder.width
