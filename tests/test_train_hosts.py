"""One run of two processes: a lost one ends the other in seconds, and the run comes back."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny

import lunar_distill_jax as ld
from lunar_distill_jax import cli
from lunar_distill_jax.runs import hosts
from lunar_distill_jax.train.loop import read_history
from lunar_distill_jax.train.watching import EVALUATIONS

STEPS, HEARTBEAT = 24, 10
CONFIG = f"""
from lunar_distill_jax.train.options import data_block, run_config

def get_config():
    c = run_config()
    c.student, c.steps, c.batch, c.augment = "test", {STEPS}, 4, False
    c.loss.points = 1.0
    c.optim.update(lr=1e-3)
    c.data = data_block(source="synthetic", size=32, geometries=3)
    c.sets = {{"unseen": data_block(source="synthetic", size=32, geometries=2, seed=100)}}
    c.log_every, c.checkpoint_every, c.evaluate_every, c.tensorboard = 1, 2, 12, False
    return c
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return path


class Both:
    """Both processes of a run; each has a process group of its own, as hosts would."""

    def __init__(self, config, workdir, *more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.workdir, self.said = workdir, [workdir.with_suffix(f".{i}.txt") for i in range(2)]
        self.environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(tiny.REPOSITORY / ".pytest_cache/jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "PYTHONPATH": str(tiny.REPOSITORY),
            "XLA_FLAGS": "",
        }
        self.processes = []
        for i in range(2):
            words = ["--config", config, "--workdir", workdir, "--process", i, "--processes", 2]
            words += ["--coordinator", f"127.0.0.1:{port}", "--heartbeat-timeout", HEARTBEAT]
            command = [sys.executable, "-m", "lunar_distill_jax", "train", *words, *more]
            with open(self.said[i], "w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*map(str, command)],
                        env=self.environment,
                        stderr=file,
                        start_new_session=True,
                    )
                )

    def at_step(self, step):
        while len(read_history(self.workdir)) < step:
            assert all(p.poll() is None for p in self.processes), self.texts()
            time.sleep(0.02)
        return self

    def texts(self):
        return [path.read_text() for path in self.said]

    def codes(self):
        return [p.wait(timeout=900) for p in self.processes]


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory):
    both = Both(config, tmp_path_factory.mktemp("unbroken") / "run")
    assert both.codes() == [0, 0], both.texts()
    return both.workdir


def assert_same(a, b):
    one, other = ld.load(a), ld.load(b)
    for x, y in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(x, y)
    assert read_history(a) == read_history(b)
    assert len(read_history(a)) == STEPS
    assert read_history(a, EVALUATIONS) == read_history(b, EVALUATIONS) != []


@pytest.mark.slow
@pytest.mark.parametrize("killed", (1, 0))
def test_where_one_host_is_lost_the_other_ends_and_both_go_on(killed, unbroken, config, tmp_path):
    both = Both(config, tmp_path / "run").at_step(6)
    os.killpg(both.processes[killed].pid, signal.SIGKILL)
    start = time.monotonic()
    code = both.processes[1 - killed].wait(timeout=120)
    seconds = time.monotonic() - start
    said = both.texts()[1 - killed]
    print(f"process {killed} killed; the other ended by {code} after {seconds:.1f} s:\n{said}")
    assert code not in (0, 2) and seconds < HEARTBEAT + 5
    assert said.count("Another process of this run is lost or has ended") == 1
    assert "Traceback" not in said and "absl" not in said
    assert 0 < len(read_history(tmp_path / "run")) < STEPS
    again = Both(config, tmp_path / "run")
    assert again.codes() == [0, 0], again.texts()
    assert_same(tmp_path / "run", unbroken)


@pytest.mark.slow
def test_restarts_bring_a_lost_process_back(unbroken, config, tmp_path):
    both = Both(config, tmp_path / "run", "--max-restarts", 6).at_step(6)
    os.kill(child_of(both.processes[1].pid), signal.SIGKILL)
    assert both.codes() == [0, 0], both.texts()
    said = both.texts()
    print(*said, sep="\n---\n")
    assert all("it is started again" in text for text in said)
    assert_same(tmp_path / "run", unbroken)


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_began(unbroken, config, tmp_path):
    both = Both(config, tmp_path / "run").at_step(6)
    for process in both.processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    environment = both.environment | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    words = ["train", "--config", config, "--workdir", tmp_path / "run"]
    command = [sys.executable, "-m", "lunar_distill_jax", *map(str, words)]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_history(tmp_path / "run")] == list(range(1, STEPS + 1))
    one, two = (jax.tree.leaves(ld.load(w).params) for w in (tmp_path / "run", unbroken))
    for x, y in zip(one, two, strict=True):
        assert np.max(np.abs(x - y)) < 1e-5


@pytest.mark.slow
def test_sigterm_for_one_stops_both_after_the_same_step(unbroken, config, tmp_path):
    both = Both(config, tmp_path / "run").at_step(6)
    both.processes[1].send_signal(signal.SIGTERM)
    assert both.codes() == [0, 0], both.texts()
    steps = [re.search(r"stopped after step (\d+), which is saved", t) for t in both.texts()]
    assert steps[0] and steps[1] and steps[0][1] == steps[1][1]
    assert (tmp_path / "run/checkpoints" / steps[0][1]).is_dir()
    again = Both(config, tmp_path / "run")
    assert again.codes() == [0, 0], again.texts()
    assert_same(tmp_path / "run", unbroken)


def child_of(pid):
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


# The supervisor -----------------------------------------------------------------------------------


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Lets `supervise` start a small program instead of a run -> its source's setter."""
    real = subprocess.Popen

    def instead(source):
        def start(command, **kinds):
            return real([sys.executable, "-c", source, *command[3:]], cwd=tmp_path, **kinds)

        monkeypatch.setattr(hosts, "WAIT", 0.0)
        monkeypatch.setattr(subprocess, "Popen", start)

    return instead


DIES_TWICE = """
import os, pathlib, sys
tries = pathlib.Path("tries")
count = len(tries.read_text()) if tries.exists() else 0
tries.write_text("x" * (count + 1))
sys.exit(0) if count == 2 else os.kill(os.getpid(), 9) if count else sys.exit(7)
"""
ABORTED = f"""
import os, sys
print("a line of its own", file=sys.stderr)
print("F1125 client.h:80] {hosts.ABORTED}. absl::Status", "*** stack", sep="\\n", file=sys.stderr)
sys.stderr.flush()
os.abort()
"""


def test_a_run_that_dies_is_started_again(child, tmp_path, capsys):
    child(DIES_TWICE)
    assert hosts.supervise(["train"], 5) == 0
    assert (tmp_path / "tries").read_text() == "xxx"
    said = capsys.readouterr().err
    assert "ended by exit code 7: it is started again (5 more times" in said
    assert "ended by signal 9: it is started again (4 more times" in said


def test_restarts_have_an_end_and_wrong_input_is_not_tried_again(child, tmp_path, capsys):
    child(DIES_TWICE)
    assert hosts.supervise(["train"], 1) == 128 + 9
    child("import sys; sys.exit(2)")
    assert hosts.supervise(["train"], 5) == 2
    assert capsys.readouterr().err.count("started again") == 1


def test_a_lost_process_is_one_sentence(child, capsys):
    child(ABORTED)
    assert hosts.supervise(["train"], 0, together=True) == 128 + signal.SIGABRT
    said = capsys.readouterr().err
    assert said.startswith("a line of its own\n") and "stack" not in said and "absl" not in said
    assert said.count("Another process of this run is lost or has ended") == 1


def test_flags_of_several_processes_belong_together(config, tmp_path, capsys):
    given = ["train", "--config", str(config), "--workdir", str(tmp_path / "run")]
    assert cli.main([*given, "--process", "1"]) == 2
    assert "--processes and --process need --coordinator" in capsys.readouterr().err
    given += ["--coordinator", "127.0.0.1:1", "--processes", "2", "--supervised"]
    assert cli.main([*given, "--process", "2"]) == 2
    assert "found 2 and 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


PROCESS = """
import os, pathlib, signal, sys, time
import numpy as np
from jax.experimental import multihost_utils
from lunar_distill_jax.runs import hosts

rank, port = int(sys.argv[1]), sys.argv[2]
hosts.join(f"127.0.0.1:{port}", 2, rank, 10)
with hosts.leaving():
    for i in range(30):
        multihost_utils.process_allgather(np.array(i))
        time.sleep(0.1)
        if rank == 1 and i == 15 and not os.path.exists("died"):
            pathlib.Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""
SUPERVISOR = """
import subprocess, sys
from lunar_distill_jax.runs import hosts

real = subprocess.Popen
command = [sys.executable, "process.py", *sys.argv[1:]]
hosts.subprocess.Popen = lambda words, **kinds: real(command, **kinds)
sys.exit(hosts.supervise([], 3, together=True, heartbeat_timeout=10))
"""


@pytest.mark.slow
def test_supervisors_bring_two_processes_back_together(tmp_path):
    """The real supervisors and the real service, without the cost of a network."""
    (tmp_path / "process.py").write_text(PROCESS)
    (tmp_path / "supervisor.py").write_text(SUPERVISOR)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.REPOSITORY)}
    environment["XLA_FLAGS"] = ""
    both = [
        subprocess.Popen(
            [sys.executable, "supervisor.py", str(rank), port],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0].count("Another process of this run is lost or has ended") == 1
    assert [text.count("it is started again") for text in said] == [1, 1]
    assert "ended by signal 9" in said[1] and "Traceback" not in said[0]
