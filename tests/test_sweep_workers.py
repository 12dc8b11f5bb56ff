"""Sweeps of several workers: one table, whoever works on it and whatever storage it has."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import tiny
from small_sweep import config_file, table, write_teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


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
    """3 architectures x 2 methods x 2 seeds by one worker: (config file, table)."""
    folder = tmp_path_factory.mktemp("twelve")
    path = config_file(folder, teacher, ratios=(0.0, 1.0, 2.0), most=6)
    return path, sweep(path, folder / "one")


@pytest.mark.slow
def test_two_workers_make_the_table_of_one(twelve, tmp_path):
    path, rows = twelve
    assert len(rows) == 12
    assert sweep(path, tmp_path / "two", "--workers", 2) == rows


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(twelve, tmp_path):
    path, rows = twelve
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
        pytest.skip("there is no PostgreSQL server: apt-get install postgresql")
    with postgresql(binaries[-1].parent, tmp_path) as url:
        path, rows = twelve
        assert sweep(path, tmp_path / "two", "--workers", 2, "--storage", url) == rows


@pytest.mark.slow
def test_jobs_of_a_cluster_drain_a_sweep(twelve, tmp_path):
    """submitit's local jobs, which stand for SLURM's: the same calls, without a queue."""
    pytest.importorskip("submitit", reason="pip install 'lunar-distill-jax[slurm]'")
    path, rows = twelve
    jobs = ("--submit", 2, "--slurm", "cluster=local", "--slurm", "timeout_min=60")
    assert sweep(path, tmp_path / "jobs", *jobs) == rows
    logs = list((tmp_path / "jobs/jobs").glob("*_log.err"))
    assert len(logs) == 2 and any("Group" in log.read_text() for log in logs)


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
