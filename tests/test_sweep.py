"""Sweeps: groups, one table whoever works on it, and a trial that fails alone."""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny

import lunar_distill_jax as ld
from lunar_distill_jax import cli
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.zoo import architecture
from lunar_distill_jax.sweep import group, memory, run
from lunar_distill_jax.sweep.planner import members, plan_groups
from lunar_distill_jax.sweep.results import front, over_seeds
from lunar_distill_jax.sweep.trials import Spec, name_of, read_sweep

CONFIG = """
from lunar_distill_jax.train.options import data_block, run_config

def get_config(mode="full"):
    c = run_config()
    c.teacher, c.student = {teacher!r}, "test"
    c.steps, c.batch, c.augment = 3, 2, False
    c.loss.points = 1.0
    c.optim.update(lr=1e-3)
    c.mesh.data = 1
    c.data = data_block(source="synthetic", size=32, geometries=3)
    c.sets = {{"unseen": data_block(source="synthetic", size=32, geometries=2, seed=100)}}
    c.evaluate_every, c.log_every, c.checkpoint_every = 2, 1, 2
    c.tensorboard = False
    c.sweep.update(most={most}, latency=False, heartbeat=2)
    return c

def get_sweep():
    for ratio in {ratios}:
        for relief in (0.0, 1.0):
            for seed in (0, 1):
                yield {{"decoder.mlp_ratio": ratio, "loss.relief": relief, "seed": seed}}
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    ld.save(ld.build("test", 5).replace(meta={"licence": "of this test"}), path)
    return str(path)


def config_file(folder, teacher, ratios=(0.0,), most=2):
    path = folder / "small.py"
    path.write_text(CONFIG.format(teacher=teacher, ratios=ratios, most=most))
    return str(path)


def table(workdir):
    with open(workdir / "results.csv") as file:
        return list(csv.DictReader(file))


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
    results = {
        k: {"student": k, "sets": {"x": {"abs_rel": v}}, "parameters": p, "macs": p}
        for k, (v, p) in values.items()
    }
    rows = over_seeds(specs, results, "x", "abs_rel")
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


@pytest.mark.slow  # two programs are compiled, each with a teacher and two trials
def test_a_trial_that_fails_is_named_and_alone_is_tried_again(
    teacher, tmp_path, monkeypatch, capsys
):
    path, workdir = config_file(tmp_path, teacher), tmp_path / "sweep"
    arguments = ["sweep", "--config", path, "--workdir", str(workdir)]
    bad, begun, begin = "mlp_ratio0.0-relief1.0-seed0", [], group.begin

    def crashing(config, *more):
        begun.append((config.loss.relief, config.seed))
        if crash and (config.loss.relief, config.seed) == (1.0, 0):
            raise RuntimeError("a crash of this test")
        return begin(config, *more)

    monkeypatch.setattr(group, "begin", crashing)
    crash = True
    assert cli.main(arguments) == 1
    assert len(begun) == 4
    said = capsys.readouterr().err
    assert f"the trial {bad} failed: RuntimeError: a crash of this test" in said
    rows = table(workdir)
    assert len(rows) == 3 and bad not in {row["trial"] for row in rows}
    assert all(np.isfinite(float(row["unseen/point_error_pct"])) for row in rows)
    page = (workdir / "report.html").read_text()
    assert "a crash of this test" in page and "3 of 4 trials have a result, 1 failed" in page

    crash = False
    begun.clear()
    assert cli.main(arguments) == 0
    assert begun == [(1.0, 0)]
    rows = table(workdir)
    assert [row["trial"] for row in rows] == [s.name for s in read_sweep(path)[1]]
    page = (workdir / "report.html").read_text()
    assert "Error against cost" in page and "<svg" in page and "4 of 4" in page
    for row in rows:
        trained = ld.load(workdir / "trials" / row["trial"])
        assert trained.config == architecture("test")
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
def test_memory_is_what_the_compiler_says(teacher, tmp_path):
    _, specs = read_sweep(config_file(tmp_path, teacher))
    one, four = memory.peak_bytes(specs[:1]), memory.peak_bytes(specs)
    assert one < four < 4.5 * one
    base = specs[0].config
    base.sweep.memory_gb = four * 0.9 / 1e9
    base.sweep.most = 4
    assert [len(g) for g in run.planner(base, specs, specs, alone=False)()] == [2, 2]


# Many workers -------------------------------------------------------------------------------------


def command(*arguments):
    return [sys.executable, "-m", "lunar_distill_jax", *map(str, arguments)]


def environment():
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tiny.REPOSITORY / ".pytest_cache/jax"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(tiny.REPOSITORY),
    }


def sweep(path, workdir, *more):
    subprocess.run(
        command("sweep", "--config", path, "--workdir", workdir, *more),
        env=environment(),
        check=True,
    )
    return table(workdir)


@pytest.fixture(scope="module")
def twelve(teacher, tmp_path_factory):
    """3 architectures x 2 methods x 2 seeds by one worker: (config file, table, seconds)."""
    folder = tmp_path_factory.mktemp("twelve")
    path = config_file(folder, teacher, ratios=(0.0, 1.0, 2.0), most=6)
    start = time.monotonic()
    rows = sweep(path, folder / "one")
    return path, rows, time.monotonic() - start


@pytest.mark.slow
def test_two_workers_make_the_table_of_one(twelve, tmp_path):
    path, rows, _ = twelve
    assert len(rows) == 12
    assert sweep(path, tmp_path / "two", "--workers", 2) == rows


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(twelve, tmp_path):
    path, rows, _ = twelve
    arguments = command("sweep", "--config", path, "--workdir", tmp_path / "killed")
    worker = subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "killed/groups").exists():
        assert worker.poll() is None
        time.sleep(0.05)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert sweep(path, tmp_path / "killed") == rows


@pytest.mark.slow
def test_a_real_postgresql_serves_two_workers(twelve, tmp_path):
    binaries = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not binaries:
        pytest.skip("Debian's package postgresql is not installed")
    with postgresql(binaries[-1].parent, tmp_path) as url:
        path, rows, _ = twelve
        assert sweep(path, tmp_path / "two", "--workers", 2, "--storage", url) == rows


@pytest.mark.slow
def test_a_sweep_is_quicker_than_its_trials_one_by_one(twelve, tmp_path):
    path, _, together = twelve
    start = time.monotonic()
    for ratio in (0.0, 1.0, 2.0):
        for relief in (0.0, 1.0):
            for seed in (0, 1):
                flags = (f"decoder.mlp_ratio={ratio}", f"loss.relief={relief}", f"seed={seed}")
                subprocess.run(
                    command(
                        *("train", "--config", path, "--workdir", tmp_path / "-".join(flags)),
                        *(f"--config.{flag}" for flag in flags),
                        "--config.data_seed=0",
                    ),
                    env=environment(),
                    check=True,
                )
    apart = time.monotonic() - start
    print(f"together {together:.0f} s, one by one {apart:.0f} s: {together / apart:.2f}")
    assert together <= 0.6 * apart


class postgresql:
    """A server of its own in `folder`, by the system's user postgres where we are root."""

    def __init__(self, binaries, folder):
        self._bin, self._data = binaries, folder / "postgres"

    def _run(self, program, *arguments):
        words = [str(self._bin / program), *map(str, arguments)]
        if os.getuid() == 0:  # the server refuses to run as root
            words = ["runuser", "-u", "postgres", "--", *words]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd="/")

    def __enter__(self):
        self._data.mkdir()
        if os.getuid() == 0:
            shutil.chown(self._data, "postgres")
            for above in self._data.parents[:-2]:
                above.chmod(above.stat().st_mode | 0o011)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", "sweeper", "-N")
        options = f"-p {port} -h 127.0.0.1 -k {self._data} -F"
        self._run(
            "pg_ctl", "-D", self._data, "-o", options, "-l", self._data / "log", "-w", "start"
        )
        return f"postgresql+psycopg://sweeper@127.0.0.1:{port}/postgres"

    def __exit__(self, *_):
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "stop")


def test_a_storage_that_cannot_be_opened_is_named_without_its_password(tmp_path, capsys):
    config = pathlib.Path(__file__).parents[1] / "configs" / "sweep_decoder.py"
    storage = "nosuchdb://me:secret@localhost/x"
    arguments = ["--config", f"{config}:tiny", "--workdir", str(tmp_path / "w")]
    assert cli.main(["sweep", *arguments, "--storage", storage]) == 2
    said = capsys.readouterr().err
    assert "Cannot open the storage nosuchdb://me:***@localhost/x" in said and "secret" not in said
