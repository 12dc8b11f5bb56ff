"""SIGTERM is a request to save and stop; on several hosts all of them stop after the same step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """The run was asked to stop, and everything up to `step` is saved."""

    def __init__(self, step: int):
        super().__init__(f"Stopped after step {step}.")
        self.step = step


@contextlib.contextmanager
def watched() -> Iterator[Callable[[int], bool]]:
    """Yields (step just done) -> whether to stop now; every process asks after every step.

    With several processes JAX's own service carries the notice between them. A run that is not in
    its process's main thread cannot be asked.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
