"""The full teacher at 512x384 in float32 against the same network in plain PyTorch.

    .venv/bin/python tools/bench.py --torch /path/to/python-with-torch

Each side is a process of its own, fed the same weights (by formula) and images, and run in turns.
"""

from __future__ import annotations

import dataclasses
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.convert.teacher import network_from_checkpoint
from lunar_distill_jax.convert.torch_write import write_hugging_face
from lunar_distill_jax.measure import maxrss_bytes

TOOLS = pathlib.Path(__file__).parent
SIZE = (384, 512)  # height, width


def serve(folder: pathlib.Path) -> None:
    """Our side of the protocol of torch_mast3r.py."""
    stereo = api.load(folder / "ours.safetensors")
    stereo = dataclasses.replace(stereo, params=jax.device_put(stereo.params))
    images = np.load(folder / "images.npy")
    print(f"jax {jax.__version__}", flush=True)
    written = False
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        views = jax.block_until_ready(api.predict(stereo, *images))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        if not written:
            parts = [(v.pts3d, v.conf[..., None], v.desc, v.desc_conf[..., None]) for v in views]
            np.save(folder / "ours.npy", np.stack([np.concatenate(p, -1) for p in parts]))
            written = True
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(seconds, cpu, peak, flush=True)


class Worker:
    """A process that answers a line with the figures of one forward pass."""

    def __init__(self, *command: str | pathlib.Path):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdin and self.process.stdout
        self.ask, self.answer = self.process.stdin, self.process.stdout
        self.title = self.answer.readline().strip()
        self.runs: list[list[float]] = []

    def run(self) -> list[float]:
        """-> seconds, seconds of all cores, peak memory of the process in MiB, and what else it
        answers; the process itself prints the peak as getrusage has it
        """
        print(file=self.ask, flush=True)
        line = self.answer.readline()
        if not line:
            raise SystemExit(f"The process of {self.title or self.process.args} ended.")
        seconds, cpu, maxrss, *others = (float(x) for x in line.split())
        return [seconds, cpu, maxrss_bytes(int(maxrss)) / 2**20, *others]


def full_teacher(count: int, height: int, width: int):
    """-> a full-size checkpoint with weights by formula, images [2, count, height, width, 3]"""
    sys.path.insert(0, str(TOOLS.parent / "tests"))
    from golden_models import recipe, recipe_checkpoint  # pyright: ignore[reportMissingImports]

    images = [recipe.img(seed, count, height, width).transpose(0, 2, 3, 1) for seed in (1, 2)]
    return recipe_checkpoint("F"), np.stack(images)


def prepare(folder: pathlib.Path) -> None:
    """Writes the weights in both layouts, and the images."""
    checkpoint, images = full_teacher(1, *SIZE)
    write_hugging_face(folder / "torch", checkpoint.tensors, {})
    for where in (folder, folder / "torch"):
        np.save(where / "images.npy", images)
    api.save(api.Stereo(*network_from_checkpoint(checkpoint)), folder / "ours.safetensors")


def compare(folder: pathlib.Path, torch_python: str, rounds: int) -> None:
    """Runs both sides in turns on what `prepare` wrote, and prints medians and ratios."""
    torch = Worker(torch_python, TOOLS / "torch_mast3r.py", folder / "torch")
    ours = Worker(sys.executable, __file__, folder)
    print(f"full teacher, 512x384, float32: {ours.title} against {torch.title}")
    print(f"first pass, with compilation: {ours.run()[0]:.1f} s, peer {torch.run()[0]:.1f} s")
    for _ in range(rounds):
        for worker in (ours, torch):
            worker.runs.append(worker.run())
            print(
                f"  {worker.title}: "
                + "{:.2f} s, cpu {:.2f} s, peak {:.0f} MiB".format(*worker.runs[-1])
            )
    a, b = (
        [statistics.median(column) for column in zip(*w.runs, strict=True)] for w in (ours, torch)
    )
    print(f"medians of {rounds}: ours {a[0]:.2f} s, peer {b[0]:.2f} s, ratio {b[0] / a[0]:.2f}x")
    fastest = [min(run[0] for run in worker.runs) for worker in (ours, torch)]
    ratio = fastest[1] / fastest[0]
    print(f"fastest: ours {fastest[0]:.2f} s, peer {fastest[1]:.2f} s, ratio {ratio:.2f}x")
    print(f"of all cores: ours {a[1]:.2f} s, peer {b[1]:.2f} s, ratio {b[1] / a[1]:.2f}x")
    print(f"peak memory: ours {a[2]:.0f} MiB, peer {b[2]:.0f} MiB")
    mine, theirs = np.load(folder / "ours.npy"), np.load(folder / "torch" / "outputs.npy")
    error = np.max(np.abs(mine - theirs) / np.max(np.abs(theirs), axis=(0, 1, 2, 3)))
    print(f"outputs differ by at most {error:.1e} of a channel's largest value")
    for worker in (ours, torch):
        worker.ask.close()
        worker.process.wait()


def bench_teacher(torch_python: str, rounds: int, keep: str | None = None) -> None:
    """keep: a folder whose weights are written once and read again; else a temporary one"""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(keep or name)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "ours.safetensors").is_file():
            prepare(folder)
        compare(folder, torch_python, rounds)


if __name__ == "__main__":
    serve(pathlib.Path(sys.argv[1]))
