"""The main job, tiny, from rendering to the page."""

import json
import re

import numpy as np
import pytest
import tiny

import lunar_distill_jax as ld
from lunar_distill_jax import api, cli, demo
from lunar_distill_jax.twoview import essential

NETWORKS = ("teacher", "student_before", "student_after", "student_paper")
BASELINES = ("mean", "identity", "random", "plane")
CLASSICAL = ("sift", "sgm") if essential.has_opencv() else ()
ADJUSTED = ("teacher_adjusted", "student_after_adjusted")
MODELS = {*NETWORKS, *ADJUSTED, *(f"baseline_{name}" for name in (*BASELINES, *CLASSICAL))}


def check(workdir, steps):
    """What `make demo` promises of its folder, whatever the model has learned."""
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert metrics.keys() == MODELS
    crossed = json.loads((workdir / "metrics_crossed.json").read_text())
    assert crossed.keys() == MODELS and crossed["teacher"]["failed_pct"] == 0
    for name in (*NETWORKS, *ADJUSTED, "baseline_mean", "baseline_plane"):
        assert 0 <= metrics[name]["point_error_pct"] < 1e3
        assert -1 <= metrics[name]["relief_corr_detrended"] <= 1
        assert metrics[name]["failed_pct"] == 0
    # A plane has no relief to correlate, only float32 rounding: 0.04 was seen.
    assert abs(metrics["baseline_plane"]["relief_corr"]) < 0.2
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == steps and np.isfinite(rows[-1]["loss"])
    page = (workdir / "report.html").read_text()
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "@import" not in page and not re.search(r"url\(\s*['\"]?http", page)
    assert "Under crossed suns" in page and "Licence" in page
    assert page.index("<canvas") < page.index("<h2>Results")  # it opens on the surface
    assert any((workdir / "pictures").iterdir())
    assert len((workdir / "pairs.csv").read_text().splitlines()) > 5
    return metrics


def test_demo_end_to_end(tmp_path):
    teacher = ld.build("test", 5).replace(meta={"licence": "a licence of this test"})
    ld.save(teacher, tmp_path / "teacher.safetensors")
    config = demo.get_config("tiny")
    config.teacher, config.encoder = str(tmp_path / "teacher.safetensors"), ""
    config.student, config.optim.multipliers = "test", ()
    evaluation = demo.run_demo(config, tmp_path / "demo", "a command <of this test>")
    metrics = check(tmp_path / "demo", config.steps)
    assert metrics["teacher"]["pairs"] == 3 and evaluation.summary.keys() == MODELS
    assert metrics["student_after"] != metrics["student_before"]
    page = (tmp_path / "demo/report.html").read_text()
    assert "a command &lt;of this test&gt;" in page and "a licence of this test" in page
    student = ld.load(tmp_path / "demo")
    assert student.config.name == "test" and student.meta["licence"] == "a licence of this test"


def test_pictures_are_spread_over_trajectories_and_geometries():
    kinds = ["nadir"] * 5 + ["oblique"] * 2 + ["dynamic"]
    pairs = [tiny.plane_pair(i // 2, trajectory=kind) for i, kind in enumerate(kinds)]
    chosen = demo.spread(pairs, 4)
    assert [p.trajectory for p in chosen] == ["nadir", "oblique", "nadir", "nadir"]
    assert [p.name for p in chosen] == ["plane0", "plane3", "plane1", "plane2"]
    assert len(demo.spread(pairs, 50)) == 4 and demo.spread(pairs, 0) == []


def test_full_and_tiny_configs_have_the_same_keys():
    full, small, hour = (demo.get_config(mode) for mode in ("full", "tiny", "hour"))
    assert full.to_dict().keys() == small.to_dict().keys()
    changed = {k for k, v in hour.items() if v != full[k]}
    # The demo's own settings, extended.
    assert changed == {"steps", "batch", "matches", "data", "optim"}
    assert full.evaluate.seed + full.evaluate.geometries <= full.data.seed  # unseen is unseen
    with pytest.raises(ValueError, match="Unknown mode 'huge'"):
        demo.get_config("huge")


@pytest.mark.slow
def test_demo_verb_on_the_embedded_teacher(tmp_path, capsys):
    try:
        api.load("moonlet")
    except ld.api.InputError:
        pytest.skip("this checkout has no embedded moonlet")
    assert cli.main(["demo", "--tiny", "--workdir", str(tmp_path / "demo")]) == 0
    check(tmp_path / "demo", 4)
    assert "student_after" in capsys.readouterr().out
