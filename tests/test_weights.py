"""The weight file: what is saved comes back; one that cannot be used is named in one sentence."""

import json

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny

import lunar_distill_jax as ld
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.weights import FORMAT, read_weights, write_weights


@pytest.fixture(scope="module")
def stereo():
    meta = {"licence": "Apache-2.0", "source": "a test", "note": "größer\nals zwei Zeilen"}
    return ld.build(tiny.CONFIG, 3).replace(meta=meta)


@pytest.fixture
def saved(stereo, tmp_path):
    ld.save(stereo, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_what_is_saved_comes_back(stereo, saved):
    loaded = ld.load(saved)
    assert loaded.config == stereo.config and loaded.meta == stereo.meta
    assert jax.tree.structure(loaded.params) == jax.tree.structure(stereo.params)
    for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(stereo.params), strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a, b)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_arrays_that_are_not_contiguous_are_saved_by_value(stereo, saved):
    turned = jax.tree.map(lambda a: np.asfortranarray(a), stereo.params)
    ld.save(stereo.replace(params=turned), saved)
    kernel = ld.load(saved).params["encoder"]["block0"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(
        kernel, stereo.params["encoder"]["block0"]["mlp"]["fc1"]["kernel"]
    )


def test_saving_replaces_and_a_failure_keeps_the_old_file(stereo, saved):
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        ld.save(stereo.replace(meta={"licence": 3}), saved)  # not text
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("length", [0, 7, 8, 500, -1])
def test_file_cut_short(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    refused(saved, "is not a complete safetensors file", "copy it again")


def test_file_of_something_else(tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, foreign)
    refused(foreign, f"has format None, expected {FORMAT!r}")
    foreign.write_text("weights")
    refused(foreign, "is not a complete safetensors file")


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (None, "does not describe an architecture"),
        ("{", "does not describe an architecture"),
        ("3", "does not describe an architecture"),
        (json.dumps({"encoder": 3}), "does not describe an architecture"),
        (json.dumps({"encoder": {"depht": 3}}), "Unknown key depht in encoder"),
        (json.dumps({"decoder": {"depth": 0}}), "decoder.depth is 0"),
    ],
)
def test_header_that_describes_no_network(architecture, message, tmp_path):
    header = {"format": FORMAT} | ({"architecture": architecture} if architecture else {})
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path, metadata=header)
    refused(path, message)


def test_arrays_that_are_not_those_of_the_architecture(stereo, tmp_path):
    """All problems at once, by name, with both shapes."""
    flat = flax.traverse_util.flatten_dict(stereo.params, sep="/")
    del flat["decoder/norm/bias"]
    flat["encoder/norm/scale"] = np.zeros((4, 4), np.float32)
    flat["classifier/kernel"] = np.zeros(3, np.float32)
    path = tmp_path / "net.safetensors"
    write_weights(path, stereo.config, flax.traverse_util.unflatten_dict(flat, sep="/"), {})
    refused(
        path,
        "does not hold the network that its header describes (3 problems)",
        "encoder/norm/scale (4, 4): expected the shape (16,)",
        "classifier/kernel (3,): the architecture has none",
        "decoder/norm/bias: missing",
    )


def test_the_embedded_student_is_seven_times_smaller_and_says_where_it_comes_from():
    teacher, small = ld.load("moonlet"), ld.load("moonlet-small")
    counts = [sum(a.size for a in jax.tree.leaves(m.params)) for m in (teacher, small)]
    assert counts == [4_315_920, 611_432]
    assert small.meta["source"].startswith("distilled from moonlet") and small.turns == 4
    assert small.config == ld.build("moonlet-student", seed=0).config


def test_missing_files_and_names(tmp_path):
    refused(
        tmp_path / "none.safetensors",
        "There is no model",
        "an embedded model (moonlet, moonlet-small)",
    )
    refused(tmp_path, "holds no finished training (student.safetensors is absent)")
    refused("moonlet-student", "is an architecture without trained weights")
    with pytest.raises(InputError, match="There is no weight file"):
        read_weights(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="did you mean 'moonlet-student'?"):
        ld.build("moonlet-studend")
    assert list(tmp_path.iterdir()) == []


def test_output_below_a_file(stereo, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="Cannot write to the output folder"):
        ld.save(stereo, tmp_path / "file/out/net.safetensors")
    assert (tmp_path / "file").read_text() == "mine"


def refused(source, *messages):
    with pytest.raises(InputError) as error:
        ld.load(source)
    text = str(error.value)
    assert all(message in text for message in messages), text
    assert "\n" not in text and text.endswith((".", "?"))
