r"""What training costs: students together against runs of their own, a cache against the teacher.

    make bench        # small networks of the real ratio of work

All runs take turns in one process; the figures are medians, and ratios of medians.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from aot_counts import needed_operations

from lunar_distill_jax import api
from lunar_distill_jax.data.batches import make_batch
from lunar_distill_jax.data.synthetic import synthetic_pairs
from lunar_distill_jax.losses.settings import loss_settings
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.zoo import architecture
from lunar_distill_jax.progress import Progress
from lunar_distill_jax.train import cached, forward
from lunar_distill_jax.train.cache import Samples, TeacherCache, identity_of, write_cache
from lunar_distill_jax.train.optim import OptimSettings
from lunar_distill_jax.train.state import Student, Trial, init_state
from lunar_distill_jax.train.step import Step, make_train_step

WEIGHTS = {"points": 1.0, "matching": 0.075, "features": 0.1, "sobel": 1.0}
SETTINGS = loss_settings({"matching": {"confidence": "mean"}})
PAIRS, SIZE, MATCHES = 2, 128, 1024


def narrow(config: StereoConfig, share: int) -> StereoConfig:
    """The architecture with every width and number of heads divided, and its depth kept."""
    encoder: Any = config.encoder
    decoder, head = config.decoder, config.head
    parts = {}
    if hasattr(encoder, "model"):
        model = encoder.model
        model = dataclasses.replace(
            model, width=model.width // share, heads=max(1, model.heads // share)
        )
        parts["encoder"] = dataclasses.replace(encoder, model=model, width=encoder.width // share)
    else:
        parts["encoder"] = dataclasses.replace(
            encoder, width=encoder.width // share, heads=encoder.heads // share
        )
    parts["decoder"] = dataclasses.replace(
        decoder, width=decoder.width // share, heads=max(1, decoder.heads // share)
    )
    parts["head"] = dataclasses.replace(
        head,
        width=head.width // share,
        last=head.last // share,
        layers=tuple(n // share for n in head.layers),
    )
    return dataclasses.replace(config, name=f"{config.name}/{share}", **parts)


@dataclasses.dataclass
class Program:
    """A compiled step and its state; each call is one step, done when it returns."""

    step: Step
    state: Any
    variables: Any
    batch: Mapping[str, Any]
    times: list[float] = dataclasses.field(default_factory=list)

    def __call__(self) -> dict[str, Any]:
        """-> the step's metrics"""
        start = time.perf_counter()
        self.state, metrics = self.step(self.state, self.variables, self.batch)
        jax.block_until_ready(metrics)
        self.times.append(time.perf_counter() - start)
        return metrics

    @property
    def seconds(self) -> float:
        return statistics.median(self.times[1:])

    @property
    def operations(self) -> int:
        return needed_operations(self.step.jitted.trace(self.state, self.variables, self.batch))


def program(
    config: StereoConfig,
    copies: int,
    trials: int,
    target_fn,
    variables,
    batch,
    *,
    width: int,
    first: api.Stereo | None = None,
) -> Program:
    """The step of `copies` students of `trials` trials each, from the weights of `first`."""
    student = Student(config, OptimSettings(steps=10**6), tuple(WEIGHTS))
    first = first or api.build(config)

    def all_trials(index: int):
        return [
            Trial(first.params, WEIGHTS, 1e-4 * (1 + i), index * trials + i, first.batch_stats)
            for i in range(trials)
        ]

    names = [str(i) for i in range(copies)]
    state = init_state({n: (student, all_trials(i)) for i, n in enumerate(names)}, width)
    step = make_train_step(dict.fromkeys(names, student), target_fn, SETTINGS, symmetric=True)
    return Program(step, jax.device_put(state), variables, batch)


def in_turns(programs: Mapping[str, Program], rounds: int) -> None:
    for name, run in programs.items():
        run()
        print(f"  {name}: compiled and run in {run.times[0]:.0f} s", flush=True)
    with Progress(rounds, "rounds") as bar:
        for _ in range(rounds):
            for run in programs.values():
                run()
            bar.update()


def bench_training(rounds: int) -> None:
    """Students and trials in one program, and the cache, with a fourth of the real widths."""
    teacher_config = narrow(dataclasses.replace(architecture("mast3r"), keep_unused=False), 4)
    student = narrow(architecture("s3"), 4)
    teacher = api.build(teacher_config)
    width = teacher_config.encoder.width
    pairs = list(synthetic_pairs(0, PAIRS, SIZE))
    rngs = [np.random.default_rng(i) for i in range(PAIRS)]
    batch = make_batch(pairs, rngs, augmented=False, matching=MATCHES)
    said = {"symmetric": True, "matches": MATCHES}
    live = forward.live_teacher(teacher_config, tuple(WEIGHTS), SETTINGS, compute=Compute(), **said)
    variables = jax.device_put(teacher.variables)
    programs = {
        f"{k} students": program(student, k, 1, live, variables, batch, width=width)
        for k in (1, 2, 4)
    }
    programs["8 trials"] = program(student, 1, 8, live, variables, batch, width=width)
    with tempfile.TemporaryDirectory() as folder:
        samples = Samples("pair", PAIRS, PAIRS, lambda n: batch, {})
        fields = cached.kept_fields(tuple(WEIGHTS), SETTINGS)
        options: dict[str, Any] = {"compute": Compute(), "symmetric": True}
        about = write_cache(folder, teacher, samples, fields, **options)
        cache = TeacherCache(folder, identity_of(teacher, samples, **options), fields)
        start = time.perf_counter()
        held = cache.with_targets(batch, range(PAIRS))
        reading = (time.perf_counter() - start) / PAIRS
        few = cached.descriptor_variables(teacher_config, teacher.params, (), SETTINGS)
        own = cached.cached_teacher(teacher_config, tuple(WEIGHTS), SETTINGS, **said)
        programs["cached"] = program(student, 1, 1, own, few, held, width=width)
        in_turns(programs, rounds)
    print(
        f"training, {teacher_config.name} into {student.name}: {PAIRS} pairs both ways round, "
        f"{SIZE} px, {MATCHES} matches"
    )
    one = programs["1 students"]

    def row(ours: str, name: str, peer: str, count: int) -> None:
        run, other = programs[name], count * one.seconds
        share = run.operations / (count * one.operations)
        print(
            f"  {ours:24s} {run.seconds * 1e3:8.0f} ms, {run.seconds * 1e3 / PAIRS:6.0f} a pair   "
            f"{peer:18s} {other * 1e3:8.0f} ms   {run.seconds / other:.2f} of it, by operations "
            f"{share:.2f}"
        )

    for k in (1, 2, 4):
        row(f"{k} students in one step", f"{k} students", f"{k} steps", k)
    row("8 trials in one step", "8 trials", "8 steps", 8)
    row("step from the cache", "cached", "live teacher", 1)
    size = about["bytes_per_pair"] / 1e6
    print(f"  reading the cache takes {reading * 1e3:.1f} ms and {size:.2f} MB a pair")
