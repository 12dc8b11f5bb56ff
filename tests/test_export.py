"""Exported files say the same as the model, and nothing appears that does not."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import lunar_distill_jax as ld
from lunar_distill_jax import cli
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.export import graph
from lunar_distill_jax.export.stablehlo import PLATFORMS, write_stablehlo
from lunar_distill_jax.models.zoo import architecture

HEIGHT, WIDTH = 32, 48


def pictures(pairs):
    return np.random.default_rng(1).integers(0, 256, (2, pairs, HEIGHT, WIDTH, 3), np.uint8)


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", None)
            if inner is not None:
                yield from primitives(inner)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    stereo = ld.build("test")
    path = tmp_path_factory.mktemp("export") / "test.stablehlo"
    return stereo, path, write_stablehlo(stereo, path, HEIGHT, WIDTH)


def test_a_stablehlo_file_takes_any_number_of_photographs_in_bytes(written):
    stereo, path, (error, name) = written
    assert error < 1e-5 and name in graph.OUTPUTS  # seen: 1e-6
    exported = export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == PLATFORMS
    for pairs in (1, 3):
        images = pictures(pairs)
        found = exported.call(*images)
        views = ld.predict(stereo, *(images.astype(np.float32) / 127.5 - 1))
        expected = [getattr(view, field) for view in views for field in graph.FIELDS]
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))  # seen: 1e-6


def test_a_stablehlo_file_says_what_it_is(written):
    stereo, path, _ = written
    facts = json.loads(path.with_name(path.name + ".json").read_text())
    assert facts["size"] == "32x48" and facts["name"] == "test"
    assert facts["order of outputs"].split(", ") == list(graph.OUTPUTS)
    assert json.loads(facts["architecture"])["decoder"]["depth"] == stereo.config.decoder.depth


def test_a_straightened_graph_is_the_same_without_calls_and_choices():
    own = graph.network_graph(ld.build("test"))
    images = pictures(1)
    plain = graph.straightened(own, images[0].shape)
    for a, b in zip(jax.jit(plain)(*images), jax.jit(own)(*images), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * float(jnp.abs(b).max()))  # seen: 0
    left = set(primitives(jax.make_jaxpr(plain)(*images).jaxpr))
    assert "custom_vjp_call" in set(primitives(jax.make_jaxpr(own)(*images).jaxpr))
    assert not left & {
        "cond",
        "platform_index",
        "custom_vjp_call",
        "custom_jvp_call",
        "pjit",
        "jit",
    }


def test_an_export_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match="nothing was written"):
        write_stablehlo(ld.build("test"), tmp_path / "a.stablehlo", HEIGHT, WIDTH)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", ["nan", "far", "shape"])
def test_a_wrong_output_is_named(wrong):
    expected = [np.ones((1, 2, 2)) for _ in graph.OUTPUTS]
    found = [a.copy() for a in expected]
    assert graph.worst_error(found, expected)[0] == 0
    at = graph.OUTPUTS.index("desc_2")
    if wrong == "shape":
        found[at] = found[at][:, 1:]
    else:
        found[at][0, 0, 0] = np.nan if wrong == "nan" else 1.001
    with pytest.raises(InputError, match="desc_2"):
        graph.worst_error(found, expected)


def test_the_photographs_are_of_the_moon():
    one, two = graph.photographs(HEIGHT, WIDTH)
    assert one.shape == two.shape == (1, HEIGHT, WIDTH, 3) and one.dtype == np.uint8
    assert one.std() > 5 and not np.array_equal(one, two)


def test_torch_is_the_same_as_convert(tmp_path, capsys):
    model = tmp_path / "test.safetensors"
    ld.save(ld.build("test"), model)
    assert cli.main(["export", str(model), str(tmp_path / "a.pth"), "--format", "torch"]) == 0
    assert cli.main(["convert", str(model), str(tmp_path / "b.pth"), "--to", "torch"]) == 0
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["moonlet-small", "OLD", "--format", "onnx"], "exists already"),
        (["moonlet-small", "new", "--format", "torch", "--size", "32x32"], "leave it out"),
        (["moonlet-small", "new", "--format", "onnx"], "make export"),
        (["moonlet-small", "new", "--format", "stablehlo", "--size", "30x32"], "multiples of 16"),
        (["SILENT", "new", "--format", "stablehlo"], "give --size HxW"),
        (["nothing", "new", "--format", "stablehlo"], "nothing"),
    ],
)
def test_wrong_input_is_one_sentence(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)  # as if it were not installed
    old, silent = pathlib.Path("old"), pathlib.Path("silent.safetensors")
    old.write_text("mine")
    ld.save(ld.build("test"), silent)
    places = {"OLD": str(old), "SILENT": str(silent)}
    assert cli.main(["export", *(places.get(a, a) for a in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err
    assert {p.name for p in tmp_path.iterdir()} == {old.name, silent.name}
    assert old.read_text() == "mine"


def test_a_model_that_no_such_file_holds_goes_to_torch_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lunar_distill_jax.cli.export.MOST_BYTES", 1000)
    assert cli.main(["export", "moonlet-small", f"{tmp_path}/a", "--format", "stablehlo"]) == 2
    assert "GB of parameters" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_embedded_student_can_be_exported_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["moonlet-small", "a.stablehlo", "--format", "stablehlo", "--size", "32x32"]
    assert cli.main(["export", *arguments]) == 0
    assert "worst error" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.stablehlo", "a.stablehlo.json"]
    assert architecture("moonlet-student") == ld.load("moonlet-small").config
