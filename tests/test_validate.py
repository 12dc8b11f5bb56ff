"""`lunar-distill validate`: each kind of damage is found, and named once."""

import json
import shutil

import numpy as np
import pytest
import tiny
from frame_files import H, W, write_depth, write_frame
from PIL import Image

from lunar_distill_jax import cli
from lunar_distill_jax.data import frames, source, validate
from lunar_distill_jax.data.reprojection import agreement
from lunar_distill_jax.data.write import write_stereolunar


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Three geometries of a plane, that really agree."""
    root = tmp_path_factory.mktemp("clean") / "moon"
    pairs = [tiny.plane_pair(i, holes=0) for i in range(3)]
    write_stereolunar(pairs, root, half_depth=False)
    return root


@pytest.fixture
def data(clean, tmp_path):
    shutil.copytree(clean, tmp_path / "moon")
    return tmp_path / "moon"


def findings(root, error=True):
    report = validate.validate(root, *validate.list_pairs(root))
    return [f.message for f in report.findings if f.error == error]


def test_clean_folder(clean, capsys):
    assert cli.main(["validate", str(clean)]) == 0
    out = capsys.readouterr().out
    assert "3 pairs (3 nadir) of 3 geometries" in out
    assert "errors     none" in out and "warnings   none" in out
    assert "6 of 32x32" in out


def black(frame):
    Image.new("RGB", (32, 32)).save(frame.with_suffix(".jpg"))


def nan_depth(frame):
    depth = np.full((32, 32), 1e4)
    depth[2, 2] = np.nan
    write_depth(frame.with_suffix(".exr"), depth)


def camera(frame, **changes):
    arrays = dict(np.load(frame.with_suffix(".npz"))) | changes
    np.savez(frame.with_suffix(".npz"), **arrays)


def wrong_K(frame):
    camera(frame, intrinsics=np.ones(4))


def skewed_pose(frame):
    camera(frame, cam2world=np.diag([1.0, 1.1, 1, 1]))


def strange_pose(frame):
    T = dict(np.load(frame.with_suffix(".npz")))["cam2world"]
    T[2, 3] += 600
    camera(frame, cam2world=T)


def far_pose(frame):
    T = dict(np.load(frame.with_suffix(".npz")))["cam2world"]
    T[0, 3] += 1e6
    camera(frame, cam2world=T)


def no_depth(frame):
    frame.with_suffix(".exr").unlink()


def no_image(frame):
    frame.with_suffix(".jpg").unlink()


def small(frame):
    write_frame(frame.parent, frame.name)


@pytest.mark.parametrize(
    "damage, message",
    [
        (black, "im_00002.jpg is all black"),
        (nan_depth, "im_00002.exr has 1 nan of 1024 pixels"),
        (wrong_K, r"im_00002.npz is float64 [4], expected finite numbers [3, 3]"),
        (skewed_pose, "im_00002.npz is not a rigid pose"),
        (strange_pose, "disagree by"),
        (far_pose, "see no common ground (overlap 0 %"),
        (no_depth, "im_00002.exr does not exist"),
        (no_image, "im_00002.jpg does not exist"),
        (small, f"im_00002.jpg is {W}x{H}, im_00003.jpg is 32x32"),
    ],
)
def test_damage_is_found_and_the_rest_is_still_read(data, damage, message, capsys):
    damage(data / "Nadir/paire2/im_00002")
    said = findings(data)
    assert message in said[0]
    assert len(said) == 1 + (damage is small)  # a strange size is one of the data set too
    assert cli.main(["validate", str(data)]) == 2
    out, err = capsys.readouterr()
    assert message in out and "of the findings" in err.splitlines()[-1]
    assert "3 pairs" in out  # the others were looked at


def test_depth_range_instead_of_z_is_found(data):
    for number in range(6):
        frame = data / f"Nadir/paire{number // 2 + 1}/im_{number:05d}"
        view = frames.load_frame(
            frames.FrameFiles(*(frame.with_suffix(s) for s in (".jpg", ".exr", ".npz")))
        )
        rays = np.stack(np.meshgrid(*[np.arange(32)] * 2), -1)
        rays = np.append(rays, np.ones((32, 32, 1)), -1) @ np.linalg.inv(view.K).T
        write_depth(frame.with_suffix(".exr"), view.depth_m * np.linalg.norm(rays, axis=-1))
    assert any("z-depth, not range" in message for message in findings(data))


def test_infinite_depth_is_a_warning(data, capsys):
    path = data / "Nadir/paire1/im_00000.exr"
    depth = frames.images.read_depth(path)
    depth[:2] = np.inf
    depth[5, 5] = 0
    write_depth(path, depth)
    assert findings(data) == []
    infinite, nothing = findings(data, error=False)
    assert "infinite at 64 of 1024 pixels" in infinite and "0 or less at 1 of" in nothing
    assert cli.main(["validate", str(data)]) == 0


def test_K_of_the_other_convention_is_a_warning(data):
    for number in range(6):
        frame = data / f"Nadir/paire{number // 2 + 1}/im_{number:05d}"
        K = dict(np.load(frame.with_suffix(".npz")))["intrinsics"]
        K[:2, 2] -= 0.5
        camera(frame, intrinsics=K)
    assert findings(data) == []
    said = findings(data, error=False)
    assert said and all("moved by +0.5 pixels" in message for message in said)


def test_report_collapses_findings_of_one_kind(data, tmp_path, capsys):
    for number in range(5):
        (data / f"Nadir/paire{number // 2 + 1}/im_{number:05d}.jpg").unlink()
    report = tmp_path / "report.json"
    assert cli.main(["validate", str(data), "--report", str(report)]) == 2
    out = capsys.readouterr().out
    assert out.count("does not exist") == 3 and "... and 2 more of this kind" in out
    written = json.loads(report.read_text())
    assert len(written["findings"]) == 5 and written["frames"] == 6


def test_geometry_in_two_splits_is_found(tmp_path):
    for number in range(4):  # two suns of one camera pair
        write_frame(tmp_path / "nadir", f"im_{number:05d}", seed=number % 2)
    for name, row in (("train.npz", (0, 0, 1, 1)), ("test.npz", (0, 2, 3, 1))):
        images = [f"im_{n:05d}" for n in range(4)]
        np.savez(tmp_path / name, scenes=["nadir"], images=images, pairs=[row])
    assert any(
        "train.npz and test.npz of" in m and "share 1 geometries" in m for m in findings(tmp_path)
    )


def test_agreement_of_exact_planes_is_exact():
    pair = tiny.plane_pair(3, holes=0)
    exact = agreement(pair, stride=1)
    assert exact.median_px < 1e-4 and exact.overlap > 0.4  # float32 depth; seen 4e-7
    assert agreement(pair, shift=0.5).median_m > 20 * exact.median_m


def test_collected_pairs_may_differ_in_size(tmp_path, capsys):
    for number, size in enumerate([(32, 32), (40, 48)]):
        for view in range(2):
            grey = np.random.default_rng(view).integers(20, 255, size, dtype=np.uint8)
            Image.fromarray(grey).save(tmp_path / f"{number}{view}.png")
    (tmp_path / "pairs.txt").write_text("00.png 01.png\n10.png 11.png\n")
    assert cli.main(["validate", str(tmp_path)]) == 0
    assert "have 2 sizes (2 of 32x32, 2 of 48x40)" in capsys.readouterr().out
    shapes = [pair.image.shape for pair in source.open_folder(tmp_path, size=32)]
    assert shapes == [(2, 32, 32, 3)] * 2


def test_a_prepared_data_set_is_refused(tmp_path, capsys):
    (tmp_path / "dataset_info.json").write_text("{}")
    assert cli.main(["validate", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "is a prepared data set" in err and err.count("\n") == 1


def test_a_zip_is_refused(tmp_path, capsys):
    path = shutil.make_archive(str(tmp_path / "moon"), "zip", tmp_path)
    assert cli.main(["validate", path]) == 2
    err = capsys.readouterr().err
    assert "is a zip archive, expected a folder: unpack it" in err and err.count("\n") == 1
