"""What the training loop costs beside its step: logs, events, checkpoints, batches made ahead."""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

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

EVERY, CHUNKS, SIZE = 10, 14, 64  # steps between two log rows; log rows; pixels


def bench_loop() -> None:
    """Steps a second of `train` against those of the bare jitted step, in turns of some steps.

    At every log row the loop waits while the bare step takes its turn: a machine that is slower for
    a while is slower for both. The median of the turns' ratios counts.
    """
    config = run_config()
    config.steps, config.batch, config.augment, config.log_every = EVERY * CHUNKS, 8, False, EVERY
    config.checkpoint_every, config.mesh.data = 10**6, 1
    config.loss.update(points=3.0, relief=10.0)
    config = complete_run(config)
    student = api.build("moonlet-student")
    source = SyntheticPairs(0, 8, SIZE)
    pairs = [source[i] for i in range(len(source))]
    plan = check_settings(config, has_teacher=False)
    compiled = Student(student.config, plan.optim, plan.on)
    step = make_train_step({"": compiled}, ground_truth(plan.on, plan.settings), plan.settings)
    batch = next(feed.batches(config, pairs, matches=0, start=0))
    run = plan.runs[0]
    state = init_state({"": (compiled, [Trial(student.params, run.weights, run.lr)])}, None)

    def bare(state, steps: int) -> tuple[Any, float]:
        start = time.perf_counter()
        for _ in range(steps):
            state, _ = step(state, None, batch)
        jax.block_until_ready(state)
        return state, time.perf_counter() - start

    state, _ = bare(state, 1)
    state, seconds = bare(state, 2)
    turns: list[tuple[float, float]] = []
    resumed = 0.0

    def look(row: dict[str, float]) -> None:
        """A row is told when its step has ended; the next one is under way, and is waited for."""
        nonlocal state, resumed
        loop = time.perf_counter() - resumed
        time.sleep(2 * seconds)
        state, alone = bare(state, EVERY - 1)
        if 2 * EVERY < row["step"] < config.steps:  # the first ones compile; the last has no next
            turns.append((loop, alone))
        resumed = time.perf_counter()

    watcher = Watcher(on_log=look)
    with tempfile.TemporaryDirectory() as workdir:
        train_together(
            config, workdir, pairs, teacher=None, students={"": [student]}, watcher=watcher
        )
    ours, peer = ((EVERY - 1) / statistics.median(t) for t in zip(*turns, strict=True))
    ratios = [alone / loop for loop, alone in turns]
    print(
        f"{f'train, 8 pairs, {SIZE} px':44s} {ours:9.2f} /s   {'the bare jitted step':36s} "
        f"{peer:9.2f} /s   {statistics.median(ratios):5.3f}x ({len(turns)} turns, "
        f"{min(ratios):.3f} to {max(ratios):.3f})"
    )
