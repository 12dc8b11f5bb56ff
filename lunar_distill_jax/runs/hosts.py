"""Several processes as one run, and a supervisor that starts a run again when it dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import jax

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.progress import say

WRONG_INPUT = 2  # the exit code that no second try changes


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


def supervise(command: Sequence[str], restarts: int, *, wait: float = 1.0) -> int:
    """Runs a command, again where it died of a signal or an error; -> its last exit code.

    It is not run again after exit code 0 or 2 (wrong input). SIGTERM is handed on.
    """
    for left in range(restarts, -1, -1):
        child = subprocess.Popen([sys.executable, "-m", "lunar_distill_jax", *command])
        asked = []

        def hand_on(number, frame, child=child, asked=asked):
            del frame
            asked.append(number)
            child.send_signal(signal.SIGTERM)

        before = signal.signal(signal.SIGTERM, hand_on)
        try:
            code = child.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
        if code in (0, WRONG_INPUT) or asked or not left:
            return code if code >= 0 else 128 - code
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        say(f"The run ended by {how}: it is started again ({left} more times at most).")
        time.sleep(wait)
    raise AssertionError("unreachable")
