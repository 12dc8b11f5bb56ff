"""The table of the family: what is measured, counted and drawn."""

import json
import types

import numpy as np
import pytest
from matplotlib.image import imread

from lunar_distill_jax import cli, measure
from lunar_distill_jax.models.accounting import mac_counts, parameter_counts
from lunar_distill_jax.models.zoo import architecture
from lunar_distill_jax.report import family

NAMES = ("mast3r", "test", "moonlet-student")


@pytest.fixture(scope="module")
def rows():
    """Counts of small networks; only the teacher's note in the picture needs its name."""
    rows = family.family_rows(NAMES[1:], measured=False)
    return [{**rows[0], "name": NAMES[0]}, *rows]


@pytest.mark.slow
def test_a_network_is_measured_at_each_size():
    found = measure.measure("test", [(32, 48), (48, 32)], rounds=2)
    assert list(found) == ["32x48", "48x32", "peak_rss_bytes"]
    for size in ("32x48", "48x32"):
        assert 0 < found[size]["fastest"] <= found[size]["seconds"] < 60
    weights = 4 * sum(parameter_counts(architecture("test")).values())
    assert weights < found["peak_rss_bytes"] < 64e9


@pytest.mark.parametrize("platform, unit", [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes_on_every_system(platform, unit, monkeypatch):
    """Where there is no /proc, getrusage is asked, whose unit depends on the system."""

    def no_proc(path):
        raise FileNotFoundError(path)

    used = types.SimpleNamespace(ru_maxrss=300_000)
    monkeypatch.setattr(measure.pathlib.Path, "read_text", no_proc)
    monkeypatch.setattr(measure.resource, "getrusage", lambda who: used)
    monkeypatch.setattr(measure.sys, "platform", platform)
    assert measure.peak_rss_bytes() == 300_000 * unit


def test_the_table_says_what_was_counted(rows):
    text = family.as_markdown(rows)
    lines = text.splitlines()
    parameters = sum(parameter_counts(architecture("test")).values())
    macs = sum(mac_counts(architecture("test"), 384, 512).values())
    assert f"| test | {parameters:,} |" in lines[3] and f"| {macs / 1e9:.1f} |" in lines[3]
    assert "1 MAC = 2 FLOP" in text and "peak RSS" not in text
    times = {"seconds": 1.25, "fastest": 1.0}
    measured = {"224x224": times, "384x512": times, "peak_rss_bytes": 3_000_000}
    text = family.as_markdown([{**row, "measured": measured} for row in rows])
    assert "| 1.25 | 1.25 | 3 |" in text and measure.machine() in text


def test_the_picture_stacks_the_parts(rows, tmp_path):
    family.plot(tmp_path / "family.png", rows)
    picture = imread(tmp_path / "family.png")
    assert picture.shape[0] > 200 and picture.shape[1] > 1000
    for part in ("encoder", "decoder", "dpt", "local_features"):
        colour = [int(family.COLOURS[part][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert np.any(np.all(np.abs(picture[..., :3] - colour) < 0.01, -1)), part


def test_the_verb(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(family, "FAMILY", ("test",))
    assert cli.main(["info", "--family", "--no-times", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "test" and row["macs_512"] == sum(row["macs_by_part"].values())
    assert cli.main(["info", "test", "--family"]) == 2
    assert "leave out test" in capsys.readouterr().err
