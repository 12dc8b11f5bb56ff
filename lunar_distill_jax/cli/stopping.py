"""Ctrl-C ends a verb within seconds and with one line, also where Python is not asked for long."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

INTERRUPTED = 130  # the exit code that shells expect: 128 + SIGINT
GRACE = 4.0  # seconds for the work to let go of its files


@contextlib.contextmanager
def interruptible(line: str) -> Iterator[None]:
    """Ctrl-C writes `line` and ends this process: when what is inside has let go of its files, and
    after `GRACE` seconds where that takes longer, as in a compilation, or a library swallows it.

    The process ends at once then: threads that still compute could crash it on the way out. A
    KeyboardInterrupt that no signal brought is passed on.

    Who handles SIGINT within (`train.preempt`) decides for itself. Only in a main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # C code that computes does not come to Python's handlers; a pipe wakes a thread at once.
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    heard, released = threading.Event(), threading.Event()
    threading.Thread(target=_watch, args=(reading, line, heard, released), daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if heard.wait(2):
            released.set()
            time.sleep(60)  # the other thread ends the process
        raise
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)


def _watch(reading: int, line: str, heard: threading.Event, released: threading.Event) -> None:
    while received := os.read(reading, 1):
        if (
            received[0] == signal.SIGINT
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            heard.set()
            released.wait(GRACE)
            try:
                for stream, text in ((sys.stdout, ""), (sys.stderr, f"{line}\n")):
                    with contextlib.suppress(OSError, ValueError):  # who read them has ended too
                        stream.write(text)
                        stream.flush()
            finally:
                os._exit(INTERRUPTED)
    os.close(reading)
