"""`lunar-distill describe`: a table and a sheet, or one clear sentence."""

import numpy as np
import pytest
import spheres
from PIL import Image

from lunar_distill_jax import cli
from lunar_distill_jax.data import correspondences, sheet
from lunar_distill_jax.data.write import write_stereolunar


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("described") / "moon"
    write_stereolunar([spheres.ball_pair(i) for i in range(3)], root)
    return root


def test_sheet_and_table(folder, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    arguments = ["describe", str(folder), "--out", str(out), "--pairs", "3", "--size", "32x48"]
    assert cli.main([*arguments, "--matches", "64", "--turn", "quarters", "--lunar"]) == 0
    said = capsys.readouterr().out
    assert "3 pairs, 3 of them measured" in said and "baseline/depth" in said
    (row,) = [line for line in said.splitlines() if line.startswith("dynamic")]
    assert float(row.split()[1]) == pytest.approx(10, rel=0.1)  # km
    picture = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert picture.shape[0] > 600 and picture.shape[1] > 1200
    # The photographs are grey: colour is of the matches.
    assert (np.ptp(picture, axis=-1) > 80).sum() > 200
    again = tmp_path / "again.png"
    assert (
        cli.main(
            [
                *arguments[:3],
                str(again),
                *arguments[4:],
                "--matches",
                "64",
                "--turn",
                "quarters",
                "--lunar",
            ]
        )
        == 0
    )
    assert again.read_bytes() == out.read_bytes()


def test_pixels_without_depth_are_marked(tmp_path):
    pair = spheres.ball_pair(0)
    pair.valid[0, :20, :20] = False
    found = correspondences.draw(pair, np.random.default_rng(0), 64)
    sheet.save_sheet([(pair, found), (pair, None)], tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    red = (picture[..., 0] > picture[..., 1] + 40) & (picture[..., 1] == picture[..., 2])
    assert red.sum() > 1000


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--size", "7"], "--size is '7': give pixels"),
        (["--size", "32x"], "--size is '32x'"),
        (["--pairs", "0"], "--pairs is 0"),
        (["--out", "sheet.part"], "--out is 'sheet.part': give the name of a .png file"),
        (["--turn", "up"], "pipeline.turn is 'up'"),
        (["--lighting", "dark"], "lighting 'dark'"),
        (["--lighting", "cross"], "no pairs"),
    ],
)
def test_wrong_flags_are_one_sentence(folder, tmp_path, flags, message, capsys):
    out = tmp_path / "sheet.png"
    assert cli.main(["describe", str(folder), "--out", str(out), *flags]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not out.exists()
