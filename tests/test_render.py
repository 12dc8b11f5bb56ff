"""`lunar-distill render` and the writer: what lies on disk is what was rendered."""

import hashlib
import io

import numpy as np
import OpenEXR
import pytest
from PIL import Image

from lunar_distill_jax import cli, moon
from lunar_distill_jax.data import write
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.moon import cameras

SIZE = 64


@pytest.fixture(scope="module")
def lightings():
    return moon.make_lightings(3, "oblique", SIZE, suns=(0, 1))


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_frames_come_back_as_they_were_written(lightings, tmp_path):
    names = write.write_stereolunar(lightings, tmp_path / "moon")
    assert names == [
        "Oblique/paire1/im_00000-im_00001",
        "Oblique/paire1/im_00002-im_00003",
    ]
    for number, pair in enumerate(lightings):
        for view in range(2):
            stem = tmp_path / "moon/Oblique/paire1" / f"im_{2 * number + view:05d}"
            exr = OpenEXR.File(str(stem.with_suffix(".exr")))
            assert exr.header()["compression"] == OpenEXR.PIZ_COMPRESSION
            assert list(exr.channels()) == ["Y"]
            depth = exr.channels()["Y"].pixels
            assert depth.dtype == np.float16
            valid = np.isfinite(depth)
            # HALF overflows at 65 504 m, nothing else may be lost.
            assert (valid == (pair.valid[view] & (pair.depth_m[view] < 65504))).all()
            np.testing.assert_allclose(  # half a step of HALF is 2^-11
                depth[valid].astype(np.float64), pair.depth_m[view][valid], rtol=2**-11
            )
            with np.load(stem.with_suffix(".npz")) as camera:
                assert sorted(camera.files) == ["cam2world", "intrinsics"]
                assert camera["intrinsics"].dtype == camera["cam2world"].dtype == np.float32
                assert camera["intrinsics"][0, 2] == camera["intrinsics"][1, 2] == SIZE / 2
                relative = np.abs(camera["cam2world"] - pair.T_world_cam[view])
                assert (relative <= 1e-7 * np.maximum(np.abs(pair.T_world_cam[view]), 1)).all()
            image = np.asarray(Image.open(stem.with_suffix(".jpg")))
            assert image.shape == (SIZE, SIZE, 3)
            assert (image == image[..., :1]).all()
            # JPEG at quality 95; seen 0.6 to 0.8.
            assert np.abs(image.astype(float) - pair.image[view]).mean() < 2


def test_float_depth_is_exact(lightings, tmp_path):
    write.write_stereolunar(lightings[:1], tmp_path / "moon", half_depth=False)
    depth = OpenEXR.File(str(tmp_path / "moon/Oblique/paire1/im_00001.exr")).channels()["Y"].pixels
    assert depth.dtype == np.float32
    valid = lightings[0].valid[1]
    assert (depth[valid] == lightings[0].depth_m[1][valid]).all()
    assert np.isinf(depth[~valid]).all()


def test_frames_of_one_camera_share_depth_and_camera_bytes(lightings, tmp_path):
    write.write_stereolunar(lightings, tmp_path / "moon")
    found = digests(tmp_path / "moon")
    for kind in ("exr", "npz"):
        for view in range(2):
            first, second = (f"Oblique/paire1/im_0000{view + 2 * k}.{kind}" for k in range(2))
            assert found[first] == found[second]
    assert found["Oblique/paire1/im_00000.jpg"] != found["Oblique/paire1/im_00002.jpg"]


def test_split_file_says_which_frames_pair(lightings, tmp_path):
    other = moon.make_lightings(4, "nadir", SIZE, suns=(2,))
    again = moon.make_lightings(5, "oblique", SIZE, suns=(1,))
    write.write_stereolunar([*lightings, *other, *again], tmp_path / "moon")
    with np.load(tmp_path / "moon/split.npz", allow_pickle=False) as split:
        assert split["scenes"].tolist() == ["Oblique/paire1", "Nadir/paire1", "Oblique/paire2"]
        rows = [
            (str(split["scenes"][s]), str(split["images"][a]), str(split["images"][b]), score)
            for s, a, b, score in split["pairs"].tolist()
        ]
    assert [row[:3] for row in rows] == [
        ("Oblique/paire1", "im_00000", "im_00001"),
        ("Oblique/paire1", "im_00002", "im_00003"),
        ("Nadir/paire1", "im_00000", "im_00001"),
        ("Oblique/paire2", "im_00004", "im_00005"),
    ]
    for scene, first, _, score in rows:
        assert (tmp_path / "moon" / scene / f"{first}.exr").is_file()
        assert 0.4 < score < 1


def test_a_failure_leaves_nothing_behind(lightings, tmp_path):
    def breaks():
        yield lightings[0]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write.write_stereolunar(breaks(), tmp_path / "moon")
    assert list(tmp_path.iterdir()) == []


def test_render_twice_gives_the_same_bytes(tmp_path, capsys):
    for name in ("a", "b"):
        out = str(tmp_path / name)
        assert cli.main(["render", "--out", out, "--pairs", "4", "--size", "64"]) == 0
    first, second = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert first == second
    # Three suns over the first camera pair, one over the second.
    assert len(first) == 4 * 2 * 3 + 2
    assert {"split.npz", "preview.png", "Nadir/paire1/im_00005.jpg"} < first.keys()
    assert "Oblique/paire1/im_00001.exr" in first
    sheet = Image.open(io.BytesIO((tmp_path / "a/preview.png").read_bytes()))
    assert sheet.width > 1000
    assert "Wrote 4 pairs of 64 x 64 pixels" in capsys.readouterr().out


def test_render_obeys_sun_trajectory_and_seed(tmp_path):
    def rendered(name, *extra):
        arguments = ["render", "--out", str(tmp_path / name), "--pairs", "1", "--size", "64"]
        assert cli.main([*arguments, "--trajectory", "dynamic", *extra]) == 0
        found = digests(tmp_path / name)
        return [found[f"Dynamic/paire1/im_00000.{kind}"] for kind in ("jpg", "exr")]

    plain = rendered("plain", "--sun", "0")
    low = rendered("low", "--sun", "0,7")
    assert plain[0] != low[0] and plain[1] == low[1]
    shadows = rendered("shadows", "--sun", "0,7", "--cast-shadows")
    assert shadows[0] != low[0] and shadows[1] == low[1]
    assert rendered("seed", "--sun", "0", "--seed", "1")[1] != plain[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    (
        (["--pairs", "0"], "--pairs is '0': give a whole number of 1 or more."),
        (["--size", "31"], "--size is '31': give a whole number of 32 or more."),
        (["--size", "big"], "--size is 'big': give a whole number of 32 or more."),
        (["--seed", "-1"], "--seed is '-1': give a whole number of 0 or more."),
        (["--trajectory", "up"], "--trajectory is 'up': choose nadir, oblique, dynamic or mixed."),
        (["--sun", "5"], "--sun is '5': give presets"),
        (["--sun", "10,-2"], "--sun is '10,-2': give presets"),
        (["--sun", "nan,nan"], "--sun is 'nan,nan': give presets"),
    ),
)
def test_wrong_flags_are_one_sentence(flags, message, tmp_path, capsys):
    arguments = ["render", "--out", str(tmp_path / "moon"), "--pairs", "1", "--size", "64"]
    assert cli.main([*arguments, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "moon").exists()


def test_output_folder_must_be_new_and_writable(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out, message in (("full", "is not empty"), ("file/moon", "Cannot write")):
        arguments = ["render", "--out", str(tmp_path / out), "--pairs", "1", "--size", "64"]
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "full/letter.txt").read_text() == "mine"


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["render", "--help"])
    assert stop.value.code == 0
    assert "lunar-distill render --out moon --pairs 12 --size 224" in capsys.readouterr().out


def test_overlap_is_one_for_equal_views_and_zero_for_strangers(lightings):
    pair = lightings[0]
    twice = moon.make_pair(3, "oblique", SIZE)
    same = {name: np.stack([getattr(twice, name)[0]] * 2) for name in ("depth_m", "valid")}
    pose = np.stack([pair.T_world_cam[0]] * 2)
    image, K = pair.image, np.stack([cameras.intrinsics(SIZE)] * 2)
    make = type(pair)
    twin = make("a", "a", "oblique", image, same["depth_m"], same["valid"], K, pose)
    assert write.overlap(twin) == 1
    away = pose.copy()
    away[1, :3, 3] += 1e6
    stranger = make("a", "a", "oblique", image, same["depth_m"], same["valid"], K, away)
    assert write.overlap(stranger) == 0


def test_unknown_sun_is_refused_before_any_work():
    with pytest.raises(InputError, match="no sun 9"):
        moon.make_lightings(0, "nadir", SIZE, suns=(9,))
