"""Splits by geometry, pairs across suns, and the readers of the other folder formats."""

import shutil

import numpy as np
import pytest
from frame_files import K_FILE, H, W, write_depth, write_frame
from PIL import Image

from lunar_distill_jax.data import frames, mast3r_folder, source, splits, stereolunar
from lunar_distill_jax.errors import InputError


def shifted(metres):
    pose = np.eye(4)
    pose[0, 3] = metres
    return pose


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Four geometries under three suns, in two folders of StereoLunar's naming."""
    root = tmp_path_factory.mktemp("archive")
    for number in range(24):
        folder = root / ("nadir_clean_0_90", "landingimages")[number // 12]
        view, geometry = number % 2, number // 6
        pose = shifted(100.0 * geometry + 10.0 * view)
        write_frame(folder, f"im_{number:05d}", seed=geometry, pose=pose)
    return root


def test_no_geometry_straddles_a_split(archive):
    refs = stereolunar.find_pairs(archive)
    assert len(refs) == 12
    train, test = splits.split_by_geometry(refs, 0.25)
    assert len(train) == 9 and len(test) == 3
    assert not {r.geometry for r in train} & {r.geometry for r in test}
    assert splits.split_by_geometry(refs[::-1], 0.25)[1] == test[::-1]
    with pytest.raises(InputError, match="There are 1 geometries, expected 2 or more"):
        splits.split_by_geometry(refs[:3])
    with pytest.raises(InputError, match="test fraction is 1"):
        splits.split_by_geometry(refs, 1)


def test_suns_meet_across_pairs(archive):
    refs = stereolunar.find_pairs(archive)
    cross = splits.relight(refs, "cross")
    assert len(cross) == 4 * 6 and len(splits.relight(refs, "all")) == 4 * 9
    assert splits.relight(refs, "same") == refs
    assert cross[0].name == "landingimages/im_00012-im_00015"
    assert cross[0].geometry == refs[0].geometry
    for ref in cross:
        numbers = [int(f.image.stem[-5:]) for f in ref.frames]
        assert numbers[0] % 2 == 0 and numbers[1] % 2 == 1 and numbers[1] != numbers[0] + 1
        assert numbers[0] // 6 == numbers[1] // 6
    with pytest.raises(InputError, match="lighting 'dark'"):
        splits.relight(refs, "dark")


def test_written_pair_list_is_read_back(archive, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(archive, root)
    refs = splits.relight(stereolunar.find_pairs(root), "all")
    splits.write_pair_list(root / "train.npz", root, refs)
    assert sorted(r.name for r in stereolunar.find_pairs(root)) == sorted(r.name for r in refs)
    with np.load(root / "train.npz") as lists:
        assert sorted(lists.files) == ["images", "pairs", "scenes"]
        assert lists["pairs"].dtype.names == ("scene", "im1", "im2", "score")
        assert ((lists["pairs"]["score"] >= 0) & (lists["pairs"]["score"] <= 1)).all()


# MASt3R's folders ---------------------------------------------------------------------------------


@pytest.fixture
def mast3r_root(tmp_path):
    rows = np.zeros(
        3, [("seq_high", "u8"), ("seq_low", "u8"), ("img1", "u4"), ("img2", "u4"), ("score", "f4")]
    )
    rows["seq_high"], rows["seq_low"], rows["img1"], rows["img2"] = 7, (10, 11, 12), 3, 41
    np.save(tmp_path / "blendedmvs_pairs.npy", rows)
    for low in (10, 12):  # scene 11 is not there
        for stem in ("00000003", "00000041"):
            folder = tmp_path / f"{7:08x}{low:016x}"
            write_frame(folder, stem)
            T = shifted(5.0)
            np.savez(
                folder / f"{stem}.npz",
                intrinsics=K_FILE,
                R_cam2world=T[:3, :3],
                t_cam2world=T[:3, 3],
            )
    return tmp_path


def test_blendedmvs_folder(mast3r_root):
    pairs = source.open_folder(mast3r_root)
    assert [ref.name[-19:] for ref in pairs.refs] == ["a/00000003-00000041", "c/00000003-00000041"]
    pair = pairs[0]
    np.testing.assert_array_equal(pair.K[0], K_FILE)  # integer pixel centres: used as it is
    np.testing.assert_array_equal(pair.T_world_cam[1], shifted(5.0))
    assert pair.valid.all() and pair.trajectory == "unknown"
    for split, low in (("train", 12), ("val", 10)):
        (ref,) = source.find_pairs(mast3r_root, split)
        assert f"{low:016x}" in ref.name
    with pytest.raises(InputError, match="names no pair that lies under"):
        source.find_pairs(mast3r_root, "test")
    with pytest.raises(InputError, match="split 'night'"):
        source.find_pairs(mast3r_root, "night")


def test_megadepth_list_of_mast3r(tmp_path):
    for stem in ("a", "b"):
        write_frame(tmp_path / "0001", stem)
    rows = np.array([(0, 1, 0, 0.4)], "i8,i8,i8,f8")
    np.savez(tmp_path / "mega_pairs.npz", scenes=["0001"], images=["a", "b"], pairs=rows)
    (ref,) = source.find_pairs(tmp_path)
    assert ref.name == "0001/b-a" and not ref.frames[0].corner
    assert mast3r_folder.pair_list(tmp_path).name == "mega_pairs.npz"
    (tmp_path / "mega_pairs.npz").rename(tmp_path / "x_pairs.npy")
    with pytest.raises(InputError, match="not a readable array with the columns"):
        source.find_pairs(tmp_path)


# Your own pairs -----------------------------------------------------------------------------------


def test_plain_folder_with_and_without_ground_truth(tmp_path):
    (tmp_path / "pairs.txt").write_text("# mine\na.jpg b.png\n\n'my view.png' a.jpg\n")
    write_frame(tmp_path, "a")
    (tmp_path / "a.exr").unlink()
    depth = np.full((H, W), 50.0)
    depth[0, 0] = 0
    np.save(tmp_path / "a.npy", depth)
    for name in ("b", "my view"):
        Image.new("L", (W, H), 90).save(tmp_path / f"{name}.png")
    first, second = source.open_folder(tmp_path)
    assert (first.name, second.name) == ("a.jpg-b.png", "my view.png-a.jpg")
    assert first.valid[0].sum() == H * W - 1 and not first.valid[1].any()
    np.testing.assert_array_equal(first.K[0], K_FILE)
    assert np.isnan(first.K[1]).all() and np.isnan(first.T_world_cam[1]).all()
    small = source.open_folder(tmp_path, size=(12, 16))[0]
    assert small.image.shape == (2, 12, 16, 3) and np.isnan(small.K[1]).all()
    np.testing.assert_allclose(small.depth_m[0][1:], 50)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no pairs"),
        ("a.jpg\n", "Line 1 of .*pairs.txt has 1 names, expected 2"),
        ("a.jpg 'b c.jpg\n", "Line 1 of .*pairs.txt has 3 names"),
    ],
)
def test_plain_list_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        source.open_folder(tmp_path)


def test_plain_depth_that_cannot_be_used(tmp_path):
    write_frame(tmp_path, "a")
    (tmp_path / "a.exr").unlink()
    for depth, message in (
        (np.ones((2, H, W)), r"\[2, 24, 32\], expected numbers"),
        (None, "not a readable npy"),
    ):
        if depth is None:
            (tmp_path / "a.npy").write_text("no")
        else:
            np.save(tmp_path / "a.npy", depth)
        with pytest.raises(InputError, match=message):
            frames.images.read_depth(tmp_path / "a.npy")
    write_depth(tmp_path / "a.exr", np.ones((H, W)))
    assert frames.images.read_depth(tmp_path / "a.exr").shape == (H, W)
