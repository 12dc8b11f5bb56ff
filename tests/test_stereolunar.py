"""The reader of StereoLunar's format: conventions, repairs, resampling, and every bad input."""

import logging
import pathlib
import shutil
import zipfile

import numpy as np
import pytest
from frame_files import K_FILE, H, W, write_depth, write_frame
from PIL import Image

from lunar_distill_jax import geometry
from lunar_distill_jax.data import images, stereolunar
from lunar_distill_jax.errors import InputError

SAMPLES = pathlib.Path(__file__).parents[2] / "shared" / "samples" / "stereolunar"
needs_samples = pytest.mark.skipif(
    not SAMPLES.is_dir(), reason=f"the real sample frames are absent ({SAMPLES})"
)


@pytest.fixture
def folder(tmp_path):
    """Two suns of one geometry: frames 10..13 of nadir/paire1; even ones are camera 1."""
    frames = tmp_path / "nadir" / "paire1"
    pose = np.eye(4)
    pose[:3, 3] = [1500, 0, 1.7e6]
    for number in range(10, 14):
        write_frame(frames, f"im_{number:05d}", seed=number % 2, pose=pose)
    return frames


def load_first(root):
    return stereolunar.load_pair(stereolunar.find_pairs(root)[0])


# Finding ------------------------------------------------------------------------------------------


def test_even_and_odd_frames_pair_and_suns_share_a_geometry(folder, tmp_path):
    refs = stereolunar.find_pairs(tmp_path)
    assert [ref.name for ref in refs] == [
        "nadir/paire1/im_00010-im_00011",
        "nadir/paire1/im_00012-im_00013",
    ]
    assert {ref.geometry for ref in refs} == {"nadir/paire1/im_00010-im_00011"}
    moved = np.eye(4)
    moved[0, 3] = 7
    write_frame(folder, "im_00013", pose=moved)
    assert len({ref.geometry for ref in stereolunar.find_pairs(tmp_path)}) == 2


@pytest.mark.parametrize(
    "name, trajectory",
    [
        ("Nadir_baseline_sample", "nadir"),
        ("pitch_clean_0_90", "oblique"),
        ("oblique", "oblique"),
        ("landingimages", "dynamic"),
        ("Dynamic_x", "dynamic"),
        ("misc", "unknown"),
    ],
)
def test_trajectory_comes_from_the_nearest_folder_name(tmp_path, name, trajectory):
    for number in (0, 1):
        write_frame(tmp_path / "data" / name / "scene", f"im_{number}")
    for root in ("data", f"data/{name}", f"data/{name}/scene"):
        assert stereolunar.find_pairs(tmp_path / root)[0].trajectory == trajectory


def test_split_file_decides_which_frames_pair(folder, tmp_path):
    rows = np.array([(0, 0, 3, 0.5)], "i4,i4,i4,f4")  # across suns; structured like the authors'
    np.savez(
        tmp_path / "split.npz",
        scenes=["nadir/paire1"],
        images=[f"im_{n:05d}" for n in range(10, 14)],
        pairs=rows,
    )
    (ref,) = stereolunar.find_pairs(tmp_path)
    assert ref.name == "nadir/paire1/im_00010-im_00013"
    np.savez(tmp_path / "test.npz", scenes=["nadir/paire1"], images=["im_00010"], pairs=rows)
    with pytest.raises(InputError, match=r"holds 2 split files \(split.npz, test.npz\)"):
        stereolunar.find_pairs(tmp_path)
    assert stereolunar.find_pairs(tmp_path, "split.npz") == [ref]
    with pytest.raises(InputError, match=r"Row 0 of `pairs` .* is \(0, 0, 3, 0.5\), .*image < 1"):
        stereolunar.find_pairs(tmp_path, "test.npz")
    with pytest.raises(InputError, match=r"split file .*no.npz does not exist"):
        stereolunar.find_pairs(tmp_path, "no.npz")


def test_sub_folders_of_the_published_layout(folder, tmp_path):
    for kind, suffix in (("images", "jpg"), ("depth", "exr"), ("cameras", "npz")):
        (folder / kind).mkdir()
        for file in folder.glob(f"*.{suffix}"):
            file.rename(folder / kind / file.name)
    refs = stereolunar.find_pairs(tmp_path)
    assert refs[0].name == "nadir/paire1/im_00010-im_00011" and len(refs) == 2
    assert stereolunar.load_pair(refs[1]).image.shape == (2, H, W, 3)


def test_missing_camera_is_taken_from_the_frame_with_the_same_depth(folder, tmp_path, caplog):
    want = stereolunar.load_pair(stereolunar.find_pairs(tmp_path)[1])
    (folder / "im_00013.npz").unlink()
    with caplog.at_level(logging.WARNING):
        refs = stereolunar.find_pairs(tmp_path)
    assert "im_00013.npz is missing: using" in caplog.text and "im_00011.npz" in caplog.text
    got = stereolunar.load_pair(refs[1])
    np.testing.assert_array_equal(got.T_world_cam, want.T_world_cam)
    assert refs[0].geometry == refs[1].geometry


# Loading ------------------------------------------------------------------------------------------


def test_conventions_of_a_loaded_pair(folder, tmp_path):
    depth = write_frame(folder, "im_00010", seed=5)
    depth[0, :4] = [np.inf, -1, 0, -np.inf]
    write_depth(folder / "im_00010.exr", depth)
    pair = load_first(tmp_path)
    assert pair.image.dtype == np.uint8 and pair.depth_m.dtype == np.float32
    assert pair.K.dtype == pair.T_world_cam.dtype == np.float64
    np.testing.assert_array_equal(pair.K[0, :2, 2], [W / 2 - 0.5, H / 2 - 0.5])
    assert not pair.valid[0, 0, :4].any() and pair.valid.sum() == pair.valid.size - 4
    np.testing.assert_array_equal(pair.depth_m[0, 0, :4], 0)
    # No clipping of the deepest ground: the 98th percentile of the published loader is not applied.
    np.testing.assert_array_equal(pair.depth_m[0, 1:], depth.astype(np.float16)[1:])


def test_load_pair_resizes_all_fields_together(folder, tmp_path):
    ref = stereolunar.find_pairs(tmp_path)[0]
    pair = stereolunar.load_pair(ref, (12, 16))
    assert pair.image.shape == (2, 12, 16, 3) and pair.depth_m.shape == (2, 12, 16)
    np.testing.assert_allclose(pair.K[0], [[20, 0, 7.5], [0, 20, 5.5], [0, 0, 1]])
    assert stereolunar.load_pair(ref, 16).valid.shape == (2, 16, 16)


# Real frames --------------------------------------------------------------------------------------


def depth_disagreement(pair, shift):
    """z of view 1's points in camera 2 minus view 2's depth there, every 4th pixel; metres.

    shift: pixels added to both principal points.
    """
    K = pair.K.copy()
    K[:, :2, 2] += shift
    T_cam2_cam1 = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
    points = geometry.transform(T_cam2_cam1, geometry.backproject(pair.depth_m[0], K[0]))
    points = points[::4, ::4][pair.valid[0, ::4, ::4]]
    uv = geometry.project(K[1], points)
    limit = np.array(pair.depth_m.shape[:0:-1]) - 1
    inside = ((uv >= 0) & (uv < limit)).all(-1) & (points[:, 2] > 0)
    j, i = np.floor(uv[inside]).astype(int).T
    x, y = (uv[inside] - np.floor(uv[inside])).T
    z = pair.depth_m[1].astype(np.float64)
    top, bottom = (z[i + k, j] * (1 - x) + z[i + k, j + 1] * x for k in (0, 1))
    return top * (1 - y) + bottom * y - points[inside, 2], uv


@needs_samples
@pytest.mark.parametrize("kind", ["Nadir", "Oblique", "Dynamic"])
def test_real_views_agree_at_the_quantisation_floor(kind):
    pair = load_first(SAMPLES / f"{kind}_baseline_sample")
    assert pair.trajectory == kind.lower() and pair.K[0, 0, 2] == pair.K[1, 1, 2] == 255.5
    dz, uv = depth_disagreement(pair, 0.0)
    assert 4.0 < np.median(np.abs(dz)) < 8.5 and abs(dz.mean()) < 0.15
    if kind == "Dynamic":  # rolled by 119 degrees: the half pixel of 256 does not cancel
        dz_256, uv_256 = depth_disagreement(pair, 0.5)
        assert np.median(np.abs(dz_256)) > 8.9 and abs(dz_256.mean()) > 4
        assert 0.66 < np.median(np.linalg.norm(uv_256 - 0.5 - uv, axis=-1)) < 1.37


@needs_samples
def test_real_frames_are_three_geometries_under_three_suns():
    refs = stereolunar.find_pairs(SAMPLES)
    assert len(refs) == 9 and len({ref.geometry for ref in refs}) == 3
    oblique = next(ref for ref in refs if ref.trajectory == "oblique")
    pair = stereolunar.load_pair(oblique)
    assert (~pair.valid).sum((1, 2)).tolist() == [869, 0]  # HALF overflow beyond 65 504 m
    assert np.isfinite(pair.depth_m).all() and pair.depth_m.max() > 6e4
    small = stereolunar.load_pair(oblique, 128)
    assert small.valid.mean() > 0.99 and small.K[0, 0, 2] == 63.5


@needs_samples
def test_real_frame_without_camera_is_repaired(tmp_path, caplog):
    folder = tmp_path / "Dynamic_baseline_sample" / "paire1"
    shutil.copytree(SAMPLES / "Dynamic_baseline_sample" / "paire1", folder)
    folder.chmod(0o755)
    (folder / "im_01197.npz").unlink()
    refs = stereolunar.find_pairs(tmp_path)
    assert "im_01197.npz is missing: using" in caplog.text and "im_01195.npz" in caplog.text
    assert len({ref.geometry for ref in refs}) == 1


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, message",
    [
        ("absent", "does not exist: give a folder"),
        ("file", "is a file, expected a folder: give"),
        ("data.zip", "is a zip archive, expected a folder: unpack it"),
    ],
)
def test_root_must_be_a_folder(tmp_path, name, message):
    (tmp_path / "file").write_text("x")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("nadir/im_00000.jpg", b"")
    with pytest.raises(InputError, match=f"data folder .*{name} {message}"):
        stereolunar.find_pairs(tmp_path / name)


def test_folder_without_pairs(tmp_path):
    (tmp_path / "preview.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds no pairs \(found 0, expected frames such as"):
        stereolunar.find_pairs(tmp_path)


def test_split_file_without_pairs(folder, tmp_path):
    rows = np.zeros(0, "i4,i4,i4,f4")
    np.savez(tmp_path / "split.npz", scenes=["nadir/paire1"], images=["im_00010"], pairs=rows)
    with pytest.raises(InputError, match=r"split file .*split.npz lists no pairs \(found 0 rows"):
        stereolunar.find_pairs(tmp_path)


def test_rows_of_objects_are_read_without_running_them(folder, tmp_path):
    rows = np.array([[np.int64(0), 0, 1, 0.5], [0, np.uint16(2), 3, 0.5]], object)
    split = dict(scenes=["nadir/paire1"], images=[f"im_{n:05d}" for n in range(10, 14)])
    np.savez(tmp_path / "split.npz", pairs=rows, **split, allow_pickle=True)
    assert [ref.name[-17:] for ref in stereolunar.find_pairs(tmp_path)] == [
        "im_00010-im_00011",
        "im_00012-im_00013",
    ]
    rows[0, 0] = pathlib.Path("evil")
    np.savez(tmp_path / "split.npz", pairs=rows, **split, allow_pickle=True)
    with pytest.raises(InputError, match="split.npz is not a readable npz .*asks for pathlib"):
        stereolunar.find_pairs(tmp_path)


def test_pairs_that_cannot_be_used_are_left_out_on_request(folder, tmp_path):
    (folder / "im_00010.jpg").unlink()
    (folder / "im_00010.exr").unlink()
    left_out = []
    refs = stereolunar.find_pairs(tmp_path, on_error=left_out.append)
    assert [ref.name for ref in refs] == ["nadir/paire1/im_00012-im_00013"]
    assert len(left_out) == 1 and "im_00011 has no partner" in str(left_out[0])


def test_frame_without_partner(folder, tmp_path):
    for file in folder.glob("im_00012.*"):
        file.unlink()
    with pytest.raises(InputError, match=r"im_00013 has no partner \(found no frame 12"):
        stereolunar.find_pairs(tmp_path)


def test_camera_that_cannot_be_repaired(folder, tmp_path):
    for number in (11, 13):
        (folder / f"im_000{number}.npz").unlink()
    with pytest.raises(InputError, match="frame .*im_00011 has no camera file .*restore"):
        stereolunar.find_pairs(tmp_path)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def blacken(path):
    Image.new("RGB", (W, H)).save(path)


def shrink(path):
    Image.new("RGB", (W // 2, H), "white").save(path)


def drop_key(path):
    np.savez(path, intrinsics=K_FILE)


def skew_pose(path):
    np.savez(path, intrinsics=K_FILE, cam2world=np.diag([1.0, 1.2, 1.0, 1.0]))


def mirror_pose(path):
    np.savez(path, intrinsics=K_FILE, cam2world=np.diag([1.0, 1.0, -1.0, 1.0]))


def flatten_K(path):
    np.savez(path, intrinsics=np.ones((3, 4)), cam2world=np.eye(4))


def negate_focal(path):
    np.savez(path, intrinsics=K_FILE * [[-1], [1], [1]], cam2world=np.eye(4))


def rename_channel(path):
    write_depth(path, np.ones((H, W)), channel="Z")


def pierce_depth(path):
    depth = np.ones((H, W))
    depth[3, 4:6] = np.nan
    write_depth(path, depth)


def empty_depth(path):
    write_depth(path, np.full((H, W), np.inf))


def small_depth(path):
    write_depth(path, np.ones((H, W // 2)))


def pickle(path):
    np.savez(path, intrinsics=np.array([None]), cam2world=np.eye(4))


@pytest.mark.parametrize(
    "suffix, damage, message",
    [
        ("jpg", pathlib.Path.unlink, "image .*im_00010.jpg does not exist"),
        ("jpg", truncate, r"im_00010.jpg \(\d+ bytes\) cannot be decoded .*copy it again"),
        ("jpg", blacken, "im_00010.jpg is all black .brightest pixel 0 of 255"),
        ("jpg", shrink, "im_00010.jpg is 16x24 but its depth file im_00010.exr is 32x24"),
        ("exr", pathlib.Path.unlink, "depth file .*im_00010.exr does not exist"),
        ("exr", truncate, r"im_00010.exr is cut short \(found \d+ bytes, expected at least \d+\)"),
        ("exr", lambda path: path.write_text("no"), "im_00010.exr .2 bytes. is not a readable EXR"),
        ("exr", rename_channel, r"im_00010.exr has the channels \['Z'\], expected 'Y'"),
        ("exr", pierce_depth, r"im_00010.exr has 2 nan of 768 pixels"),
        ("exr", empty_depth, r"im_00010.exr has no valid pixel \(found 0 of 768"),
        ("exr", small_depth, "im_00010.jpg is 32x24 but its depth file im_00010.exr is 16x24"),
        ("npz", drop_key, r"im_00010.npz has no key 'cam2world' \(found \['intrinsics'\]"),
        ("npz", truncate, "im_00010.npz is not a readable npz"),
        ("npz", pickle, "im_00010.npz is not a readable npz of plain arrays"),
        ("npz", flatten_K, r"`intrinsics` of .*im_00010.npz is float64 \[3, 4\], .* \[3, 3\]"),
        ("npz", negate_focal, "`intrinsics` of .*expected .* positive fx"),
        ("npz", skew_pose, r"`cam2world` of .*not a rigid pose \(determinant 1.2, expected 1"),
        ("npz", mirror_pose, r"`cam2world` of .*not a rigid pose \(determinant -1, expected 1"),
    ],
)
def test_damaged_file_is_one_clear_sentence(folder, tmp_path, suffix, damage, message, capfd):
    damage(folder / f"im_00010.{suffix}")
    with pytest.raises(InputError, match=message) as error:
        load_first(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) > 60
    assert capfd.readouterr() == ("", "")  # no library speaks before us


def test_views_of_different_size(folder, tmp_path):
    write_frame(folder, "im_00011", size=(H, W // 2))
    with pytest.raises(InputError, match=r"different sizes \(im_00010.jpg is 32x24, im_00011.jpg"):
        load_first(tmp_path)


@pytest.mark.parametrize("length", [0, 3, 9, 60, 200, 330, 400])
def test_exr_cut_anywhere_is_an_input_error(tmp_path, length):
    write_depth(tmp_path / "whole.exr", np.ones((H, W)))
    data = (tmp_path / "whole.exr").read_bytes()
    assert len(images.read_depth(tmp_path / "whole.exr")) == H
    (tmp_path / "cut.exr").write_bytes(data[: min(length, len(data) - 1)])
    with pytest.raises(InputError, match=r"cut.exr"):
        images.read_depth(tmp_path / "cut.exr")
