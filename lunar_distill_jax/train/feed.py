"""Batches for the loop, made ahead of it; the batch of a step is a pure function of the step."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from lunar_distill_jax.data import pipeline
from lunar_distill_jax.data.batches import check_pairs, training_batches
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.train import sharding
from lunar_distill_jax.train.cache import TeacherCache
from lunar_distill_jax.train.cache_samples import cached_batches
from lunar_distill_jax.train.options import OF_THE_RUN
from lunar_distill_jax.types import StereoPair

AHEAD = 2


def check(config, pairs: Sequence[StereoPair]) -> None:
    """Raises InputError where no batch could be made."""
    if config.pipeline.on:
        pipeline_settings(config, 0)
    if not config.pipeline.on or not len(pairs):
        check_pairs(pairs)


def pipeline_settings(config, matches: int) -> pipeline.Settings:
    own = {"on", "threads", "workers"}
    values = {k: v for k, v in config.pipeline.to_dict().items() if k not in own}
    values["sizes"] = tuple(tuple(size) for size in values["sizes"])
    assert not set(values) & set(OF_THE_RUN)
    return pipeline.Settings(seed=data_seed(config), batch=config.batch, matches=matches, **values)


def cache_config(config):
    """The config as the teacher's cache knows it: its seed is that of the data.

    Raises:
      InputError: the pipeline is on, whose samples no cache holds.
    """
    if config.pipeline.on:
        raise InputError(
            "config.cache is set and so is pipeline.on, whose samples no cache holds: set one of "
            "them only."
        )
    config = config.copy_and_resolve_references()
    config.seed = data_seed(config)
    return config


def data_seed(config) -> int:
    return config.seed if config.data_seed < 0 else config.data_seed


def batches(
    config,
    pairs: Sequence[StereoPair],
    *,
    matches: int,
    start: int,
    placed: Any = None,
    cache: TeacherCache | None = None,
) -> Iterator[Any]:
    """Endless batches from step `start` on.

    matches: pixel matches a pair
    cache:   brings the teacher's outputs of each sample
    placed:  a sharding for the whole batch; None leaves the arrays on the host
    """
    if config.pipeline.on:
        rows = pipeline.stream(
            pipeline_settings(config, matches),
            pairs,
            start=start,
            process=jax.process_index(),
            processes=jax.process_count(),
            threads=config.pipeline.threads,
            workers=config.pipeline.workers,
        )
        for batch in rows:
            yield batch if placed is None else pipeline.to_global(batch, placed)

    def make(step: int):
        return next(
            training_batches(
                pairs,
                seed=data_seed(config),
                batch=config.batch,
                augmented=config.augment,
                matching=matches,
                start=step,
            )
        )

    if cache is not None:
        rows = cached_batches(cache_config(config), pairs, cache, matches=matches, start=start)
        made = _ahead(lambda step: next(rows), start, threads=1)
    else:
        made = _ahead(make, start)
    for batch in made:
        if placed is not None:
            batch = sharding.put(batch, jax.tree.map(lambda _: placed, batch))
        yield batch


def _ahead(make: Callable[[int], Any], start: int, threads: int = AHEAD) -> Iterator[Any]:
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting = collections.deque(pool.submit(make, start + i) for i in range(AHEAD))
        while True:
            start += 1
            batch = waiting.popleft().result()
            waiting.append(pool.submit(make, start + AHEAD - 1))
            yield batch
