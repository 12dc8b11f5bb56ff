"""The reader of PyTorch checkpoints: what it reads, on the goldens and on files made by hand."""

import json
import pathlib
import sys

import ml_dtypes
import numpy as np
import pytest
import torch_archives as ta

from lunar_distill_jax.convert import torch_file
from lunar_distill_jax.convert.model_string import architecture_arguments
from lunar_distill_jax.convert.torch_file import read_checkpoint, require_checksums
from lunar_distill_jax.errors import InputError

GOLDENS = pathlib.Path(__file__).parents[1].parent / "shared" / "goldens"
SEEDS = {"A": 11, "B": 12, "C": 13}
needs_goldens = pytest.mark.skipif(not GOLDENS.is_dir(), reason="../shared/goldens is absent")


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def recipe():
    sys.path.insert(0, str(GOLDENS))
    try:
        import recipe
    finally:
        sys.path.remove(str(GOLDENS))
    return recipe


@needs_goldens
@pytest.mark.parametrize("model", "ABC")
def test_goldens_have_the_values_of_their_recipe(model, recipe):
    checkpoint = read_checkpoint(GOLDENS / f"teacher_{model}" / "tiny_teacher.pth")
    assert len(checkpoint.tensors) > 600
    for name, value in checkpoint.tensors.items():
        want = recipe.recipe_array(name, value.shape, SEEDS[model], fp16_round=model == "A")
        assert value.dtype == (np.float16 if model == "A" else np.float32), name
        np.testing.assert_array_equal(value.astype(np.float32), want, err_msg=name)
    assert checkpoint.args["seed"] == SEEDS[model]
    require_checksums(checkpoint.path)


@needs_goldens
def test_both_layouts_of_one_teacher_are_the_same():
    folder = GOLDENS / "teacher_A"
    archive, hub = read_checkpoint(folder / "tiny_teacher.pth"), read_checkpoint(folder)
    assert set(archive.tensors) == set(hub.tensors)
    assert all(same_bits(archive.tensors[name], hub.tensors[name]) for name in hub.tensors)
    assert architecture_arguments(archive) == architecture_arguments(hub)
    alone = read_checkpoint(folder / "model.safetensors")
    assert set(alone.tensors) == set(hub.tensors)
    with pytest.raises(InputError, match="does not say its architecture"):
        architecture_arguments(alone)


@needs_goldens
@pytest.mark.parametrize("layout", ["tiny_teacher.pth", "."])
def test_aliases_share_memory_and_the_file_is_mapped(layout):
    tensors = read_checkpoint(GOLDENS / "teacher_A" / layout).tensors
    alias = "downstream_head1.dpt.scratch.layer_rn.2.weight"
    first = tensors["downstream_head1.dpt.scratch.layer3_rn.weight"]
    assert np.shares_memory(tensors[alias], first)
    assert not any(t.flags.owndata or t.flags.writeable for t in tensors.values())


@pytest.mark.parametrize(
    "kind, dtype",
    [
        ("Half", np.float16),
        ("BFloat16", ml_dtypes.bfloat16),
        ("Float", np.float32),
        ("Double", np.float64),
        ("Long", np.int64),
        ("Int", np.int32),
        ("Short", np.int16),
        ("Char", np.int8),
        ("Byte", np.uint8),
        ("Bool", np.bool_),
    ],
)
def test_dtypes(tmp_path, kind, dtype):
    values = np.arange(6).astype(dtype)
    pickled = ta.dictionary(x=ta.tensor(kind, "0", 6, 0, (2, 3), (3, 1)))
    path = ta.write_archive(tmp_path / "m.pth", pickled, [values])
    assert same_bits(read_checkpoint(path).tensors["x"], values.reshape(2, 3))


def test_views_of_one_storage_keep_offsets_strides_and_sharing(tmp_path):
    base = np.arange(24, dtype=np.float32)
    views = {
        "whole": (0, (4, 6), (6, 1)),
        "transposed": (0, (6, 4), (1, 6)),
        "column": (2, (4,), (6,)),
        "repeated": (5, (3, 2), (0, 1)),
        "scalar": (23, (), ()),
        "empty": (24, (0, 7), (7, 1)),
        "odd_stride_of_a_single": (7, (1, 2), (2**62, 3)),
    }
    pickled = ta.dictionary(**{k: ta.tensor("Float", "0", 24, *v) for k, v in views.items()})
    tensors = read_checkpoint(ta.write_archive(tmp_path / "m.pth", pickled, [base])).tensors
    grid = base.reshape(4, 6)
    want = {
        "whole": grid,
        "transposed": grid.T,
        "column": grid[:, 2],
        "repeated": np.broadcast_to(base[5:7], (3, 2)),
        "scalar": base[23],
        "empty": np.empty((0, 7), np.float32),
        "odd_stride_of_a_single": base[[[7, 10]]],
    }
    for name, value in want.items():
        assert tensors[name].shape == views[name][1]
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)
    assert np.shares_memory(tensors["whole"], tensors["transposed"])


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", None])
def test_the_usual_places_of_a_state_dict(tmp_path, key):
    pickled = ta.dictionary(w=ta.tensor("Float", "0", 2, 0, (2,), (1,)))
    # torch hangs attributes on a state dict (BUILD), and training files hold much else.
    metadata = ta.dictionary(_metadata=ta.call("collections.OrderedDict"))
    pickled = ta.call("collections.OrderedDict") + pickled[1:] + metadata + b"b"
    if key:
        optimizer = ta.dictionary(state=ta.plain({0: [1.5, None, True, 2**40]}))
        pickled = ta.dictionary(epoch=ta.plain(3), optimizer=optimizer, **{key: pickled})
    path = ta.write_archive(tmp_path / "m.pth", pickled, [np.ones(2, np.float32)])
    assert read_checkpoint(path).tensors["w"].tolist() == [1, 1]


def test_parameters_typed_rebuilds_and_numpy_scalars(tmp_path):
    weight = ta.call(
        "torch._utils._rebuild_parameter",
        ta.tensor("Float", "0", 2, 0, (2,), (1,)),
        ta.plain(True),
        ta.call("collections.OrderedDict"),
    )
    other = ta.call(
        "torch._utils._rebuild_tensor_v3",
        ta.storage("torch.storage\nUntypedStorage", "0", 8),
        *(ta.plain(v) for v in (1, (3,), (1,), False, None)),
        b"ctorch\nfloat16\n",
    )
    size = ta.call("torch.Size", ta.plain((3, 4)))
    best = ta.plain({"a": np.float64(2.5)})[:-1]  # without the SETITEM: only the scalar's opcodes
    best = best[best.index(b"cnumpy") :]
    args = b"cargparse\nNamespace\n)\x81" + ta.dictionary(best=best, size=size) + b"b"
    pickled = ta.dictionary(model=ta.dictionary(w=weight, v=other), args=args)
    checkpoint = read_checkpoint(
        ta.write_archive(tmp_path / "m.pth", pickled, [np.array([1, 2], np.float32)])
    )
    assert checkpoint.tensors["w"].tolist() == [1, 2]
    want = np.array([1, 2], np.float32).view(np.float16)[1:4]
    assert same_bits(checkpoint.tensors["v"], want)
    assert checkpoint.args == {"best": 2.5, "size": (3, 4)}


@pytest.mark.parametrize(
    "content, match",
    [
        (b"", "is empty"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.rest", "torch < 1.6"),
        (b"\x80\x04\x95rest", "plain pickle"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x89PNG\r\n\x1a\nrest", "is not a PyTorch checkpoint"),
        (b"PK\x03\x04" + bytes(40), "it is cut"),
    ],
)
def test_other_files_say_what_they_are(tmp_path, content, match):
    path = tmp_path / "m.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"m.pth.*{match}"):
        read_checkpoint(path)


def test_absent_files_and_incomplete_folders(tmp_path):
    with pytest.raises(InputError, match=r"Cannot read .*nothing\.pth \(No such file"):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(InputError, match=r"has no config\.json"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        read_checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is an adapter"):
        read_checkpoint(tmp_path)


def test_adapters_are_refused_and_full_checkpoints_are_not(tmp_path):
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    name = "base_model.model.enc_blocks.0.attn.qkv.lora_A.weight"
    path = ta.write_safetensors(tmp_path / "m.safetensors", {name: one}, bytes(4))
    with pytest.raises(InputError, match=f"is an adapter .*{name}"):
        read_checkpoint(path)
    for adapter in ("lora_unet_x.lora_down.weight", "a.lora_B.default.weight", "a.hada_w1_a"):
        with pytest.raises(InputError, match="merge"):
            torch_file.require_full_checkpoint([adapter], "m.pth")
    torch_file.require_full_checkpoint(["enc_blocks.0.attn.qkv.weight", "explora.weight"], "m.pth")


def test_a_flipped_bit_in_a_weight_is_found(tmp_path):
    pickled = ta.dictionary(w=ta.tensor("Float", "0", 64, 0, (64,), (1,)))
    path = ta.write_archive(tmp_path / "m.pth", pickled, [np.full(64, 7, np.float32)])
    require_checksums(path)
    data = bytearray(path.read_bytes())
    data[data.index(np.full(64, 7, np.float32).tobytes()) + 9] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="checksum of its member 'm/data/0' is wrong"):
        require_checksums(path)


def test_safetensors_header_of_every_type(tmp_path):
    header, body = {}, b""
    for name, dtype in torch_file.SAFETENSORS_DTYPES.items():
        data = np.arange(4).astype(dtype).tobytes()
        header[name] = {
            "dtype": name,
            "shape": [2, 2],
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    header["__metadata__"] = {"format": "pt", "alias": "BF16"}
    path = ta.write_safetensors(tmp_path / "m.safetensors", json.dumps(header) + "   ", body)
    tensors = read_checkpoint(path).tensors
    assert np.shares_memory(tensors.pop("alias"), tensors["BF16"])
    for name, dtype in torch_file.SAFETENSORS_DTYPES.items():
        assert same_bits(tensors[name], np.arange(4).astype(dtype).reshape(2, 2))
