"""Workers as jobs of a cluster: submitit hands them to SLURM, or runs them here for a try."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.progress import say


def submit(
    arguments: Sequence[str],
    workdir: str | os.PathLike,
    workers: int,
    parameters: Sequence[str] = (),
) -> None:
    """Starts `workers` jobs that drain the same sweep, and waits for them.

    arguments:  of `lunar-distill sweep` for one worker
    parameters: "KEY=VALUE" of submitit's `update_parameters`; "cluster=local" runs the jobs here

    Raises:
      InputError: submitit is not installed, or a parameter cannot be read.
    """
    try:
        import submitit
    except ImportError as e:
        raise InputError("--submit needs submitit: pip install 'lunar-distill-jax[slurm]'.") from e
    table: dict[str, str | int] = {"name": "lunar-distill"}
    for parameter in parameters:
        key, equals, value = parameter.partition("=")
        if not equals:
            raise InputError(f"Cannot read --slurm {parameter!r}: give KEY=VALUE.")
        table[key] = int(value) if value.isdigit() else value
    cluster = table.pop("cluster", None)
    executor = submitit.AutoExecutor(pathlib.Path(workdir) / "jobs", cluster=cluster)
    executor.update_parameters(**table)
    command = [sys.executable, "-m", "lunar_distill_jax", *arguments]
    jobs = [executor.submit(subprocess.run, command, check=False) for _ in range(workers)]
    say(f"Handed {workers} workers to {executor.cluster}: {', '.join(j.job_id for j in jobs)}")
    for job in jobs:
        try:
            job.result()
        except Exception as e:  # submitit's own, of a job that was killed
            say(f"Job {job.job_id} did not end by itself ({type(e).__name__}): others go on.")
