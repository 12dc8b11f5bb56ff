"""StereoLunar as a tensorflow-datasets data set: built without TensorFlow, read at random."""

import sys
import time

import numpy as np
import pytest
from frame_files import write_frame

from lunar_distill_jax.data import source, splits, stereolunar
from lunar_distill_jax.errors import InputError

FIELDS = ("image", "depth_m", "valid", "K", "T_world_cam")


@pytest.fixture(scope="module")
def builder():
    from lunar_distill_jax.data import stereolunar_tfds

    assert "tensorflow" not in sys.modules
    return stereolunar_tfds


def write_archive(root, geometries, size=(16, 16), suns=3, folder="nadir_clean_0_90"):
    for number in range(geometries * suns * 2):
        pose = np.eye(4)
        pose[:2, 3] = number // (2 * suns), number % 2
        depth = np.full(size, 3e4)
        depth[0, 0] = np.inf
        depth[1] += 16 * (number % 2)
        write_frame(
            root / folder, f"im_{number:05d}", seed=number, depth=depth, pose=pose, size=size
        )


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("archive")
    write_archive(root, 3)
    write_archive(root, 1, folder="pitch_clean_0_90")
    return root


@pytest.fixture(scope="module")
def prepared(builder, archive, tmp_path_factory):
    return builder.prepare(archive, tmp_path_factory.mktemp("prepared"))


def test_prepared_pairs_are_those_of_the_folder(prepared, archive):
    refs = {ref.name: ref for ref in stereolunar.find_pairs(archive)}
    seen = {}
    for split in ("train", "test"):
        for pair in source.open_folder(prepared, split=split):
            want = stereolunar.load_pair(refs[pair.name])
            assert (pair.geometry, pair.trajectory) == (want.geometry, want.trajectory)
            for field in FIELDS:
                np.testing.assert_array_equal(getattr(pair, field), getattr(want, field))
                assert getattr(pair, field).dtype == getattr(want, field).dtype
            seen.setdefault(split, []).append(pair)
    assert len(seen["train"]) == 9 and len(seen["test"]) == 3
    assert not {p.geometry for p in seen["train"]} & {p.geometry for p in seen["test"]}
    small = source.open_folder(prepared, size=8)[0]
    assert small.image.shape == (2, 8, 8, 3)
    assert "tensorflow" not in sys.modules


def test_pairs_across_suns(prepared, archive):
    train, _ = splits.split_by_geometry(stereolunar.find_pairs(archive))
    for lighting in ("cross", "all"):
        pairs = source.open_folder(prepared, lighting=lighting)
        want = {ref.name: ref for ref in splits.relight(train, lighting)}
        assert len(pairs) == len(want)
        for pair in pairs:
            direct = stereolunar.load_pair(want.pop(pair.name))
            np.testing.assert_array_equal(pair.image, direct.image)
        assert not want


def test_features_have_units_and_the_config_a_trajectory(builder, archive, tmp_path):
    folder = builder.prepare(archive, tmp_path, "v1_nadir")
    info = builder.tfds.builder_from_directory(str(folder)).info
    assert info.splits["train"].num_examples == 6 and info.splits["test"].num_examples == 3
    assert info.features["depth1"].doc.value_range == "metres"
    assert info.features["intrinsics"].doc.value_range == "pixels"
    assert {p.trajectory for p in source.open_folder(folder)} == {"nadir"}
    assert "zenodo.org/records/17514376" in builder.StereoLunar.MANUAL_DOWNLOAD_INSTRUCTIONS


def test_split_files_of_the_archive_are_obeyed(builder, tmp_path):
    root = tmp_path / "data"
    write_archive(root, 2, suns=2)
    refs = stereolunar.find_pairs(root)
    splits.write_pair_list(root / "test.npz", root, refs[:2])
    splits.write_pair_list(root / "train.npz", root, refs[2:])
    parts = builder.find_splits(root, builder.StereoLunar.BUILDER_CONFIGS[0])
    assert [r.name for r in parts["test"]] == [r.name for r in refs[:2]]
    splits.write_pair_list(root / "train.npz", root, refs[1:])
    with pytest.raises(InputError, match="train.npz and test.npz of .* share 1 geometries"):
        builder.prepare(root, tmp_path / "out")


@pytest.mark.parametrize(
    "config, message",
    [
        ("v3", "config 'v3': choose from v1, v1_nadir"),
        ("v1_dynamic", "holds no dynamic pairs .found nadir, oblique."),
        ("v2", "lie STEM.jpg, .exr and .npz side by side.*choose the config v1"),
    ],
)
def test_wrong_config_is_one_sentence(builder, archive, tmp_path, config, message):
    with pytest.raises(InputError, match=message) as error:
        builder.prepare(archive, tmp_path, config)
    assert "\n" not in str(error.value)


def test_damaged_frame_leaves_nothing_behind(builder, tmp_path):
    write_archive(tmp_path / "data", 2, suns=1)
    (tmp_path / "data/nadir_clean_0_90/im_00002.exr").write_text("no")
    with pytest.raises(InputError, match="im_00002.exr .2 bytes. is not a readable EXR") as error:
        builder.prepare(tmp_path / "data", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/**/dataset_info.json"))


def test_folder_that_is_no_data_set(prepared, tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(InputError, match="is not a prepared StereoLunar data set"):
        source.open_folder(tmp_path)
    with pytest.raises(InputError, match="no split 'night': choose from"):
        source.open_folder(prepared, split="night")
    with pytest.raises(InputError, match="lighting 'dark'"):
        source.open_folder(prepared, lighting="dark")


@pytest.mark.slow
def test_ten_thousand_pairs_in_random_order(builder, tmp_path):
    write_archive(tmp_path / "data", 3720, size=(8, 8))
    folder = builder.prepare(tmp_path / "data", tmp_path / "out")
    pairs = source.open_folder(folder, lighting="same")
    assert len(pairs) == 3 * 3348
    names = set()
    start = time.perf_counter()
    for i in np.random.default_rng(0).permutation(len(pairs)):
        names.add(pairs[i].name)
    rate = len(pairs) / (time.perf_counter() - start)
    assert len(names) == len(pairs)
    print(f"{rate:.0f} pairs/s")
    assert rate > 20  # seen 1200 on two busy cores
