"""Hostile and damaged checkpoints: one clear `InputError`, quickly, and nothing is executed."""

import json
import os
import pickle
import struct
import time
import zipfile

import numpy as np
import pytest
import torch_archives as ta
from hypothesis import given, settings
from hypothesis import strategies as st

from lunar_distill_jax.convert.torch_file import read_checkpoint
from lunar_distill_jax.convert.torch_write import write_hugging_face, write_pth
from lunar_distill_jax.errors import InputError

GOOD = ta.tensor("Float", "0", 6, 0, (2, 3), (3, 1))
SIX = np.arange(6, dtype=np.float32)


def refused(path, match=None):
    """Asserts that `path` is refused, by name and soon; returns the message."""
    start = time.process_time()
    with pytest.raises(InputError, match=match) as caught:
        read_checkpoint(path)
    assert time.process_time() - start < 20
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


class Shell:
    """Unpickled by `pickle`, it would create the file `mark`."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def hostile_pickles(mark):
    command = ta.plain(f"touch {mark}")
    for protocol in (2, 4):  # GLOBAL and REDUCE; STACK_GLOBAL, FRAME and MEMOIZE
        body = pickle.dumps(Shell(mark), protocol=protocol)[2:-1]
        yield f"reduce, protocol {protocol}", body
        yield f"nested, protocol {protocol}", ta.dictionary(model=ta.dictionary(w=body, v=GOOD))
    yield "inst", b"(" + command + b"ios\nsystem\n"
    yield "obj", b"(cos\nsystem\n" + command + b"o"
    yield "in the arguments", ta.dictionary(model=ta.dictionary(w=GOOD), args=b"cos\nsystem\n")
    yield "state of a namespace", b"cargparse\nNamespace\n)\x81cos\nsystem\nb"
    yield "newobj", b"cos\nsystem\n" + command + b"\x85\x81"
    yield "hook of a tensor", GOOD[:-2] + b"0cos\nsystem\ntR"


def test_nothing_is_executed_and_the_global_is_named(tmp_path):
    mark = tmp_path / "executed"
    for i, (name, body) in enumerate(hostile_pickles(mark)):
        path = ta.write_archive(tmp_path / f"X{i}.pth", body, [SIX])
        message = refused(path, r"asks for the global (os|posix|nt)\.system, .* was not executed")
        assert not mark.exists(), name
        assert message.startswith(str(path))


@pytest.mark.parametrize(
    "name",
    [
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "torch._utils._rebuild_tensor_v2.__globals__",
        "numpy.load",
        "argparse.FileType",
        "__main__.x",
        "codecs.encode",
        "torch.storage._load_from_bytes",
    ],
)
def test_the_list_of_globals_is_closed(tmp_path, name):
    path = ta.write_archive(tmp_path / "X.pth", ta.call(name, ta.plain("x")))
    refused(path, f"asks for the global {name}, ")


def test_names_from_a_file_cannot_write_to_the_terminal(tmp_path):
    body = ta.plain("os\n\x1b[2J") + ta.plain("system") + b"\x93"
    refused(ta.write_archive(tmp_path / "X.pth", body), r"asks for the global os\?\?\[2J\.system,")


@pytest.mark.parametrize(
    "offset, size, stride",
    [
        (0, (7,), (1,)),
        (1, (2, 3), (3, 1)),
        (0, (2, 3), (4, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2, -3), (3, 1)),
        (2**62, (1,), (1,)),
        (0, (2**62, 2), (2**62, 1)),
        (0, (2**40,), (0,)),
        (0, (3,) * 40, (0,) * 40),
        (0, (2**31,) * 8, (0,) * 8),
        (0, (0, 2**63), (1, 1)),
        (0, (2, 3), (3,)),
        (0.0, (2,), (1,)),
        (0, (True,), (1,)),
        (0, "ab", (1, 1)),
        (None, (2,), (1,)),
    ],
)
def test_malicious_strides(tmp_path, offset, size, stride):
    pickled = ta.dictionary(w=ta.tensor("Float", "0", 6, offset, size, stride))
    refused(ta.write_archive(tmp_path / "m.pth", pickled, [SIX]))


@pytest.mark.parametrize(
    "body, match",
    [
        (ta.tensor("Float", "0", 2**40, 0, (2,), (1,)), "declares 1099511627776 numbers"),
        (ta.tensor("Float", "1", 6, 0, (2,), (1,)), "no bytes for storage '1'"),
        (ta.tensor("Float", "../../../etc/passwd", 6, 0, (2,), (1,)), "no bytes for storage"),
        (ta.tensor("Float", "0/../0", 6, 0, (2,), (1,)), "no bytes for storage"),
        (ta.plain(1 << 70), "64 bits"),
        (ta.plain([1, 2]), "holds a list"),
        (ta.dictionary(), "no dictionary of tensors"),
        (ta.dictionary(model=ta.plain("x")), "such as model"),
        (ta.dictionary(model=ta.dictionary(w=GOOD, step=ta.plain(3))), "such as step"),
        (b"}(" + ta.plain((1, 2)) + GOOD + b"u", "key is a tuple"),
        (b"r\xff\xff\xff\x7f", "damaged"),
        (b"N" + b"r\xff\xff\xff\x7f", "holds a NoneType"),  # a memo of 2**31 entries
        (b"\x8d" + struct.pack("<Q", 2**62) + b"x", "damaged"),
        (b"\x96" + struct.pack("<Q", 2**62) + b"x", "damaged"),
        (b"\x8b\xff\xff\xff\x7f\x00", "damaged"),
        (b"0", "damaged"),
        (b"t", "damaged"),
        (b"R", "takes what it did not give"),
        (b"h\x07", "damaged"),
        (b"}" + ta.plain({"a": 1}) + b"b", "sets the state of a dict"),
        (b"\x82\x01", "EXT1"),
        (b"I" + b"9" * 10_000 + b"\n", "damaged"),
        (b"\x8f", "EMPTY_SET"),
    ],
)
def test_damaged_pickles(tmp_path, body, match):
    refused(ta.write_archive(tmp_path / "m.pth", body, [SIX]), match)


def test_pickles_that_would_never_end(tmp_path):
    doubling = b"N\x85q\x00" + b"0h\x00h\x00\x86q\x00" * 200  # a tuple of 2**200 leaves
    namespace = b"cargparse\nNamespace\n)\x81"
    doubled_list = b"]q\x00" + b"0](h\x00h\x00eq\x00" * 60
    bodies = {
        "key": (b"}" + doubling + b"Ns", "key is a tuple"),
        "args": (
            ta.dictionary(
                model=ta.dictionary(w=GOOD),
                args=namespace + b"}" + ta.plain("a") + doubling + b"sb",
            ),
            "without end",
        ),
        "args_list": (
            ta.dictionary(
                model=ta.dictionary(w=GOOD),
                args=namespace + b"}" + ta.plain("a") + doubled_list + b"sb",
            ),
            "without end",
        ),
        "itself": (
            ta.dictionary(
                model=ta.dictionary(w=GOOD), args=namespace + b"}q\1" + ta.plain("a") + b"h\1sb"
            ),
            "without end",
        ),
        "deep": (b"(" * 100_000 + b"]" * 100_000, "damaged"),
        "nested": (b"]" * 100_000 + b"a" * 99_999, "holds a list"),
        "many": (b"N0" * 1_100_000, "more than 2000000 pickle instructions"),
        "long": (b"N0" * (2**23), "too large for a list of tensors"),
    }
    for name, (body, match) in bodies.items():
        refused(ta.write_archive(tmp_path / f"{name}.pth", body, [SIX]), match)


def small_files(tmp_path):
    """A `.pth`, the same without checksums, and a `.safetensors`, with aliases; bytes by name."""
    tensors = {f"enc_blocks.{i}.w": np.full((3, 5), i, np.float32) for i in range(4)}
    tensors |= {"half": np.ones(3, np.float16), "alias": tensors["enc_blocks.0.w"]}
    write_pth(tmp_path / "m.pth", tensors, {"model": "AsymmetricMASt3R()", "lr": 0.1})
    write_hugging_face(tmp_path / "hub", tensors, {"enc_depth": 1})
    archive = (tmp_path / "m.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "m.pth") as z:  # so that flips reach the pickle
        crc = struct.pack("<I", z.getinfo("archive/data.pkl").CRC)
    return {
        "m.pth": archive,
        "no_crc.pth": archive.replace(crc, bytes(4)),
        "m.safetensors": (tmp_path / "hub" / "model.safetensors").read_bytes(),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return small_files(tmp_path_factory.mktemp("files"))


def survives(path, data) -> bool:
    """Reads hostile bytes; returns whether they were accepted. Only InputError may come out."""
    path.write_bytes(data)
    try:
        tensors = read_checkpoint(path).tensors
    except InputError:
        return False
    for tensor in tensors.values():
        tensor.tobytes()  # every byte of every view can be read
    return True


def test_a_cut_file_is_refused_at_every_length(tmp_path, files):
    for name, data in files.items():
        for length in range(0, len(data), 7 if "pth" in name else 1):
            assert not survives(tmp_path / name, data[:length]), (name, length)
        assert survives(tmp_path / name, data)


def damaged(files):
    """Strategy: (name, bytes) with a few bytes replaced, dropped or doubled, and maybe cut."""
    edit = st.tuples(st.integers(0, 2**16), st.integers(0, 255), st.sampled_from("=^-+#"))

    def apply(name, edits, keep):
        data = bytearray(files[name])
        for at, value, how in edits:
            at %= len(data)
            if how == "=":
                data[at] = value
            elif how == "^":
                data[at] ^= 1 << (value % 8)
            elif how == "-":
                del data[at : at + value % 9]
            elif how == "+":
                data[at:at] = data[at : at + value]
            else:
                data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF >> (value % 32))
            if not data:
                return name, b""
        return name, bytes(data[: max(1, round(len(data) * keep))])

    keep = st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1))
    return st.builds(apply, st.sampled_from(sorted(files)), st.lists(edit, max_size=6), keep)


def fuzz(tmp_path_factory, files, examples):
    folder = tmp_path_factory.mktemp("fuzz")

    @settings(max_examples=examples, deadline=20_000, database=None, derandomize=True)
    @given(damaged(files))
    def run(case):
        survives(folder / case[0], case[1])

    run()


def test_damaged_files_raise_nothing_but_input_error(tmp_path_factory, files):
    fuzz(tmp_path_factory, files, 600)


@pytest.mark.slow
def test_damaged_files_raise_nothing_but_input_error_for_a_minute(tmp_path_factory, files):
    fuzz(tmp_path_factory, files, 9_000)


def rewritten(source, target, change, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            for name, data in change(info.filename, old.read(info)):
                new.writestr(name, data)
    return target


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_torch_does_not_write(tmp_path, files):
    good = tmp_path / "good.pth"
    good.write_bytes(files["m.pth"])
    one = lambda name, data: [(name, data)]  # noqa: E731
    path = rewritten(good, tmp_path / "zipped.pth", one, zipfile.ZIP_DEFLATED)
    refused(path, "compressed member .* unpack it and pack it again")
    path = rewritten(good, tmp_path / "twice.pth", lambda n, d: [(n, d), (n, d)])
    refused(path, "twice")
    path = rewritten(good, tmp_path / "big.pth", lambda n, d: [(n, d.replace(b"little", b"big"))])
    refused(path, "byte order b'big'")
    path = rewritten(good, tmp_path / "other.pth", lambda n, d: [(f"a/{n}", d)])
    refused(path, "not a torch archive")
    extra = {"constants.pkl": b"\x80\x02)."}
    refused(ta.write_archive(tmp_path / "script.pth", GOOD, [SIX], extra), "TorchScript")
    tail = files["m.pth"] + b"tail"
    (tmp_path / "tail.pth").write_bytes(tail)
    refused(tmp_path / "tail.pth", "after its end-of-archive record")


def test_zip_bombs_are_refused(tmp_path, files):
    data = bytearray(files["m.pth"])
    end = data.rindex(b"PK\x05\x06")
    many = data.copy()
    struct.pack_into("<2H", many, end + 8, 0xFFFF, 0xFFFF)
    (tmp_path / "many.pth").write_bytes(many)
    refused(tmp_path / "many.pth", "outside of its bytes")
    large = data.copy()
    (start,) = struct.unpack_from("<I", large, end + 16)
    struct.pack_into("<2I", large, start + 20, 2**31, 2**31)
    (tmp_path / "large.pth").write_bytes(large)
    refused(tmp_path / "large.pth", "contradicts itself")
    second = data.index(b"PK\x01\x02", start + 4)  # its data become those of the first member
    overlap = data.copy()
    overlap[second + 42 : second + 46] = overlap[start + 42 : start + 46]
    (tmp_path / "overlap.pth").write_bytes(overlap)
    refused(tmp_path / "overlap.pth", "contradicts itself|overlap")


@pytest.mark.parametrize(
    "header, match",
    [
        ({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, "type F8_E4M3"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "of shape"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, "of shape"),
        ({"w": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, "no tensor owns"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, "shape or place"),
        ({"w": {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}, "reshape"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "damaged"),
        ({"w": {"shape": [1], "data_offsets": [0, 4]}}, "damaged"),
        ({"w": 3}, "damaged"),
        ({"__metadata__": 3}, "metadata"),
        ({}, "no tensor owns"),
        ('{"w": 1, "w": 2}', "given twice"),
        ('{"a":' * 50_000, "damaged"),
        ('{"a": ' + "9" * 10_000 + "}", "damaged"),
        ("{'a'", "damaged"),
        ('{"\\ud800": 1}', "damaged"),
    ],
)
def test_damaged_safetensors(tmp_path, header, match):
    refused(ta.write_safetensors(tmp_path / "m.safetensors", header, bytes(4)), match)


def test_safetensors_header_that_lies_about_its_size(tmp_path):
    for size in (2**63, 2**24, 41):
        path = ta.write_safetensors(tmp_path / "m.safetensors", json.dumps({}), size=size)
        refused(path, "declares a header")
