"""What a person sees of a long run, with a clock that the tests turn."""

import io
import sys
import threading
import types

import pytest

from lunar_distill_jax import progress


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(time=1000.0)
    kept = types.SimpleNamespace(monotonic=lambda: now.time, time=lambda: now.time)
    monkeypatch.setattr(progress, "time", kept)

    class Timer(threading.Timer):  # nobody waits
        def start(self):
            self.function(*self.args)

    monkeypatch.setattr(progress, "threading", types.SimpleNamespace(Timer=Timer))
    return now


def test_the_first_step_does_not_count_in_the_eta(clock, capsys):
    with progress.Progress(100, "train", first="compiling") as bar:
        clock.time += 60  # compilation, and the first step
        bar.update(1, {"loss": 2.0})
        for _ in range(11):
            clock.time += 1
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train: compiling",
        "train: 1/100  60 s  loss 2",  # nothing is known of the rate yet
        "train: 12/100  71 s, 88 s left  loss 2",
    ]


def test_the_last_line_is_printed_once(clock, capsys):
    with progress.Progress(2, "pairs") as bar:
        for _ in range(2):
            clock.time += 20
            bar.update()
    assert capsys.readouterr().err.splitlines() == [
        "pairs: 1/2  20 s",
        "pairs: 2/2  40 s, 0 s left",
    ]


def test_what_is_short_resumed_at_its_end_or_quiet_says_nothing(clock, capsys):
    with progress.Progress(1, "short") as bar:
        clock.time += 1
        bar.update()
    with progress.Progress(5, "train", done=5, first="compiling"):
        pass
    with progress.shown(False), progress.Progress(1, "long", first="compiling") as bar:
        clock.time += 30
        bar.update()
    assert capsys.readouterr().err == ""


def test_a_bar_leaves_the_first_step_out(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress.tqdm.tqdm, "_time", lambda self: clock.time, raising=False)
    with progress.Progress(200, "train", first="compiling") as bar:
        bar._bar._time = lambda: clock.time
        clock.time += 60
        bar.update(1, {"loss": 2.0})
        for _ in range(9):
            clock.time += 1
            bar.update()
        shown = bar._bar.format_dict
    rate = shown["rate"] or (shown["n"] - shown["initial"]) / shown["elapsed"]
    assert shown["n"] == 10 and rate == pytest.approx(1.0)  # a step a second, not 7 seconds a step
    assert "compiling" in terminal.getvalue()


def test_a_first_step_that_is_short_is_not_announced(clock, monkeypatch, capsys):
    waiting = []

    class Timer(threading.Timer):  # fired by hand
        def start(self):
            waiting.append(self)

        def cancel(self):
            waiting.remove(self)

    monkeypatch.setattr(progress, "threading", types.SimpleNamespace(Timer=Timer))
    with progress.Progress(2, "train", first="compiling") as bar:
        assert len(waiting) == 1 and waiting[0].interval == progress.SHORT
        bar.update()
        assert not waiting
        bar.update()
    with pytest.raises(ValueError), progress.Progress(2, "fails", first="compiling"):
        raise ValueError
    assert not waiting and capsys.readouterr().err == ""
    with progress.Progress(2, "long", first="compiling"):
        waiting[0].function(*waiting[0].args)
    assert capsys.readouterr().err == "long: compiling\n"
