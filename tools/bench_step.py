"""One step of s3 taught by the full teacher, against the same step in plain PyTorch.

    .venv/bin/python tools/bench.py --step 224 --torch /path/to/python-with-torch

A pair both ways round, 8192 correspondences, float32. Each side is a process of its own, fed the
same weights and images, and run in turns; loss and gradient norm of the first step are compared.
Without --torch ours is timed alone.
"""

from __future__ import annotations

import dataclasses
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from bench_teacher import TOOLS, Worker, full_teacher
from bench_training import SETTINGS, WEIGHTS, program

from lunar_distill_jax import api
from lunar_distill_jax.convert.students import student_tensors
from lunar_distill_jax.convert.teacher import network_from_checkpoint
from lunar_distill_jax.convert.torch_write import write_hugging_face
from lunar_distill_jax.losses.features import projector
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.zoo import architecture
from lunar_distill_jax.train import forward

MATCHES = 8192


def prepare(folder: pathlib.Path, size: int) -> None:
    """Writes the teacher's and the student's weights in both layouts, and the batch."""
    checkpoint, images = full_teacher(1, size, size)
    if not (folder / "teacher.safetensors").is_file():
        write_hugging_face(folder / "teacher", checkpoint.tensors, {})
        teacher = api.Stereo(*network_from_checkpoint(checkpoint))
        api.save(teacher, folder / "teacher.safetensors")
        student = api.build(architecture("s3"))
        tensors = student_tensors(student.config, student.params, {})
        write_hugging_face(folder / "student", tensors, {})
        api.save(student, folder / "student.safetensors")
    rng = np.random.default_rng(0)
    shape = (1, MATCHES, 2)
    np.savez(
        folder / "inputs.npz",
        image1=images[0],
        image2=images[1],
        pixels1=rng.integers(0, size, shape).astype(np.int32),
        pixels2=rng.integers(0, size, shape).astype(np.int32),
        pixels_valid=np.arange(MATCHES)[None] < MATCHES // 2,
        projector=projector(architecture("s3").encoder.width, 1024, 0),
    )


def serve(folder: pathlib.Path) -> None:
    """Our side of the protocol of torch_step.py."""
    teacher = api.load(folder / "teacher.safetensors")
    config = dataclasses.replace(teacher.config, keep_unused=False)
    variables = jax.device_put({k: v for k, v in teacher.variables.items()})
    del teacher
    inputs: dict[str, Any] = dict(np.load(folder / "inputs.npz"))
    del inputs["projector"]  # of seed 0, as the trial's own
    batch = inputs | {f"valid{v}": np.ones(inputs["image1"].shape[:3], bool) for v in (1, 2)}
    live = forward.live_teacher(
        config, tuple(WEIGHTS), SETTINGS, symmetric=True, matches=MATCHES, compute=Compute()
    )
    student = api.load(folder / "student.safetensors")
    run = program(
        student.config,
        1,
        1,
        live,
        variables,
        batch,
        width=config.encoder.width,
        first=student,
    )
    print(f"jax {jax.__version__}", flush=True)
    for _ in sys.stdin:
        cpu = time.process_time()
        metrics = run()["0"]
        cpu = time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        values = (float(metrics[key][0]) for key in ("loss", "grad_norm"))
        print(run.times[-1], cpu, peak, *values, flush=True)


def bench_step(torch_python: str | None, size: int, rounds: int, keep: str | None = None) -> None:
    """keep: a folder whose weights are written once and read again; else a temporary one"""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(keep or name)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder, size)
        workers = [Worker(sys.executable, __file__, folder)]
        if torch_python:
            workers.append(Worker(torch_python, TOOLS / "torch_step.py", folder))
        print(f"one step, mast3r into s3, {size} px, a pair both ways round, {MATCHES} matches")
        for worker in workers:
            seconds, _, _, loss, norm = worker.run()
            print(f"  {worker.title}: first {seconds:.1f} s, loss {loss:.6f}, norm {norm:.6f}")
        for _ in range(rounds):
            for worker in workers:
                worker.runs.append(worker.run())
        medians = []
        for worker in workers:
            columns = list(zip(*worker.runs, strict=True))
            seconds, cpu = (statistics.median(column) for column in columns[:2])
            medians.append((seconds, cpu, max(columns[2])))
            print(
                f"  {worker.title}: median {seconds:.2f} s (of all cores {cpu:.2f}, fastest "
                f"{min(columns[0]):.2f}), peak memory {max(columns[2]) / 1024:.2f} GiB"
            )
        if torch_python:
            ratios = [peer / ours for ours, peer in zip(*medians, strict=True)]
            print(
                "  peer / ours: time {:.2f}x, of all cores {:.2f}x, memory {:.2f}x".format(*ratios)
            )
        for worker in workers:
            worker.ask.close()
            worker.process.wait()


if __name__ == "__main__":
    serve(pathlib.Path(sys.argv[1]))
