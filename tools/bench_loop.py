"""What the training loop costs beside its step: logs, events, checkpoints, batches made ahead."""

from __future__ import annotations

import statistics
import tempfile
import time

import jax

from lunar_distill_jax import api
from lunar_distill_jax.data.synthetic import SyntheticPairs
from lunar_distill_jax.train import feed
from lunar_distill_jax.train.forward import ground_truth
from lunar_distill_jax.train.loop import train_together
from lunar_distill_jax.train.options import complete_run, run_config
from lunar_distill_jax.train.plan import check_settings
from lunar_distill_jax.train.state import Student, Trial, init_state
from lunar_distill_jax.train.step import make_train_step
from lunar_distill_jax.train.watching import Watcher

STEPS, WARM = 40, 10


def bench_loop(rounds: int) -> None:
    """Steps a second of `train` against those of the bare jitted step, in turns."""
    config = run_config()
    config.steps, config.batch, config.augment, config.log_every = STEPS + WARM, 8, False, 10
    config.checkpoint_every, config.mesh.data = 10**6, 1
    config.loss.update(points=3.0, relief=10.0)
    config = complete_run(config)
    student = api.build("moonlet-student")
    source = SyntheticPairs(0, 8, 96)
    pairs = [source[i] for i in range(len(source))]
    plan = check_settings(config, has_teacher=False)
    compiled = Student(student.config, plan.optim, plan.on)
    step = make_train_step({"": compiled}, ground_truth(plan.on), plan.settings)
    batch = next(feed.batches(config, pairs, matches=0, start=0))
    run = plan.runs[0]

    def bare() -> float:
        state = init_state({"": (compiled, [Trial(student.params, run.weights, run.lr)])}, None)
        for i in range(WARM + STEPS):
            if i == WARM:
                jax.block_until_ready(state)
                start = time.perf_counter()
            state, _ = step(state, None, batch)
        jax.block_until_ready(state)
        return STEPS / (time.perf_counter() - start)

    def loop() -> float:
        seen: dict[int, float] = {}

        def look(row: dict[str, float]) -> None:
            seen.setdefault(int(row["step"]), time.perf_counter())

        watcher = Watcher(on_log=look)
        with tempfile.TemporaryDirectory() as workdir:
            train_together(
                config, workdir, pairs, teacher=None, students={"": [student]}, watcher=watcher
            )
        # Rows are told while the next step runs; both ends alike, but for the last, so not to it.
        first, last = WARM, STEPS
        return (last - first) / (seen[last] - seen[first])

    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(max(3, rounds // 3)):
        for measured, into in zip((loop, bare), rates, strict=True):
            into.append(measured())
    ours, peer = (statistics.median(r) for r in rates)
    print(
        f"{'train, 8 pairs, 96 px':44s} {ours:9.2f} /s   {'the bare jitted step':36s} "
        f"{peer:9.2f} /s   {ours / peer:5.2f}x"
    )
