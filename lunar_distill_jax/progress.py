"""What a person sees of a long run: a bar with rate and ETA, or lines without a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import tqdm

COMPILING = "compiling (about a minute the first time)"
SHORT = 2.0  # seconds
_SHOWN = True


@contextlib.contextmanager
def shown(yes: bool) -> Iterator[None]:
    """Within it `Progress` shows itself, or not; `say` always speaks."""
    global _SHOWN
    before, _SHOWN = _SHOWN, yes
    try:
        yield
    finally:
        _SHOWN = before


class Progress:
    """Counts to `total`, as a context manager: a bar on a terminal, else a line every `seconds`.

    What takes less than `SHORT` seconds leaves no line. The first update sets the clock of rate and
    ETA: what came before it is not repeated.

    first: what happens until the first update, such as `COMPILING`; said where it takes long
    """

    def __init__(
        self, total: int, label: str, *, done: int = 0, seconds: float = 10.0, first: str = ""
    ):
        self._total, self._label, self._done, self._seconds = total, label, done, seconds
        self._start = self._said = time.monotonic()
        self._clock: tuple[float, int] | None = None  # when the rate's time began, and the count
        self._said_done = -1
        self._bar = self._waiting = None
        self._text = first if total > done else ""
        if not _SHOWN:
            return
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(total=total, initial=done, desc=label, dynamic_ncols=True)
            self._bar.set_postfix_str(self._text)
        elif self._text:
            self._waiting = threading.Timer(SHORT, say, [f"{label}: {self._text}"])
            self._waiting.daemon = True
            self._waiting.start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, error, *_) -> None:
        self._first_is_over()
        if self._bar is not None:
            self._bar.close()
        elif (
            error is None  # else: an error to say
            and time.monotonic() - self._start > SHORT
            and self._said_done != self._done
        ):
            self._line()

    def update(self, count: int = 1, values: Mapping[str, float] | None = None) -> None:
        """`count` more are done; `values` (such as the loss) stay beside the bar until replaced."""
        self._done += count
        first = self._clock is None
        if first:
            self._first_is_over()
            self._clock = time.monotonic(), self._done
        if values is not None:
            self._text = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._text, refresh=False)
            if first:
                self._bar.n = self._bar.initial = self._bar.last_print_n = self._done
                self._bar.start_t = self._bar.last_print_t = time.time()
                self._bar.refresh()
            else:
                self._bar.update(count)
        elif time.monotonic() - self._said > self._seconds:
            self._line()

    def _first_is_over(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        if self._clock is None:
            self._text = ""

    def _line(self) -> None:
        self._said, self._said_done = time.monotonic(), self._done
        if not _SHOWN:
            return
        since, done = self._clock or (self._start, self._done)
        left = ""
        if self._done == self._total:
            left = ", 0 s left"
        elif self._done > done:
            rate = (self._done - done) / max(self._said - since, 1e-9)
            left = f", {(self._total - self._done) / rate:.0f} s left"
        line = f"{self._label}: {self._done}/{self._total}  {self._said - self._start:.0f} s{left}"
        with contextlib.suppress(BrokenPipeError):  # nobody reads; the work goes on
            print(f"{line}  {self._text}".rstrip(), file=sys.stderr, flush=True)


def say(sentence: str) -> None:
    """Tells a person what happened that does not stop the work; a bar goes on below it."""
    with contextlib.suppress(BrokenPipeError):
        tqdm.tqdm.write(sentence, file=sys.stderr)
