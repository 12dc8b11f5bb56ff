"""`lunar-distill evaluate` from folder to pages, and what the pages say."""

import csv
import dataclasses
import json
import re
import urllib.parse

import numpy as np
import pytest
import tiny
import waves
from parsed import Page

import lunar_distill_jax as ld
from lunar_distill_jax import cli
from lunar_distill_jax.data.write import write_stereolunar
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.evaluation import baselines, classical, contenders, dataset, efficiency, run
from lunar_distill_jax.evaluation.protocol import OURS, PAPER
from lunar_distill_jax.report import charts, evaluation_pages, tables
from lunar_distill_jax.report import evaluation_sections as sections
from lunar_distill_jax.report.evaluation_pages import Text

COSTS = {"size": "48x48", "device": "a <device>", **dict.fromkeys(efficiency.METRICS, 30.0)}
TEXT = Text("A & B on waves", "waves", "What was <done>.", {"Data": "waves"}, "evaluate --x '<y>'")


def bent(amount):
    """A predictor whose depths are wrong by up to `amount`, more so for each pair."""

    def predict(pairs):
        slope = np.linspace(-amount, amount, 48)
        steps = [1 + int(pair.name[-1]) for pair in pairs]
        conf = 2 - np.abs(np.linspace(-1, 1, 48)) * np.ones((2, 48, 1))
        return [
            waves.from_depths(pair, pair.depth_m * (1 + k * slope), conf)
            for k, pair in zip(steps, pairs, strict=True)
        ]

    return predict


def gives_up(pairs):
    return [classical.no_answer(pair, np.zeros((0, 4))) for pair in pairs]


PREDICTORS = {
    "A": bent(0.01),
    "net/B <i>": bent(0.03),
    "baseline_plane": baselines.plane_baseline,
    "baseline_sift": gives_up,
    "noise_floor": baselines.noise_floor,
}
SHOWN_BY = {"ours": [*PREDICTORS], "paper": ["A", "net/B <i>", "baseline_sift"]}


@pytest.fixture(scope="module", params=[OURS, PAPER], ids=lambda protocol: protocol.name)
def study(request, tmp_path_factory):
    """(protocol, evaluation, folder) of five predictors on three pairs of two geometries."""
    pairs = [waves.wavy_pair(i // 2, 48, name=f"set/p{i}") for i in range(3)]
    pairs = [dataclasses.replace(p, geometry=f"g{i // 2}") for i, p in enumerate(pairs)]
    data = dataset.Dataset(pairs)
    predictors = {name: PREDICTORS[name] for name in SHOWN_BY[request.param.name]}
    evaluation = run.evaluate(predictors, data, protocol=request.param)
    folder = tmp_path_factory.mktemp(request.param.name)
    costs = {"A": COSTS, "net/B <i>": {**COSTS, "gflops": 200.0}}
    with pytest.MonkeyPatch.context() as fewer:  # pictures take most of the time
        fewer.setattr(evaluation_pages, "SHOWN", 1)
        fewer.setattr(evaluation_pages, "SHOWN_OF_MODEL", 1)
        evaluation_pages.write_pages(folder, evaluation, predictors, data.read, costs, TEXT)
    return request.param, evaluation, folder


def test_pages_link_to_each_other_and_to_nothing_else(study):
    protocol, _, folder = study
    first = folder / "report.html"
    pages = {first, *(folder / "models").iterdir()}
    assert len(pages) == 1 + len(SHOWN_BY[protocol.name])
    reached = set()
    for path in pages:
        text = path.read_text()
        for address in Page(text).addresses:  # every tag is closed, too
            if address.startswith(("data:", "#")):
                continue
            target = (path.parent / urllib.parse.unquote(address)).resolve()
            assert target in pages, address
            reached.add(target)
        assert "@import" not in text and not re.search(r"url\(\s*['\"]?http", text)
        assert "<i>" not in re.sub(r"<i style[^>]*></i>", "", text)  # names are escaped
    assert reached == pages
    assert any((folder / "pictures").iterdir())


def test_the_comparison_has_every_model_metric_and_doubt(study):
    protocol, evaluation, folder = study
    page = Page((folder / "report.html").read_text())
    for name in SHOWN_BY[protocol.name]:
        assert tables.model_name(name) in page.text
    for metric in protocol.metrics.values():
        assert metric.name in page.text, metric.name
    for words in ("Cost", "a <device>", "work", "95\u00a0% interval", "evaluate --x '<y>'"):
        assert words in page.text
    assert ("What is wrong with these numbers" in page.text) == (protocol is PAPER)
    if protocol is PAPER:
        assert all(fault in page.text for fault in protocol.faults.values())
    else:
        assert "has no answer for 100 % of the pairs" in page.text
        assert "✗ work" in page.text  # 200 GFLOPs are too many for tiers B and C
        assert "Against A" in page.text and "Calibration" in page.text
        assert "false alarm" in page.text and "By condition" in page.text
    assert "No answer: SIFT, five-point" in page.text


def test_a_model_s_page_shows_its_worst_pair_first(study):
    protocol, evaluation, folder = study
    text = (folder / "models/A.html").read_text()
    listed = re.findall(r'<tr><th scope="row">set/<wbr>(p\d)</th>', text)
    assert listed == ["p2", "p1", "p0"]  # bent more and more
    # Pictures: the worst of each geometry before a second sun over one of them.
    assert sections.worst_of_each(evaluation, "A", 3) == ["set/p2", "set/p1", "set/p0"]
    assert sections.worst_of_each(evaluation, "A", 1) == ["set/p2"]
    page = Page(text)
    assert ("Noise floor" in page.text) == (protocol is OURS) and "net/B" not in page.text.replace(
        TEXT.title, ""
    )


def test_bins_are_in_order_and_marks_differ():
    assert [n for n, _ in sections._in_order("rotation", {"above 45°": {}, "below 10°": {}})] == [
        "below 10°",
        "above 45°",
    ]
    marks = [(charts.style(i), charts.shape(i)) for i in range(25)]
    assert len(set(marks)) == 25


# The verb -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moon(tmp_path_factory):
    """Two pairs on disk, larger than the network's frames, and a network."""
    root = tmp_path_factory.mktemp("verb")
    write_stereolunar([tiny.plane_pair(i, size=(64, 64)) for i in range(2)], root / "moon")
    ld.save(ld.build(tiny.CONFIG, 0), root / "net.safetensors")
    return root


def test_the_verb_and_the_function_agree(moon, capsys):
    model, data, out = (str(moon / name) for name in ("net.safetensors", "moon", "out"))
    arguments = ["evaluate", "--model", model, "--data", data, "--out", out, "--size", "32"]
    assert cli.main([*arguments, "--baselines", "plane", "sift"]) == 0
    assert "point error" in capsys.readouterr().out.lower()
    metrics = json.loads((moon / "out/metrics.json").read_text())
    assert list(metrics) == [
        "net",
        "net_adjusted",
        "baseline_plane",
        "baseline_sift",
        "noise_floor",
    ]
    assert metrics["net"]["cost"]["size"] == "32x32" and metrics["net"]["pairs"] == 2
    assert metrics["noise_floor"]["point_error_pct"] < 1e-4
    assert set(metrics["baseline_plane"]["versus"]) == {"net"}
    with open(moon / "out/pairs.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 and 0 < float(rows[0]["overlap_value"]) <= 1
    assert (moon / "out/models/net.html").is_file() and (moon / "out/report.html").is_file()
    alone = ld.evaluate(ld.load(model), data, size=32)
    assert alone["point_error_pct"] == pytest.approx(metrics["net"]["point_error_pct"], rel=1e-5)
    assert alone["interval95"] and "trajectory" in alone and "by" in alone


def test_names_of_models(moon, tmp_path, monkeypatch):
    here = moon / "net.safetensors"
    there = tmp_path / "net.safetensors"
    there.write_bytes(here.read_bytes())
    net = ld.load(here)
    monkeypatch.setattr(contenders.api, "build", lambda name: net.replace(params={}))
    models = contenders.networks([str(here), str(there), "test"])
    assert list(models) == ["net", f"{tmp_path.name}/net", "test (untrained)"]
    assert contenders.common_side(models) == contenders.SIDE
    models["other"] = net.replace(meta={"training_size": "64x128"})
    assert contenders.common_side(models) == 128
    with pytest.raises(InputError, match="test is given twice"):
        contenders.networks(["test", "test"])
    clash = tmp_path / "net_adjusted.safetensors"
    clash.write_bytes(here.read_bytes())
    with pytest.raises(InputError, match="net_adjusted is called as the adjusted maps of net are"):
        contenders.networks([str(here), str(clash)])
    with pytest.raises(InputError, match="no baseline 'sgbm': choose from mean, identity, random"):
        contenders.check(["plane", "sgbm"])


def test_stored_frames_keep_their_size(moon):
    data = dataset.open_dataset(moon / "moon", size=32, geometries=0, seed=0)
    (one, two) = data
    assert one.valid.shape == (2, 32, 32) and data.stored(one).valid.shape == (2, 64, 64)
    assert data.read(two.name).name == data.stored(two).name == two.name
    fresh = dataset.open_dataset(moon / "moon", size=32, geometries=0, seed=0)
    assert fresh.read(two.name).name == two.name  # known without having been read before
