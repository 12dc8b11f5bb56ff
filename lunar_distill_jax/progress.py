"""What a person sees of a long run: a bar with rate and ETA, or lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

import tqdm


class Progress:
    """Counts to `total`, as a context manager: a bar on a terminal, else a line every `seconds`.

    What takes less than two seconds leaves no line.
    """

    def __init__(self, total: int, label: str, *, done: int = 0, seconds: float = 10.0):
        self._total, self._label, self._done, self._seconds = total, label, done, seconds
        self._first, self._start = done, time.monotonic()
        self._said = self._start
        self._bar = (
            tqdm.tqdm(total=total, initial=done, desc=label, dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )
        self._text = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, error, *_) -> None:
        if self._bar is not None:
            self._bar.close()
        elif (
            error is None and time.monotonic() - self._start > 2
        ):  # else: short, or an error to say
            self._line()

    def update(self, count: int = 1, values: Mapping[str, float] | None = None) -> None:
        """`count` more are done; `values` (such as the loss) stay beside the bar until replaced."""
        self._done += count
        if values is not None:
            self._text = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._text, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._said > self._seconds:
            self._line()

    def _line(self) -> None:
        self._said = time.monotonic()
        elapsed = self._said - self._start
        rate = (self._done - self._first) / max(elapsed, 1e-9)
        todo = self._total - self._done
        left = todo / rate if rate else float("inf") if todo else 0.0
        print(
            f"{self._label}: {self._done}/{self._total}  {elapsed:.0f} s, {left:.0f} s left  "
            f"{self._text}",
            file=sys.stderr,
            flush=True,
        )


def say(sentence: str) -> None:
    """Tells a person what happened that does not stop the work; a bar goes on below it."""
    tqdm.tqdm.write(sentence, file=sys.stderr)
