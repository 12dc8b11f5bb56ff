"""Sweeps: groups, one table whoever works on it, and a trial that fails alone."""

import json
import pathlib
import re

import numpy as np
import pytest
import tiny
from small_sweep import config_file, table, write_teacher

import lunar_distill_jax as ld
from lunar_distill_jax import cli, measure
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.zoo import architecture
from lunar_distill_jax.runs.start import network_config
from lunar_distill_jax.sweep import group, memory, results, run
from lunar_distill_jax.sweep.planner import members, plan_groups
from lunar_distill_jax.sweep.results import front, over_seeds
from lunar_distill_jax.sweep.trials import Spec, name_of, read_sweep


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


# Plans --------------------------------------------------------------------------------------------


def test_trials_that_can_share_a_program_do(teacher, tmp_path):
    _, specs = read_sweep(config_file(tmp_path, teacher, ratios=(0.0, 2.0)))
    assert len(specs) == 8 and specs[0].name == "mlp_ratio0.0-relief0.0-seed0"
    (whole,) = plan_groups(specs, 8)
    assert [len(m.specs) for m in members(whole)] == [4, 4]
    assert {m.plan.on for m in members(whole)} == {("points", "relief")}
    assert [[s.name for s in g] for g in plan_groups(specs, 3)] == [
        [s.name for s in specs[i : i + 3]] for i in (0, 3, 6)
    ]
    halves = plan_groups(specs, 8, fits=lambda g: len(g) <= 3)
    assert [len(g) for g in halves] == [2, 2, 2, 2]
    # What a program cannot differ in parts it.
    other = specs[0].config.copy_and_resolve_references()
    other.batch = 4
    assert len(plan_groups([specs[0], Spec("b", {}, other)], 8)) == 2


@pytest.mark.slow  # 383 configs are checked
def test_the_shipped_sweeps_are_what_they_say():
    counts = {"sweep_paper": 60, "sweep_init": 80, "sweep_decoder": 216, "sweep_slim": 27}
    for name, count in counts.items():
        path = str(tiny.REPOSITORY / f"configs/{name}.py")
        _, specs = read_sweep(path)
        assert len(specs) == count
        assert 2 <= len(read_sweep(f"{path}:tiny")[1]) <= 4


def test_wrong_sweeps_say_what_is_wrong(teacher, tmp_path):
    path = pathlib.Path(config_file(tmp_path, teacher))
    text = path.read_text()
    for old, new, message in (
        ("def get_sweep", "def got_sweep", "has no get_sweep(): let it yield a dict"),
        ('"loss.relief"', '"loss.relieff"', "has no key relieff in config.loss: did you mean"),
        ('"seed": seed', '"seed": 0', "has two trials mlp_ratio0.0-relief0.0-seed0"),
        ("(0.0, 1.0)", "()", "has no trial"),
        ('"seed": seed', '"seed": "one"', "sets seed to 'one'"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=re.escape(message)):
            read_sweep(str(path))
    assert name_of({"student": "s2@dinov3-b", "optim.freeze": ("a/.*", "b")}) == (
        "s2@dinov3-b-freezea_._-b"
    )


def test_means_over_seeds_and_the_front():
    def spec(name, seed):
        return Spec(name, {"student": name, "seed": seed}, None)

    specs = [spec("a", 0), spec("a", 1), spec("b", 0), spec("c", 0)]
    specs = [Spec(f"{s.name}{s.changes['seed']}", s.changes, None) for s in specs]
    values = {"a0": (1.0, 10), "a1": (3.0, 10), "b0": (2.5, 5), "c0": (2.6, 7)}
    found = {
        k: {"student": k, "sets": {"x": {"abs_rel": v}}, "parameters": p, "macs": p}
        for k, (v, p) in values.items()
    }
    rows = over_seeds(specs, found, "x", "abs_rel")
    assert [(r["label"], r["mean"], r["seeds"]) for r in rows] == [
        ("a", 2.0, 2),
        ("b", 2.5, 1),
        ("c", 2.6, 1),
    ]
    # Student's t of one degree of freedom: 12.706 times the standard error, 1.
    assert rows[0]["interval"] == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)
    assert rows[1]["interval"] is None
    assert front(rows, "parameters", -1) == {0, 1}
    assert front(rows, "parameters", +1) == {1, 2}


# A whole sweep ------------------------------------------------------------------------------------


@pytest.mark.slow  # three programs are compiled, two of them of six trials
def test_a_trial_that_fails_is_named_and_alone_is_tried_again(
    teacher, tmp_path, monkeypatch, capsys
):
    path = config_file(tmp_path, teacher, ratios=(0.0, 1.0, 2.0), most=6)
    workdir = tmp_path / "sweep"
    arguments = ["sweep", "--config", path, "--workdir", str(workdir)]
    bad, begun, begin = "mlp_ratio1.0-relief1.0-seed0", [], group.begin

    def crashing(config, *more):
        begun.append((config.decoder.mlp_ratio, config.loss.relief, config.seed))
        if crash and begun[-1] == (1.0, 1.0, 0):
            raise RuntimeError("a crash of this test")
        return begin(config, *more)

    monkeypatch.setattr(group, "begin", crashing)
    crash = True
    assert cli.main(arguments) == 1
    assert len(begun) == 12
    said = capsys.readouterr().err
    assert f"the trial {bad} failed: RuntimeError: a crash of this test" in said
    rows = table(workdir)
    assert len(rows) == 11 and bad not in {row["trial"] for row in rows}
    assert all(np.isfinite(float(row["unseen/point_error_pct"])) for row in rows)
    page = (workdir / "report.html").read_text()
    assert "a crash of this test" in page and "11 of 12 trials have a result, 1 failed" in page

    crash = False
    begun.clear()
    assert cli.main(arguments) == 0
    assert begun == [(1.0, 1.0, 0)]
    rows = table(workdir)
    specs = read_sweep(path)[1]
    assert [row["trial"] for row in rows] == [s.name for s in specs]
    page = (workdir / "report.html").read_text()
    assert "Error against cost" in page and "<svg" in page and "12 of 12" in page
    for spec, row in zip(specs, rows, strict=True):
        trained = ld.load(workdir / "trials" / row["trial"])
        assert trained.config == network_config(spec.config, "test")
        found = json.loads((workdir / "trials" / row["trial"] / "result.json").read_text())
        assert found["sets"]["unseen"]["abs_rel"] == pytest.approx(
            float(row["unseen/abs_rel"]), rel=1e-5
        )

    # Nothing is left: nothing runs. Another config is not the same sweep.
    begun.clear()
    assert cli.main(arguments) == 0 and not begun
    before = (workdir / "results.csv").read_bytes()
    assert cli.main([*arguments, "--config.optim.lr=0.1"]) == 2
    assert "was begun with" in (said := capsys.readouterr().err) and "optim.lr = 0.001" in said
    assert (workdir / "results.csv").read_bytes() == before


@pytest.mark.slow
def test_a_program_that_fails_is_run_trial_by_trial(teacher, tmp_path, monkeypatch, capsys):
    """Such as one that does not fit: its trials are not lost with it."""
    _, specs = read_sweep(config_file(tmp_path, teacher))
    train_together = group.train_together

    def for_one_only(*args, students, **more):
        if sum(map(len, students.values())) > 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: in this test")
        return train_together(*args, students=students, **more)

    monkeypatch.setattr(group, "train_together", for_one_only)
    found = group.run_group(specs[:2], tmp_path, "group0")
    assert "its trials are run one by one" in capsys.readouterr().err
    assert list(found) == [s.name for s in specs[:2]]
    assert all(np.isfinite(r["loss"]) for r in found.values())


def test_a_sweep_goes_on_with_less_of_the_machine(teacher, tmp_path, monkeypatch):
    """After an out-of-memory: with groups of another size, and the trials that have a result."""
    path, workdir, groups = config_file(tmp_path, teacher), tmp_path / "sweep", []

    def no_memory_for_two(specs, folder, name):
        groups.append([s.config.sweep.memory_gb for s in specs])
        if len(specs) > 1 and not specs[0].config.sweep.memory_gb:
            return {s.name: {"failure": "out of memory"} for s in specs}
        return {s.name: {"student": "test", "loss": 1.0, "sets": {}} for s in specs}

    monkeypatch.setattr(run, "run_group", no_memory_for_two)
    monkeypatch.setattr(run, "write", lambda *everything: None)
    monkeypatch.setattr(memory, "peak_bytes", lambda specs: 1e9 * len(specs))
    assert all("failure" in r for r in run.sweep(path, [], workdir).values())
    lower = ["--config.sweep.memory_gb=1.5", "--config.mesh.data=-1"]
    found = run.sweep(path, lower, workdir)
    assert len(found) == 4 and not any("failure" in r for r in found.values())
    assert groups == [[0, 0], [0, 0], [1.5], [1.5], [1.5], [1.5]]
    for change in ("optim.lr=0.1", "evaluate_every=1"):
        with pytest.raises(InputError, match=f"was begun with .*{change.partition('=')[0]} = "):
            run.sweep(path, [f"--config.{change}"], workdir)


def test_latency_is_of_the_decoder_that_a_trial_has(teacher, tmp_path, monkeypatch):
    _, specs = read_sweep(config_file(tmp_path, teacher, ratios=(0.0, 2.0)))
    measured = []

    def measure_apart(network, sizes):
        measured.append(network.decoder.mlp_ratio)
        return {"32x32": {"seconds": network.decoder.mlp_ratio}}

    monkeypatch.setattr(measure, "measure_apart", measure_apart)
    ratio = architecture("test").decoder.mlp_ratio
    assert ratio != 2.0
    for _ in range(2):  # once each, also when it is asked for again
        rows = {s.name: {"student": "test", "frame": "32x32"} for s in specs[1:]}
        results.add_latency(tmp_path, specs, rows)
        assert measured == [ratio, 2.0]
    for spec in specs[1:]:
        expected = spec.config.decoder.mlp_ratio or ratio
        assert rows[spec.name]["latency_ms"] == pytest.approx(expected * 1e3)


@pytest.mark.slow
def test_a_network_without_a_name_is_measured_in_its_own_process(teacher, tmp_path):
    _, specs = read_sweep(config_file(tmp_path, teacher, ratios=(2.0,)))
    found = measure.measure_apart(network_config(specs[0].config, "test"), [(32, 48)])
    assert found["32x48"]["seconds"] > 0


@pytest.mark.slow
def test_memory_is_what_the_compiler_says(teacher, tmp_path):
    _, specs = read_sweep(config_file(tmp_path, teacher))
    one, four = memory.peak_bytes(specs[:1]), memory.peak_bytes(specs)
    assert one < four < 4.5 * one
    base = specs[0].config.copy_and_resolve_references()
    base.sweep.memory_gb = four * 0.9 / 1e9
    base.sweep.most = 4
    assert [len(g) for g in run.planner(base, specs, specs, alone=False)()] == [2, 2]


def test_a_storage_that_cannot_be_opened_is_named_without_its_password(tmp_path, capsys):
    config = pathlib.Path(__file__).parents[1] / "configs" / "sweep_decoder.py"
    storage = "nosuchdb://me:secret@localhost/x"
    arguments = ["--config", f"{config}:tiny", "--workdir", str(tmp_path / "w")]
    assert cli.main(["sweep", *arguments, "--storage", storage]) == 2
    said = capsys.readouterr().err
    assert "Cannot open the storage nosuchdb://me:***@localhost/x" in said and "secret" not in said
