"""Whatever happens to a run, nothing is lost and one sentence says what to do."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from train_worker import STEPS, STUDENT_CONFIG, TEACHER, get_config, make_pairs

import lunar_distill_jax as ld
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.train import feed, watching
from lunar_distill_jax.train import workdir as workdirs
from lunar_distill_jax.train.checkpoint import check_start, is_full
from lunar_distill_jax.train.loop import read_history, train_together
from lunar_distill_jax.train.options import run_config
from lunar_distill_jax.train.preempt import Stopped, watched
from lunar_distill_jax.train.watching import EVALUATIONS, Watcher

WORKER = pathlib.Path(__file__).with_name("train_worker.py")


@pytest.fixture(scope="module")
def pairs():
    return make_pairs()


@pytest.fixture(scope="module")
def teacher():
    return ld.build(TEACHER, 7)


@pytest.fixture(scope="module")
def student():
    return ld.build(STUDENT_CONFIG, 0)


def run(workdir, pairs, teacher, student, watcher=None, **changes):
    (trained,) = train_together(
        get_config(**changes),
        workdir,
        pairs,
        teacher=teacher,
        students={"": [student]},
        watcher=watcher or Watcher(),
    ).values()
    return trained


@pytest.fixture(scope="module")
def unbroken(pairs, teacher, student, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, run(workdir, pairs, teacher, student)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_array_equal(x, y)


def steps_kept(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


# Stopped, killed, damaged -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_goes_on(number, unbroken, pairs, teacher, student, tmp_path):
    def ask(row):
        if row["step"] == 5:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        run(tmp_path, pairs, teacher, student, Watcher(on_log=ask))
    # Rows are told while the next step runs.
    assert stopped.value.step in (6, 7)
    assert steps_kept(tmp_path)[-1] == stopped.value.step
    assert stopped.value.interrupted == (number == signal.SIGINT)
    assert signal.getsignal(number) is before
    assert_same(run(tmp_path, pairs, teacher, student), unbroken[1])
    assert read_history(tmp_path) == read_history(unbroken[0])


def test_until_a_step_is_done_signals_end_the_process_and_a_second_ctrl_c_does_not_wait():
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with watched() as asked_to_stop:
        # While the first step is compiled there is nothing to save.
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
        assert not asked_to_stop(1)
        os.kill(os.getpid(), signal.SIGINT)
        assert asked_to_stop(2)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_truncated_checkpoint_falls_back_to_the_one_before(
    unbroken, pairs, teacher, student, tmp_path, capsys
):
    def power_cut(row):
        if row["step"] == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, pairs, teacher, student, Watcher(on_log=power_cut))
    assert steps_kept(tmp_path) == [4, 8]
    files = [p for p in (tmp_path / "checkpoints/8").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    trained = run(tmp_path, pairs, teacher, student)
    said = capsys.readouterr().err
    assert "The checkpoint of step 8 cannot be read" in said and "damaged/8" in said
    assert (tmp_path / "damaged/8").is_dir()
    assert_same(trained, unbroken[1])


def test_no_readable_checkpoint_is_said_once(pairs, teacher, student, unbroken, tmp_path, capsys):
    with pytest.raises(Stopped):
        run(tmp_path, pairs, teacher, student, Watcher(on_log=lambda r: os.kill(os.getpid(), 15)))
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"No checkpoint in .* can be read \(steps"):
        run(tmp_path, pairs, teacher, student)


def test_bad_batches_are_skipped_and_counted(
    pairs, teacher, student, tmp_path, monkeypatch, capsys
):
    """A NaN in the data costs the step that sees it, and no parameter."""
    made = feed.training_batches

    def with_nan(*args, start, **more):
        batch = next(made(*args, start=start, **more))
        if start == 3:
            batch["image1"][0] = np.nan
        yield batch

    monkeypatch.setattr(feed, "training_batches", with_nan)
    trained = run(tmp_path, pairs, teacher, student)
    assert [row["skipped"] for row in read_history(tmp_path)] == [0] * 3 + [1] * (STEPS - 3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.params))
    assert "1 updates of steps 4 to 4 were skipped" in capsys.readouterr().err


def test_changed_config_is_refused(unbroken, pairs, teacher, student):
    workdir = unbroken[0]
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    config = get_config()
    config.optim.lr = 1e-4
    with pytest.raises(InputError) as error:
        train_together(config, workdir, pairs, teacher=teacher, students={"": [student]})
    assert str(error.value) == (
        f"The run in {workdir} was begun with optim.lr = 0.005, and now it is 0.0001: give "
        "--config.optim.lr=0.005 to go on with it, or another --workdir."
    )
    assert before == {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    # What moves no parameter may change.
    free = {"threads": 1, "workers": 1}
    again = run(workdir, pairs, teacher, student, log_every=3, pipeline=free)
    assert_same(again, unbroken[1])


def test_two_runs_do_not_share_a_workdir(pairs, teacher, student, tmp_path):
    with workdirs.locked(tmp_path):
        with pytest.raises(InputError, match=f"in use by process {os.getpid()} on"):
            run(tmp_path, pairs, teacher, student)
    assert not (tmp_path / "run.json").exists()
    with workdirs.locked(tmp_path):
        pass


def test_disk_that_is_full(unbroken, pairs, teacher, student, tmp_path):
    """On a tmpfs that is too small: the good checkpoint stays, and with room the run goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        with pytest.raises(InputError) as error:
            run(disk / "run", pairs, teacher, student, keep_every=1, checkpoint_every=1)
        text = str(error.value)
        assert "is full" in text and "run the same command again" in text and "\n" not in text
        kept = steps_kept(disk / "run")
        assert not kept or f"that of step {kept[-1]} is kept" in text
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        assert_same(
            run(disk / "run", pairs, teacher, student, keep_every=1, checkpoint_every=1),
            unbroken[1],
        )
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_what_a_full_disk_says_is_known():
    assert is_full(OSError(28, "No space left on device"))
    assert is_full(ValueError("...: RESOURCE_EXHAUSTED: write: No space left on device"))
    assert not is_full(ValueError("nothing of the kind"))


# Watching -----------------------------------------------------------------------------------------


def evaluate_sizes(networks):
    """Two sets that choose different steps: a stand-in that needs no forward pass."""

    def value(network, sign):
        return sign * float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(network.params)))

    return {
        name: {folder: {"point_error_pct": value(net, sign)} for folder, net in networks.items()}
        for name, sign in (("small", 1), ("large", -1))
    }


@pytest.mark.slow
def test_best_of_each_set_is_kept_and_sets_are_not_mixed(pairs, teacher, student, tmp_path):
    config = dict(evaluate_every=2, keep_last=1, keep_every=6, optim={"ema": 0.5})
    watcher = Watcher(evaluate=evaluate_sizes)
    run(tmp_path, pairs, teacher, student, watcher, **config)
    rows = read_history(tmp_path, EVALUATIONS)
    assert {row["weights"] for row in rows} == {"raw", "ema"}
    best = {}
    for name in ("small", "large"):
        own = [row for row in rows if row["set"] == name]
        best[name] = min(own, key=lambda row: row["point_error_pct"])
        kept = ld.load(tmp_path / f"best/{name}.safetensors")
        assert f"step {best[name]['step']}, {best[name]['weights']} weights" in kept.meta["trained"]
        value = evaluate_sizes({"": kept})[name][""]["point_error_pct"]
        assert value == pytest.approx(best[name]["point_error_pct"], rel=1e-6)
    assert best["small"]["step"] != best["large"]["step"]
    assert set(steps_kept(tmp_path)) >= {STEPS, 6}
    assert len(steps_kept(tmp_path)) <= 4


def test_profile_on_request_and_events(pairs, teacher, student, tmp_path):
    tmp_path.joinpath(watching.REQUEST).touch()
    refreshed = []
    watcher = Watcher(refresh=refreshed.append)
    run(tmp_path, pairs, teacher, student, watcher, profile={"steps": 1})
    assert list((tmp_path / watching.PROFILE).rglob("*.xplane.pb"))
    assert not (tmp_path / watching.REQUEST).exists()
    assert refreshed[-1] is True and not any(refreshed[:-1])
    (events,) = (tmp_path / watching.EVENTS).iterdir()
    assert events.stat().st_size > 1000


@pytest.mark.slow
def test_a_subset_of_students_goes_on_elsewhere(pairs, teacher, student, tmp_path):
    two = {"a": [student], "b": [ld.build(STUDENT_CONFIG, 3)]}
    both = train_together(
        get_config(steps=2), tmp_path / "both", pairs, teacher=teacher, students=two
    )
    one = train_together(
        get_config(steps=1, optim={"lr": 0.0, "final": 0.0}, start_from=str(tmp_path / "both")),
        tmp_path / "one",
        pairs,
        teacher=teacher,
        students={"b": [student]},
    )
    assert_same(one["b"], both["b"])


def test_the_next_stage_may_have_other_losses(pairs, student, tmp_path):
    first = get_config(steps=2, loss={"points": 1.0, "features": 0.0, "attention": 1.0})
    first.loss.gradient = first.loss.matching = 0.0
    one = train_together(first, tmp_path / "one", pairs, teacher=None, students={"": [student]})[""]
    second = get_config(steps=1, optim={"lr": 0.0, "final": 0.0}, start_from=str(tmp_path / "one"))
    second.loss.features = second.loss.gradient = second.loss.matching = 0.0
    two = train_together(second, tmp_path / "two", pairs, teacher=None, students={"": [student]})[
        ""
    ]
    assert_same(one, two)
    second.start_from = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="start_from is .*nowhere, which holds no checkpoint"):
        train_together(second, tmp_path / "three", pairs, teacher=None, students={"": [student]})
    assert not (tmp_path / "nowhere").exists()
    # A run that has begun needs no other any more.
    (tmp_path / "one").rename(tmp_path / "gone")
    second.start_from = str(tmp_path / "one")
    again = train_together(second, tmp_path / "two", pairs, teacher=None, students={"": [student]})
    assert_same(again[""], two)


def test_a_first_save_that_was_killed_is_nothing_to_start_from(tmp_path):
    (tmp_path / "killed/checkpoints/4.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(InputError, match="start_from is .*killed, which holds no checkpoint"):
        check_start(str(tmp_path / "killed"), tmp_path / "new")


def test_every_key_that_may_change_is_one():
    config = run_config()
    for free in workdirs.FREE:
        node = config
        for part in free.split("."):
            assert part in node, free
            node = node[part]


# Processes that are killed ------------------------------------------------------------------------


def start_worker(workdir, *more, **kinds):
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(workdir), *map(str, more)], text=True, **kinds
    )


@pytest.mark.slow
def test_25_kills_leave_no_trace(tmp_path):
    """At random moments, of which many are during a save: every step saves."""
    assert start_worker(tmp_path / "whole", "long").wait() == 0
    rng = np.random.default_rng(0)
    kills = 0
    while True:
        worker = start_worker(tmp_path / "killed", "long", stdout=subprocess.PIPE)
        if kills < 25:
            worker.stdout.readline()  # it has begun to train
            time.sleep(rng.uniform(0, 0.6))
            worker.send_signal(signal.SIGKILL)
            code = worker.wait()
            kills += code == -signal.SIGKILL
            if code == 0:
                break
        else:
            assert worker.wait() == 0
            break
    assert kills == 25
    a, b = (ld.load(tmp_path / name) for name in ("whole", "killed"))
    assert_same(a, b)
    assert read_history(tmp_path / "whole") == read_history(tmp_path / "killed")
    # On another number of devices the sums have another order.
    assert start_worker(tmp_path / "mesh", "long", "stop").wait() == 0
    assert start_worker(tmp_path / "mesh", "long", "mesh").wait() == 0
    c = ld.load(tmp_path / "mesh")
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(c.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)
