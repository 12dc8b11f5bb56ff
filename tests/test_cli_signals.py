"""The command line as a process: signals, closed pipes, full disks, and the flags of every verb."""

import os
import signal
import subprocess
import sys
import warnings

import pytest

import lunar_distill_jax as ld
from lunar_distill_jax import cli
from lunar_distill_jax.cli import flags

START = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from lunar_distill_jax import cli
from lunar_distill_jax.cli import stopping
stopping.GRACE = 0.5

def work(args):
    print("working", flush=True)
    {work}

cli.info.run = work
sys.exit(cli.main(["info"]))
"""
WORKS = {
    "waits": "time.sleep(60)",
    # A library that swallows it; Python's handlers are not asked for long in a compilation.
    "swallows": """while True:
        try: time.sleep(60)
        except KeyboardInterrupt: pass""",
    # C code that never asks for signals, as a compilation.
    "computes": "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2**31 - 1)",
}


@pytest.mark.parametrize("work", WORKS)
def test_ctrl_c_is_one_line_and_130(work):
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(work=WORKS[work])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "lunar-distill info: interrupted.\n")


def test_ctrl_c_when_nobody_reads_is_130():
    """As in `2>&1 | tee`, where the reader dies of the same Ctrl-C."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(work=WORKS["computes"])],
        stdout=subprocess.PIPE,
        stderr=writing,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    os.close(reading)
    os.close(writing)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130


@pytest.mark.parametrize("verb", ["info", "evaluate --data synthetic"])
def test_an_interruption_in_process_is_130(verb, monkeypatch, capsys):
    def work(args):
        raise KeyboardInterrupt

    name = verb.split()[0]
    monkeypatch.setattr(getattr(cli, name), "run", work)
    before = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)
    assert cli.main(verb.split()) == 130
    assert (signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)) == before
    assert capsys.readouterr() == ("", f"lunar-distill {name}: interrupted.\n")


def test_a_full_disk_is_a_sentence(monkeypatch, capsys):
    def work(args):
        raise OSError(28, "No space left on device", "/full/moon/a.exr")

    monkeypatch.setattr(cli.render, "run", work)
    assert cli.main(["render", "--out", "x", "--pairs", "1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "lunar-distill render: a file could not be read or written: No space left on device "
        "(/full/moon/a.exr); make room"
    )
    assert said.count("\n") == 1


def test_warnings_are_sentences_and_only_those_for_users(monkeypatch, capsys):
    def work(args):
        warnings.warn("Its encoder starts from\nrandom numbers.", stacklevel=1)
        warnings.warn("numpy will change", DeprecationWarning, stacklevel=1)

    monkeypatch.setattr(cli.info, "run", work)
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().err == (
        "lunar-distill info: Its encoder starts from random numbers.\n"
    )


@pytest.mark.parametrize("words", [["--quiet", "info"], ["info", "--quiet"]])
def test_common_flags_stand_before_or_after_the_verb(words):
    args = cli.parse(words)
    assert args.quiet and not args.debug and not args.verbose and args.verb == "info"
    assert cli.parse(["info"]).quiet is False
    trained = cli.parse(["train", "--config", "c.py", "--workdir", "w", "--debug", "--config.a=1"])
    assert trained.debug and trained.overrides == ["--config.a=1"]


@pytest.mark.parametrize("words", [["--version"], ["train", "--version"]])
def test_the_version_is_told(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"lunar-distill {ld.__version__}\n"


def test_info_without_a_model_lists_the_names(capsys):
    for words in (["info"], ["info", "--list"]):
        assert cli.main(words) == 0
        out = capsys.readouterr().out
        assert "models: moonlet, moonlet-small" in out
        assert "architectures: mast3r," in out and "encoders: mobilenetv3," in out


@pytest.mark.parametrize("verb", ["", "render", "convert", "info", "describe", "train"])
def test_help_does_not_wait_for_the_libraries(verb):
    code = f"""
import sys
from lunar_distill_jax import cli
try:
    cli.main({[*verb.split(), "--help"]})
except SystemExit:
    pass
print([m for m in ("jax", "numpy", "flax", "scipy", "tqdm") if m in sys.modules])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.endswith("\n[]\n"), told.stdout[-200:]


def test_output_that_nobody_reads_is_no_error():
    command = [sys.executable, "-m", "lunar_distill_jax", "info", "--list"]
    reading, writing = os.pipe()
    os.close(reading)
    told = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert told.stderr == "" and told.returncode == 1


def test_what_is_no_matter_of_room_does_not_ask_for_room(monkeypatch, capsys):
    def work(args):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(cli.info, "run", work)
    assert cli.main(["info"]) == 1
    said = capsys.readouterr().err
    assert "Connection refused; mend that, or run the same command again" in said


def test_children_are_given_the_switches():
    args = cli.parse(["--debug", "train", "--config", "c.py", "--workdir", "w", "--quiet"])
    assert flags.given_switches(args) == ["--quiet", "--debug"]
