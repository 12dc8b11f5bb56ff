"""The writer of PyTorch checkpoints: bit-equal round trips, aliases, equal bytes, torch itself."""

import argparse
import json
import math
import pathlib
import struct

import ml_dtypes
import numpy as np
import pytest

from lunar_distill_jax.convert.torch_file import SAFETENSORS_DTYPES as DTYPES
from lunar_distill_jax.convert.torch_file import read_checkpoint, require_checksums
from lunar_distill_jax.convert.torch_write import write_hugging_face, write_pth
from lunar_distill_jax.errors import InputError

GOLDENS = pathlib.Path(__file__).parents[1].parent / "shared" / "goldens"
ARGS = {
    "model": "AsymmetricMASt3R(enc_depth=2)",
    "lr": 1e-3,
    "none": None,
    "flags": [True, False, -1, 2**31, -(2**62), -math.inf],
    "nested": {"a": ("é", ()), "b": [], "c": {}},
}


def make_tensors():
    rng = np.random.default_rng(0)
    grid = rng.integers(-100, 100, (5, 7))
    tensors = {f"all.{name}": grid.astype(dtype) for name, dtype in DTYPES.items()}
    base = rng.standard_normal((4, 6)).astype(np.float32)
    tensors |= {
        "base": base,
        "alias": base[:],
        "transposed": base.T,
        "flipped": base[::-1, ::2],
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "empty_too": np.zeros((0, 3), np.float32),
        "bits": np.array([0x7FC00001, 0xFFFFFFFF, 1], np.uint32).view(np.float32),
    }
    return tensors


def check_same(got, want):
    assert set(got) == set(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        assert got[name].tobytes() == value.tobytes(), name


def test_pth_round_trip(tmp_path):
    tensors = make_tensors()
    write_pth(tmp_path / "new" / "m.pth", tensors, ARGS)
    checkpoint = read_checkpoint(tmp_path / "new" / "m.pth")
    check_same(checkpoint.tensors, tensors)
    assert list(checkpoint.tensors) == list(tensors)
    assert checkpoint.args == ARGS and checkpoint.model_string == ARGS["model"]
    assert np.shares_memory(checkpoint.tensors["alias"], checkpoint.tensors["base"])
    assert not np.shares_memory(checkpoint.tensors["transposed"], checkpoint.tensors["base"])
    assert all(t.ctypes.data % 64 == 0 for t in checkpoint.tensors.values() if t.size)
    require_checksums(checkpoint.path)


def test_hugging_face_round_trip(tmp_path):
    tensors = make_tensors()
    config = {"enc_depth": 2, "depth_mode": ("exp", -math.inf, math.inf)}
    write_hugging_face(tmp_path / "hub", tensors, config, {"license": "cc-by-nc-sa-4.0"})
    checkpoint = read_checkpoint(tmp_path / "hub")
    check_same(checkpoint.tensors, tensors)
    assert checkpoint.config == {"enc_depth": 2, "depth_mode": ["exp", -math.inf, math.inf]}
    assert '"exp",\n    -Infinity,\n    Infinity' in (tmp_path / "hub" / "config.json").read_text()
    raw = (tmp_path / "hub" / "model.safetensors").read_bytes()
    (size,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + size])
    # The first name in alphabetical order stays, as in save_pretrained.
    want = {"format": "pt", "license": "cc-by-nc-sa-4.0", "base": "alias"}
    assert header["__metadata__"] == want and "base" not in header and size % 8 == 0


def test_safetensors_library_reads_what_we_write(tmp_path):
    numpy_io = pytest.importorskip("safetensors.numpy")
    tensors = make_tensors()
    del tensors["alias"]
    write_hugging_face(tmp_path / "hub", tensors, {})
    check_same(numpy_io.load_file(tmp_path / "hub" / "model.safetensors"), tensors)


def test_equal_input_gives_equal_bytes(tmp_path):
    for i in range(2):
        write_pth(tmp_path / f"{i}.pth", make_tensors(), ARGS)
        write_hugging_face(tmp_path / f"{i}", make_tensors(), {"a": 1})
    assert (tmp_path / "0.pth").read_bytes() == (tmp_path / "1.pth").read_bytes()
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


@pytest.mark.parametrize(
    "tensors, args, match",
    [
        ({"w": np.zeros(2, np.complex64)}, {}, "w has the type complex64"),
        ({"w": np.zeros(2, ">f4")}, {}, "w has the type >f4"),
        ({"w": np.zeros(2, np.float32)}, {"f": object()}, "training argument is a object"),
        ({"w": np.zeros(2, np.float32)}, {"f": 2**80}, "training argument is a int"),
    ],
)
def test_what_has_no_place_is_refused_and_nothing_is_left(tmp_path, tensors, args, match):
    with pytest.raises(InputError, match=match):
        write_pth(tmp_path / "m.pth", tensors, args)
    if not args:
        with pytest.raises(InputError, match=match):
            write_hugging_face(tmp_path / "hub", tensors, {})
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        write_hugging_face(tmp_path, {"w": np.zeros(2, np.float32)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["note"]


@pytest.mark.skipif(not GOLDENS.is_dir(), reason="../shared/goldens is absent")
def test_golden_teacher_goes_out_and_comes_back(tmp_path):
    for source in (GOLDENS / "teacher_A", GOLDENS / "teacher_A" / "tiny_teacher.pth"):
        checkpoint = read_checkpoint(source)
        out = tmp_path / source.stem
        write_pth(out.with_suffix(".pth"), checkpoint.tensors, checkpoint.args)
        write_hugging_face(out, checkpoint.tensors, checkpoint.config or {})
        check_same(read_checkpoint(out.with_suffix(".pth")).tensors, checkpoint.tensors)
        check_same(read_checkpoint(out).tensors, checkpoint.tensors)
    config = (GOLDENS / "teacher_A" / "config.json").read_text()
    assert (tmp_path / "teacher_A" / "config.json").read_text() == config
    sizes = [
        (folder / "teacher_A" / "model.safetensors").stat().st_size
        for folder in (GOLDENS, tmp_path)
    ]
    assert 0 < sizes[1] - sizes[0] < 64  # "format": "pt" is added, no alias is stored


@pytest.mark.slow
def test_torch_reads_what_we_write_and_we_read_what_it_writes(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = make_tensors()
    write_pth(tmp_path / "m.pth", tensors, ARGS)
    # torch's own restricted reader takes it too, if it may make the namespace of the arguments.
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = torch.load(tmp_path / "m.pth", weights_only=True)
    assert vars(loaded["args"]) == ARGS
    for name, value in tensors.items():
        got = loaded["model"][name]
        assert got.is_contiguous() and tuple(got.shape) == value.shape, name
        bits = got.contiguous().view(-1).view(torch.uint8) if got.dim() else got.view(1)
        raw = bits.view(torch.uint8).numpy().tobytes()
        assert raw == np.ascontiguousarray(value).tobytes(), name
    assert loaded["model"]["alias"].data_ptr() == loaded["model"]["base"].data_ptr()

    half = torch.arange(12, dtype=torch.bfloat16).view(3, 4)
    mine = {
        "bf16": half,
        "transposed": half.t(),
        "window": half[1:, ::2],
        "expanded": torch.ones(1).expand(5),
        "parameter": torch.nn.Parameter(torch.eye(2)),
        "uint8": torch.arange(3, dtype=torch.uint8),
    }
    for protocol in (2, 4):
        torch.save({"state_dict": mine}, tmp_path / "t.pth", pickle_protocol=protocol)
        got = read_checkpoint(tmp_path / "t.pth").tensors
        for name, value in mine.items():
            want = value.detach().float().numpy()
            np.testing.assert_array_equal(got[name].astype(np.float32), want, err_msg=name)
        assert got["bf16"].dtype == ml_dtypes.bfloat16
        assert np.shares_memory(got["bf16"], got["transposed"])
    torch.save(mine, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="torch < 1.6"):
        read_checkpoint(tmp_path / "old.pth")
