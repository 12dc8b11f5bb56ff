"""SIGTERM and Ctrl-C are requests to save and stop; on several hosts, SIGTERM stops all of them
after the same step.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """The run was asked to stop, by Ctrl-C if `interrupted`; everything up to `step` is saved."""

    def __init__(self, step: int):
        super().__init__(f"Stopped after step {step}.")
        self.step = step
        self.interrupted = False


@contextlib.contextmanager
def watched() -> Iterator[Callable[[int], bool]]:
    """Yields (step just done) -> whether to stop now; every process asks after every step.

    Until the first question there is nothing to save: the signals end the process as they always
    do, also while a step is compiled. A second Ctrl-C stops the work at
    once; a save that has begun is finished.

    With several processes JAX's own service carries SIGTERM's notice between them; Ctrl-C saves
    nothing there. A run that is not in
    its process's main thread cannot be asked.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    asked: set[int] = set()
    before: dict[int, Any] = {}

    def hear(number, frame):
        del frame
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.add(number)

    def stop(step: int) -> bool:
        del step
        for number in () if before else (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, hear)
        return bool(asked)

    try:
        yield stop
    except Stopped as stopped:
        stopped.interrupted = signal.SIGINT in asked
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
