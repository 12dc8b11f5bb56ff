"""Which samples a config's training sees, as a teacher cache counts them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.data import batches
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.train.cache import Samples, TeacherCache, identity_of
from lunar_distill_jax.train.cached import cached_teacher, descriptor_variables, kept_fields
from lunar_distill_jax.train.forward import TargetFn
from lunar_distill_jax.train.plan import Plan
from lunar_distill_jax.types import StereoPair


def samples_of(config, pairs: Sequence[StereoPair], steps: int) -> Samples:
    """The samples that `config` (complete) trains on: all pairs, or, augmented, those of `steps`.

    Raises:
      InputError: there are no pairs, or they differ in size.
    """
    batches.check_pairs(pairs)
    names = hashlib.sha256("\n".join(p.name for p in pairs).encode()).hexdigest()[:16]
    height, width = pairs[0].image.shape[1:3]
    identity = {"frame": f"{height}x{width}", "pairs": names, "augmentation": "none"}
    if config.augment:
        if steps < 1:
            raise InputError(f"The steps of a cache are {steps}: give 1 or more.")
        drawn = f"augment, seed {config.seed}, batch {config.batch}"
        return Samples(
            "step",
            steps * config.batch,
            config.batch,
            lambda step: next(_stream(config, pairs, step, 0)),
            {**identity, "augmentation": drawn},
        )

    def chunk(n: int) -> dict[str, np.ndarray]:
        at = np.minimum(np.arange(n * config.batch, (n + 1) * config.batch), len(pairs) - 1)
        images = batches.stack_images([pairs[i] for i in at])
        return {"image1": images[0], "image2": images[1]}

    return Samples("pair", len(pairs), config.batch, chunk, identity)


def open_cache(
    config, plan: Plan, teacher: api.Stereo, pairs: Sequence[StereoPair]
) -> tuple[TeacherCache, TargetFn, Any]:
    """-> (the cache that `config.cache` names, what makes targets of it, its variables)

    Raises:
      InputError: the cache is not of this teacher, this data or these losses.
    """
    samples = samples_of(config, pairs, 1)
    cache = TeacherCache(
        config.cache,
        identity_of(teacher, samples, plan.teacher_compute, config.symmetric),
        kept_fields(plan.on, plan.settings),
    )
    target_fn = cached_teacher(
        teacher.config,
        plan.on,
        plan.settings,
        symmetric=config.symmetric,
        matches=config.matches,
    )
    variables = descriptor_variables(teacher.config, teacher.params, plan.on, plan.settings)
    return cache, target_fn, variables


def cached_batches(
    config, pairs: Sequence[StereoPair], cache: TeacherCache, *, matches: int, start: int
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from step `start` on, with the teacher's outputs of each sample."""
    stream, at = _stream(config, pairs, cache.step_of(start), matches), cache.step_of(start)
    for step in itertools.count(start):
        if cache.step_of(step) != at:  # the cache starts over
            stream, at = _stream(config, pairs, cache.step_of(step), matches), cache.step_of(step)
        yield cache.with_targets(next(stream), rows_of(config, pairs, cache, step))
        at += 1


def rows_of(config, pairs: Sequence[StereoPair], cache: TeacherCache, step: int) -> np.ndarray:
    """The records of a step's samples: int [B]."""
    if cache.about["by"] == "pair":
        return batches.sample_indices(config.seed, step, config.batch, len(pairs))
    return cache.step_of(step) * config.batch + np.arange(config.batch)


def _stream(config, pairs, start: int, matches: int):
    return batches.training_batches(
        pairs,
        seed=config.seed,
        batch=config.batch,
        augmented=config.augment,
        matching=matches,
        start=start,
    )
