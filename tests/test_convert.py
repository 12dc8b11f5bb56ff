"""Torch to ours and back, bit by bit; what is refused, and that nothing is written then."""

import dataclasses
import json
import math
import pathlib
import re

import flax.traverse_util
import jax
import numpy as np
import pytest

import lunar_distill_jax.api as ld
from lunar_distill_jax import cli
from lunar_distill_jax.convert.model_string import format_model_string
from lunar_distill_jax.convert.teacher import (
    LICENCE,
    checkpoint_tensors,
    network_from_checkpoint,
    reference_arguments,
)
from lunar_distill_jax.convert.torch_file import read_checkpoint
from lunar_distill_jax.convert.torch_write import write_hugging_face, write_pth
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.config import DecoderConfig, EncoderConfig, HeadConfig, StereoConfig
from lunar_distill_jax.models.encoders.config import AdaptedEncoderConfig, ViTConfig
from lunar_distill_jax.models.zoo import architecture
from lunar_distill_jax.weights import read_weights, write_weights

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "goldens"
TINY = StereoConfig(
    encoder=EncoderConfig(16, 1, 2),
    decoder=DecoderConfig(16, 2, 2),
    head=HeadConfig(width=8, layers=(4, 8, 12, 16), last=4, desc=5),
    keep_unused=True,
)


def flat(params):
    return flax.traverse_util.flatten_dict(params, sep="/")


def same_bits(got, want):
    assert set(got) == set(want)
    for name, array in want.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name


@pytest.fixture(scope="module")
def network():
    """Every array random, so that no two are mistaken for each other."""
    rng = np.random.default_rng(0)
    shapes = flat(ld.build(TINY).params)
    params = {n: rng.standard_normal(a.shape, np.float32) * 0.1 for n, a in shapes.items()}
    return ld.Stereo(TINY, flax.traverse_util.unflatten_dict(params, sep="/"), {"licence": "mine"})


@pytest.fixture(scope="module")
def pth(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "tiny.pth"
    model = format_model_string(reference_arguments(TINY))
    write_pth(path, checkpoint_tensors(TINY, network.params), {"model": model})
    return path


def changed(pth, tmp_path, change, args=None):
    """A copy of the checkpoint whose {name: tensor} went through `change`."""
    checkpoint = read_checkpoint(pth)
    tensors = dict(checkpoint.tensors)
    change(tensors)
    write_pth(tmp_path / "changed.pth", tensors, args or checkpoint.args)
    return tmp_path / "changed.pth"


def test_table_covers_the_whole_network_and_back(network, pth):
    config, params, meta = network_from_checkpoint(read_checkpoint(pth))
    assert config == TINY
    same_bits(flat(params), flat(network.params))
    mapping = meta.pop("mapping")
    assert meta == {"source": "tiny.pth", "licence": LICENCE, "training_size": "512x512"}
    assert mapping == f"{len(flat(params))} tensors by name, 8 second names of them, 0 not used"


def test_layouts_are_torch_s(network, pth):
    """The names and shapes that the reference's state_dict has; square matrices cannot hide."""
    tensors = read_checkpoint(pth).tensors
    assert tensors["patch_embed.proj.weight"].shape == (16, 3, 16, 16)
    assert tensors["enc_blocks.0.attn.qkv.weight"].shape == (48, 16)
    assert tensors["downstream_head2.dpt.act_postprocess.0.1.weight"].shape == (4, 4, 4, 4)
    assert tensors["downstream_head1.dpt.scratch.layer4_rn.weight"].shape == (8, 16, 3, 3)
    one = tensors["downstream_head1.dpt.scratch.layer1_rn.weight"]
    assert np.shares_memory(one, tensors["downstream_head1.dpt.scratch.layer_rn.0.weight"])
    query = flat(network.params)["decoder/view2_block1/cross_attn/q/kernel"]
    np.testing.assert_array_equal(tensors["dec_blocks2.1.cross_attn.projq.weight"], query.T)


@pytest.mark.parametrize("model", "ABC")
@pytest.mark.parametrize("target", ["back.pth", "back"])
def test_released_layouts_survive_the_round_trip(model, target, tmp_path):
    """torch -> our file -> torch: equal names, types and bits (A is float16)."""
    if not SHARED.is_dir():
        pytest.skip("the goldens (../shared/goldens) are absent; the tiny network is tested")
    original = read_checkpoint(SHARED / f"teacher_{model}" / "tiny_teacher.pth")
    config, params, meta = network_from_checkpoint(original)
    write_weights(tmp_path / "ours.safetensors", config, params, meta)
    source, out = str(tmp_path / "ours.safetensors"), str(tmp_path / target)
    assert cli.main(["convert", source, out, "--to", "torch"]) == 0
    again = read_checkpoint(out)
    same_bits(again.tensors, original.tensors)
    config2, params2, _ = network_from_checkpoint(again)
    assert config2 == config
    same_bits(flat(params2), flat(params))


def test_hugging_face_folder_keeps_its_wiring(tmp_path):
    if not SHARED.is_dir():
        pytest.skip("the goldens (../shared/goldens) are absent")
    folder = network_from_checkpoint(read_checkpoint(SHARED / "teacher_A"))
    file = network_from_checkpoint(read_checkpoint(SHARED / "teacher_A" / "tiny_teacher.pth"))
    assert (folder[0].landscape_only, file[0].landscape_only) == (True, False)
    same_bits(flat(folder[1]), flat(file[1]))


def test_convert_writes_a_file_that_says_where_it_comes_from(pth, network, tmp_path, capsys):
    target = tmp_path / "ours.safetensors"
    assert cli.main(["convert", str(pth), str(target)]) == 0
    printed = capsys.readouterr().out
    config, params, meta = read_weights(target)
    assert config == TINY
    same_bits(flat(params), flat(network.params))
    assert meta["licence"] == LICENCE and meta["source"] == "tiny.pth"
    assert len(meta["source_sha256"]) == len(meta["self_check"]) == 64
    assert meta["self_check"] in printed and "CC BY-NC-SA 4.0" in printed
    assert f"{sum(a.size for a in flat(params).values()):,d}" in printed
    assert [p.name for p in tmp_path.iterdir()] == ["ours.safetensors"]
    assert cli.main(["info", str(target), "--json", "--size", "32x48"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["licence"] == LICENCE and facts["meta"]["self_check"] == meta["self_check"]
    assert facts["bytes"] == 4 * facts["parameters"]["total"]
    assert cli.main(["convert", str(pth), str(target)]) == 2  # it does not overwrite
    assert "exists already" in capsys.readouterr().err


def test_load_takes_every_layout_as_float32(pth, network, tmp_path):
    tensors = {k: v.astype(np.float16) for k, v in read_checkpoint(pth).tensors.items()}
    write_hugging_face(tmp_path / "hf", tensors, reference_arguments(TINY))
    loaded = ld.load(tmp_path / "hf")
    assert {a.dtype for a in jax.tree.leaves(loaded.params)} == {np.dtype(np.float32)}
    half = jax.tree.map(lambda a: a.astype(np.float16).astype(np.float32), network.params)
    same_bits(flat(loaded.params), flat(half))
    ld.save(loaded, tmp_path / "ours.safetensors")
    same_bits(flat(ld.load(tmp_path / "ours.safetensors").params), flat(half))


def test_second_decoder_may_be_absent_and_leftovers_may_be_there(pth, tmp_path):
    def change(tensors):
        for name in [n for n in tensors if n.startswith("dec_blocks2.")]:
            del tensors[name]
        tensors["prediction_head.weight"] = np.zeros((3, 3), np.float32)
        tensors["enc_blocks.0.attn.rope.cache"] = np.zeros(4, np.float32)

    _, params, meta = network_from_checkpoint(read_checkpoint(changed(pth, tmp_path, change)))
    params = flat(params)
    assert "2 not used (prediction_head.weight, enc_blocks.0.attn.rope.cache)" in meta["mapping"]
    assert meta["mapping"].endswith("; dec_blocks2 is a copy of dec_blocks")
    for name in params:
        if name.startswith("decoder/view2"):
            assert params[name].tobytes() == params[name.replace("view2", "view1")].tobytes()


def fail(source, tmp_path, capsys, *options):
    """The one sentence with which `convert` refuses; asserts that it wrote nothing."""
    target = tmp_path / "out" / "ours.safetensors"
    assert cli.main(["convert", str(source), str(target), *options]) == 2
    assert not target.exists() and not list(tmp_path.glob("out/*"))
    message = capsys.readouterr().err
    assert message.startswith("lunar-distill convert: ") and message.count("\n") == 1
    return message


def test_all_problems_of_the_tensors_are_told_at_once(pth, tmp_path, capsys):
    def change(tensors):
        del tensors["enc_norm.bias"]
        tensors["enc_blocks.0.attn.qkv.weight"] = np.zeros((16, 48), np.float32)
        tensors["dec_norm.bias"] = np.zeros((16, 1), np.float32)
        tensors["classifier.weight"] = np.zeros((2, 2), np.float32)
        tensors["enc_norm.weight.extra"] = np.zeros(2, np.float32)
        tensors["downstream_head3.dpt.head.0.weight"] = np.zeros((4, 8, 3, 3), np.float32)
        tensors["downstream_head1.dpt.scratch.layer_rn.0.weight"] = np.zeros((8, 4, 3, 3), "f4")

    message = fail(changed(pth, tmp_path, change), tmp_path, capsys)
    for expected in (
        "(7 problems)",
        "enc_norm.bias: missing",
        "enc_blocks.0.attn.qkv.weight (16, 48): expected the shape (48, 16)",
        "dec_norm.bias (16, 1): expected the shape (16,)",
        "classifier.weight (2, 2): no rules match",
        "enc_norm.weight.extra (2,): no rules match",
        "downstream_head3.dpt.head.0.weight (4, 8, 3, 3): the architecture has no such tensor",
        "layer_rn.0.weight is another name of",
    ):
        assert expected in message


@pytest.mark.parametrize(
    "name, value, match",
    [
        ("head_type", "linear", "head_type='linear' (only 'catmlp+dpt' is supported)"),
        ("output_mode", "pts3d", "output_mode='pts3d' (only 'pts3d+desc<size>'"),
        ("depth_mode", ("exp", 0, 10), "depth_mode=('exp', 0, 10) (only ('exp', -inf, inf)"),
        ("desc_conf_mode", ("exp", 1, math.inf), "desc_conf_mode=('exp', 1, inf)"),
        ("pos_embed", "cosine", "pos_embed='cosine' (only 'RoPE<base>'"),
        ("enc_depth", 2**20, "enc_depth=1048576 but 1 blocks"),
        ("patch_embed_cls", "Mine", "patch_embed_cls='Mine'"),
        ("enc_num_heads", 3, "gives heads of 5.33333 channels"),
    ],
)
def test_options_that_the_network_lacks_are_named(pth, tmp_path, capsys, name, value, match):
    arguments = {**reference_arguments(TINY), name: value}
    args = {"model": format_model_string(arguments)}
    assert match in fail(changed(pth, tmp_path, lambda t: None, args), tmp_path, capsys)


def test_other_kinds_of_input_are_refused_in_one_sentence(pth, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "There is no model" in fail(tmp_path / "absent", tmp_path, capsys)
    assert "holds no finished training" in fail(tmp_path / "empty", tmp_path, capsys)
    write_hugging_face(tmp_path / "hub", {"w": np.zeros(3, np.float32)}, {})
    (tmp_path / "hub" / "config.json").unlink()
    assert "has no config.json" in fail(tmp_path / "hub", tmp_path, capsys)
    (tmp_path / "cut.pth").write_bytes(pth.read_bytes()[:5000])
    assert "no end-of-archive record" in fail(tmp_path / "cut.pth", tmp_path, capsys)
    system = b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR."
    (tmp_path / "evil.pth").write_bytes(system)
    assert "is a plain pickle" in fail(tmp_path / "evil.pth", tmp_path, capsys)
    lora = {"enc_blocks.0.attn.qkv.lora_A.weight": np.zeros((4, 16), np.float32)}
    write_pth(tmp_path / "lora.pth", lora, {})
    assert "is an adapter" in fail(tmp_path / "lora.pth", tmp_path, capsys)
    flipped = bytearray(pth.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "flipped.pth").write_bytes(flipped)
    assert "checksum" in fail(tmp_path / "flipped.pth", tmp_path, capsys)


def test_networks_beyond_the_reference_do_not_go_to_torch(tmp_path, capsys):
    ld.save(ld.build("moonlet-student"), tmp_path / "student.safetensors")
    message = fail(tmp_path / "student.safetensors", tmp_path, capsys, "--to", "torch")
    for field in ("encoder.stem (24, 48, 64)", "encoder.grid True", "head.plane True"):
        assert f"no {field}" in message
    for field in ("encoder.patch 8", "decoder.rotary_cross False", "head.desc_fine True"):
        assert f"no {field}" in message


@pytest.mark.parametrize(
    "change, field",
    [
        ({"decoder": DecoderConfig(16, 2, 2, 1.0)}, "encoder.mlp_ratio 4.0 beside decoder.mlp_rat"),
        ({"rope_base": 10.5}, "rope_base 10.5"),
        ({"head": dataclasses.replace(TINY.head, hooks=(0, 1, 1, 1))}, "head.hooks (0, 1, 1, 1)"),
        ({"head": dataclasses.replace(TINY.head, desc_ratio=0.5)}, "head.desc_ratio 0.5"),
    ],
)
def test_every_field_beyond_the_reference_is_named(change, field):
    with pytest.raises(InputError, match=re.escape(field)):
        reference_arguments(dataclasses.replace(TINY, **change))


def test_students_that_the_reference_can_express_go_there_and_back(tmp_path, capsys):
    """Narrow, shallow, one mlp_ratio of 1: decoder and heads have the reference's names."""
    head = dataclasses.replace(TINY.head, hooks=(0, 1, 1, 2), two_confs=False)
    student = ld.build(
        dataclasses.replace(
            TINY,
            encoder=EncoderConfig(16, 1, 2, 1.0),
            decoder=DecoderConfig(16, 2, 2, 1.0),
            head=head,
            keep_unused=False,
        )
    )
    meta = {"licence": "mine", "training_size": "96x128"}
    ld.save(student.replace(meta=meta), tmp_path / "student.safetensors")
    source, target = str(tmp_path / "student.safetensors"), tmp_path / "back.pth"
    assert cli.main(["convert", source, str(target), "--to", "torch"]) == 0
    assert (
        "Note: decoder.depth is 2: the public head factory asserts more" in capsys.readouterr().out
    )
    checkpoint = read_checkpoint(target)
    assert checkpoint.model_string is not None and "mlp_ratio=1.0" in checkpoint.model_string
    assert "img_size=(96, 128)" in checkpoint.model_string
    assert checkpoint.args["licence"] == "mine"
    assert checkpoint.tensors["dec_blocks2.1.mlp.fc1.weight"].shape == (16, 16)
    config, params, again = network_from_checkpoint(checkpoint)
    assert config == dataclasses.replace(
        student.config, head=dataclasses.replace(head, hooks=()), name="mast3r"
    )
    assert again["training_size"] == "96x128"
    same_bits(flat(params), flat(student.params))


@pytest.mark.parametrize("target", ["back.pth", "back"])
def test_students_with_another_encoder_go_there_and_back(target, tmp_path, capsys):
    """By the names of the paper's code; what they are stands in the file in our words."""
    config = StereoConfig(
        name="little",
        encoder=AdaptedEncoderConfig(ViTConfig(16, 1, 2, patch=14, grid=2), width=16),
        decoder=DecoderConfig(16, 2, 2, 1.0),
        head=TINY.head,
    )
    with pytest.warns(UserWarning, match="starts with a random encoder"):
        student = ld.build(config).replace(meta={"licence": "mine", "training_size": "96x96"})
    ld.save(student, tmp_path / "student.safetensors")
    source, out = str(tmp_path / "student.safetensors"), tmp_path / target
    assert cli.main(["convert", source, str(out), "--to", "torch"]) == 0
    printed = capsys.readouterr().out
    assert (
        "encoder.pixels is 'imagenet'" in printed and "resample the picture by 14 / 16" in printed
    )
    tensors = read_checkpoint(out).tensors
    assert tensors["dec_blocks2.1.cross_attn.projq.weight"].shape == (16, 16)
    assert tensors["downstream_head1.head_local_features.fc1.weight"].shape == (128, 32)
    assert "tiny_vit.vit.blocks.0.attn.qkv.weight" in tensors
    again = ld.load(out)
    assert again.config == config
    assert (again.meta["licence"], again.meta["training_size"]) == ("mine", "96x96")
    same_bits(flat(again.params), flat(student.params))


def test_the_teacher_s_arguments_are_the_released_ones():
    text = format_model_string(reference_arguments(architecture("mast3r")))
    assert "output_mode='pts3d+desc24'" in text and "depth_mode=('exp', -inf, inf)" in text
