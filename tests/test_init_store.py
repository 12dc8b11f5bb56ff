"""Calibration reads its pairs batch by batch, and goes on where it was killed."""

import numpy as np
import pytest
from planted import STUDENT, images, random_teacher, stereo
from tiny import plane_pair

import lunar_distill_jax as ld
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.init.calibration import batches
from lunar_distill_jax.init.pictures import Pictures, calibration_pictures
from lunar_distill_jax.init.store import Store, digest
from lunar_distill_jax.init.tree import flatten

PAIRS = images(20, seed=1)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def unbroken():
    return ld.init_student(stereo(random_teacher()), STUDENT, "calibrated", PAIRS)


def run(workdir, on_step=lambda done, total: None):
    teacher = stereo(random_teacher())
    return ld.init_student(teacher, STUDENT, "calibrated", PAIRS, workdir=workdir, on_step=on_step)


@pytest.mark.parametrize("step", [8, 21, 23, 24])  # of encoders, moments, blocks, heads
def test_a_killed_run_goes_on_and_comes_to_the_same_end(unbroken, tmp_path, step):
    """What is asked of a second run is only what the first had not finished."""

    def kill(done, total):
        assert total == 20 + 2 + 4
        if done >= step:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, kill)
    left = {path.name for path in tmp_path.glob("*.npz")}
    assert ("block0.npz" in left) == (step > 22) and "tokens.npz" in left
    seen = []
    student, report = run(tmp_path, lambda done, total: seen.append(done))
    assert seen[0] == (8 if step == 8 else 20)  # tokens that are there are not computed again
    wanted, told = unbroken
    for name, array in flatten(wanted.params).items():
        np.testing.assert_array_equal(array, flatten(student.params)[name], name)
    assert report["blocks"] == told["blocks"]
    assert report["calibration"]["activations_on"] == "disk"
    assert told["calibration"]["activations_on"] == "memory"


def test_another_run_s_folder_is_refused(tmp_path):
    Store(tmp_path / "a", "one")
    Store(tmp_path / "a", "one")
    with pytest.raises(InputError, match="holds the calibration one and this one is two"):
        Store(tmp_path / "a", "two")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and holds no calibration"):
        Store(tmp_path / "b", "one")
    (tmp_path / "a" / "moments.npz").write_bytes(b"half a fi")
    with pytest.raises(InputError, match=r"Cannot read .*moments.npz"):
        Store(tmp_path / "a", "one").load("moments")
    one, other = {"x": np.arange(3)}, {"x": np.arange(3)[::-1]}
    assert digest(one, 1) == digest(dict(one), 1) != digest(other, 1) != digest(one, 2)


def test_a_store_holds_what_a_pass_needs_and_forgets_the_rest(tmp_path):
    for store in (Store(), Store(tmp_path, "")):
        first = store.empty("block1/ours/1", (2, 3))
        first[:] = 7
        store.empty("block10/ours/1", (2, 3))
        assert store.peak_bytes == 48
        store.drop(("block1/",))
        store.empty("block2/ours/1", (2, 3))
        assert store.peak_bytes == 48
    assert sorted(p.stem for p in tmp_path.glob("*.npy")) == ["block1.ours.1", "block2.ours.1"]
    np.testing.assert_array_equal(Store(tmp_path, "").open("block1/ours/1"), first)


def test_attention_maps_bound_a_batch():
    for tokens, size in ((36, 8), (768, 2), (2048, 1)):
        parts = list(batches(23, tokens))
        assert max(len(rows) for rows, _ in parts) == size
        assert sorted(np.concatenate([rows for rows, _ in parts])) == list(range(23))
        assert [i for rows, held in parts if held for i in rows] == [4, 9, 14, 19]


def test_pictures_of_every_source_are_read_when_they_are_asked_for(tmp_path):
    pairs = [plane_pair(i) for i in range(3)]
    given = calibration_pictures(pairs, 96, 256, 0)
    assert given.count == 3
    one, other = given.read(np.array([2, 0]))
    assert one.shape == other.shape == (2, *pairs[0].image.shape[1:])
    assert one.dtype == np.float32 and np.abs(one).max() <= 1
    rendered = calibration_pictures("synthetic", 64, 5, 0)
    assert rendered.count == 5 and rendered.read(np.array([1]))[0].shape == (1, 64, 64, 3)
    with pytest.raises(InputError, match="size is 50 pixels"):
        calibration_pictures("synthetic", 50, 5, 0)
    with pytest.raises(InputError, match="number of calibration pairs is 1"):
        calibration_pictures("synthetic", 64, 1, 0)
    with pytest.raises(InputError, match="There are 0 calibration pairs"):
        calibration_pictures([], 64, 5, 0)
    with pytest.raises(InputError, match="one shape, the first and the second view"):
        calibration_pictures((PAIRS[0], PAIRS[1][:3]), 64, 5, 0)
    with pytest.raises(InputError, match="A calibration pair is a str"):
        calibration_pictures(["a", "b"], 64, 5, 0).read(np.array([0]))
    other = plane_pair(9, size=(64, 64))
    with pytest.raises(InputError, match=r"differ in size: .* is \(32, 32\) and .* is \(64, 64\)"):
        calibration_pictures([*pairs, other], 96, 256, 0).read(np.array([0, 3]))
    assert isinstance(given, Pictures)
