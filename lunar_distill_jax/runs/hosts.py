"""Several processes as one run, and a supervisor that starts a run again when it dies."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO

import jax

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.progress import say

WRONG_INPUT = 2  # the exit code that no second try changes
LOST = 75  # "try again": another process of the run is gone
WAIT = 1.0  # seconds between two tries
ABORTED = "Terminating process because the JAX distributed service detected fatal errors"


def join(
    coordinator: str | None, processes: int | None, process: int | None, heartbeat_timeout: int
) -> None:
    """Joins this process to the others of its run.

    coordinator: "HOST:PORT" of process 0, with `processes` and `process`; "auto": TPU pods, SLURM
                 and Open MPI tell all three themselves
    heartbeat_timeout: seconds after which a process that is silent counts as lost, and the others
                 end

    Raises:
      InputError: the three do not belong together.
    """
    if coordinator is None:
        if processes is not None or process is not None:
            raise InputError("--processes and --process need --coordinator HOST:PORT.")
        return
    if coordinator == "auto":
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_timeout)
        return
    if processes is None or process is None or not 0 <= process < processes:
        raise InputError(
            f"--coordinator {coordinator} needs --processes N and --process I, 0 <= I < N; found "
            f"{processes} and {process}."
        )
    jax.distributed.initialize(
        coordinator, processes, process, heartbeat_timeout_seconds=heartbeat_timeout
    )


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Ends this process at once where a computation of several fails: the others are likely gone,
    and whatever is done in order would wait for them.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as e:
        # Gloo's, between CPUs, come as a ValueError where a step is dispatched.
        if jax.process_count() == 1 or (isinstance(e, ValueError) and "Gloo" not in str(e)):
            raise
        say(f"A computation of all processes failed ({str(e).strip().splitlines()[0][:200]}).")
        sys.stdout.flush()
        os._exit(LOST)


def supervise(
    command: Sequence[str], restarts: int, *, together: bool = False, heartbeat_timeout: float = 0.0
) -> int:
    """Runs a command, again where it died of a signal or an error; -> its last exit code.

    It is not run again after exit code 0 or 2 (wrong input). SIGTERM is handed on. Ctrl-C is
    the command's to answer: a terminal tells both; a second one is handed on, in case none did.

    together: it is one process of several. Where another is lost, JAX aborts this one at length
              from C++: one sentence is said instead
    heartbeat_timeout: seconds after which the others know that this one died; it waits for that
    """
    for left in range(restarts, -1, -1):
        words = [sys.executable, "-m", "lunar_distill_jax", *command]
        pipe, quiet = (subprocess.PIPE, {"TF_CPP_MIN_LOG_LEVEL": "3"}) if together else (None, {})
        child = subprocess.Popen(words, stderr=pipe, env={**os.environ, **quiet})
        asked, lost = [], []

        def hand_on(number, frame, child=child, asked=asked):
            del frame
            asked.append(number)
            child.send_signal(signal.SIGTERM)

        def interrupted(number, frame, child=child, asked=asked):
            del frame
            if number in asked:
                child.send_signal(number)
            asked.append(number)

        handlers = {signal.SIGTERM: hand_on, signal.SIGINT: interrupted}
        before = {number: signal.signal(number, f) for number, f in handlers.items()}
        try:
            if child.stderr is not None:
                lost = _pass_on(child.stderr)
            code = child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if lost or code == LOST:
            say(
                "Another process of this run is lost or has ended, so this one has ended too; what "
                "was saved stays: start all of them again to go on from it."
            )
        if code in (0, WRONG_INPUT) or asked or not left:
            return code if code >= 0 else 128 - code
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        say(f"The run ended by {how}: it is started again ({left} more times at most).")
        # Earlier, it would find the others in the run that it has left.
        time.sleep(WAIT if lost or code == LOST else WAIT + heartbeat_timeout)
    raise AssertionError("unreachable")


def _pass_on(errors: IO[bytes]) -> list[str]:
    """Writes what a child says on its stderr to ours, and at its end -> JAX's account of why it
    aborted the child, which is not written; [] if it did not.
    """
    kept: list[str] = []
    for line in io.TextIOWrapper(errors, errors="replace", newline="\n"):
        if kept or ABORTED in line:
            kept.append(line)
        else:
            sys.stderr.write(line)
            sys.stderr.flush()
    return kept
