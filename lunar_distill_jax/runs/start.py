"""A whole run from its config: opens the data, builds the networks, trains, watches."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import ml_collections as mlc
import numpy as np

from lunar_distill_jax import api, atomic
from lunar_distill_jax.data.frames import require_folder
from lunar_distill_jax.data.rendered import RenderedPairs, Rendering
from lunar_distill_jax.data.source import check_size, open_folder, pair_sequence, synthetic_moon
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.init.inherit import METHODS, first_student
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.encoders.config import AdaptedEncoderConfig
from lunar_distill_jax.models.zoo import architecture
from lunar_distill_jax.progress import Progress, say
from lunar_distill_jax.runs.page import RunPage
from lunar_distill_jax.runs.unseen import SetEvaluator, draw_pictures, metric_of
from lunar_distill_jax.train import feed
from lunar_distill_jax.train.checkpoint import FOLDER as CHECKPOINTS
from lunar_distill_jax.train.loop import STUDENT, folders_by_name, train_together
from lunar_distill_jax.train.options import complete_run, data_block, steps_of
from lunar_distill_jax.train.plan import Plan, check_settings
from lunar_distill_jax.train.watching import Watcher
from lunar_distill_jax.train.workdir import check_config, check_free
from lunar_distill_jax.types import StereoPair


def check_run(config: mlc.ConfigDict) -> mlc.ConfigDict:
    """The complete config, all said that can be said of it before anything is read.

    Raises:
      InputError: a setting cannot be used.
    """
    config = complete_run(config)
    check_settings(config, has_teacher=bool(config.teacher))
    names = student_names(config)
    if not names:
        raise InputError("config.student is empty: give an architecture, such as slim-s.")
    for name in names:
        network_config(config, name)
    if config.init not in METHODS:
        raise InputError(f"There is no init {config.init!r}: choose from {', '.join(METHODS)}.")
    metric_of(config.best_by)
    for label, block in {"data": config.data, **config.sets}.items():
        if block.get("size"):
            check_size(block.size)
        if not block.source:
            raise InputError(
                f"config.{label}.source is empty: give a folder, --config.{label}.source=DIR, or "
                "'synthetic'."
            )
    return config


def student_names(config: mlc.ConfigDict) -> list[str]:
    return [name.strip() for name in config.student.split(",") if name.strip()]


def network_config(config: mlc.ConfigDict, name: str) -> StereoConfig:
    """The named architecture, with the decoder that `config.decoder` asks for.

    Raises:
      InputError: there is none of that name, or its parts do not fit each other.
    """
    known = architecture(name)
    changes = {k: v for k, v in config.decoder.items() if v}
    if not changes:
        return known
    decoder = dataclasses.replace(known.decoder, **changes)
    encoder = known.encoder
    if isinstance(encoder, AdaptedEncoderConfig):  # its adapter ends in the decoder's width
        encoder = dataclasses.replace(encoder, width=decoder.width)
    changed = dataclasses.replace(known, encoder=encoder, decoder=decoder)
    changed.check()
    return changed


def start(
    config: mlc.ConfigDict, workdir: str | os.PathLike, command: str = ""
) -> dict[str, api.Stereo]:
    """Trains the students of a config -> {folder: trained network}; see `train_together`.

    command: what made the run, for its page

    A workdir whose run of this config is at its end is left as it is.

    Raises:
      InputError: as `train_together`; nothing is written then.
      Stopped: SIGTERM came; all is saved.
    """
    config = check_run(config)
    atomic.check_writable(workdir)
    check_free(workdir)
    if not (config.epochs or config.warmup_epochs):  # these need the data first
        check_config(workdir, config.to_dict(), write=False)
        if trained := _finished(config, pathlib.Path(workdir)):
            say(f"The run in {workdir} is finished: all of its {config.steps} steps are done.")
            return trained
    check_sources((config.teacher, config.encoder), (config.data, *config.sets.values()))
    teacher = api.load(config.teacher) if config.teacher else None
    pairs = read_data("training pairs", config.data, keep=not config.pipeline.on)
    config = steps_of(config, len(pairs))
    check_settings(config, has_teacher=bool(config.teacher))
    names = student_names(config)
    students = {
        (name if len(names) > 1 else ""): [begin(config, name, teacher, pairs)] for name in names
    }
    watcher = watch(config, workdir, teacher, students, command=command)
    return train_together(
        config, workdir, pairs, teacher=teacher, students=students, watcher=watcher
    )


def _finished(config: mlc.ConfigDict, workdir: pathlib.Path) -> dict[str, api.Stereo]:
    """What the workdir's run has written at its end; {} where it has not come to it."""
    plan = check_settings(config, has_teacher=bool(config.teacher))
    names = student_names(config)
    plans = {name if len(names) > 1 else "": plan for name in names}
    files = {folder: workdir / folder / STUDENT for folder in folders_by_name(plans)}
    last = workdir / CHECKPOINTS / str(config.steps)
    if not (last.is_dir() and all(file.is_file() for file in files.values())):
        return {}
    return {folder: api.load(file) for folder, file in files.items()}


def check_sources(models: Sequence[str], data: Sequence[mlc.ConfigDict]) -> None:
    """Raises InputError for a model ("": none) or the data of a `data` block that is not there,
    before the first of them is read.
    """
    for source in filter(None, models):
        api.check_source(source)
    for block in data:
        if synthetic_moon(block.source) is None:
            require_folder(block.source)


def begin(
    config: mlc.ConfigDict,
    name: str,
    teacher: api.Stereo | None,
    pairs: Sequence[StereoPair],
) -> api.Stereo:
    """The named architecture as `config.init` and `config.seed` begin it."""
    calibration = _calibration(config, pairs) if config.calibration else None
    network = network_config(config, name)
    given = name if network == architecture(name) else network
    encoder = api.load(config.encoder) if config.encoder else None
    return first_student(given, config.init, teacher, config.seed, calibration, encoder)[0]


def _calibration(config: mlc.ConfigDict, pairs: Sequence[StereoPair]):
    """`config.calibration` pairs, or what the pipeline makes of so many: both views' images."""
    count = min(config.calibration, len(pairs))
    if not config.pipeline.on:
        return [pairs[i] for i in range(count)]
    batch = next(feed.batches(_with_batch(config, count), pairs, matches=0, start=0))
    return tuple(np.asarray(batch[name]) for name in ("image1", "image2"))


def _with_batch(config: mlc.ConfigDict, batch: int) -> mlc.ConfigDict:
    out = config.copy_and_resolve_references()
    out.batch = batch
    return out


def watch(
    config: mlc.ConfigDict,
    workdir: str | os.PathLike,
    teacher: api.Stereo | None,
    students: Mapping[str, Sequence[api.Stereo]],
    *,
    plans: Mapping[str, Plan] | None = None,
    command: str = "",
) -> Watcher:
    """Evaluation on the config's sets, pictures of the first of them, and the run's page."""
    sets = {name: read_data(name, block, keep=True) for name, block in config.sets.items()}
    page = RunPage(workdir, config, students, plans, command)
    return Watcher(
        evaluate=SetEvaluator(sets, seed=config.seed) if sets else None,
        best_by=(config.best_by, metric_of(config.best_by).better),
        pictures=draw_pictures(next(iter(sets.values()))[0], teacher) if sets else None,
        refresh=page.refresh,
    )


def read_data(label: str, block: mlc.ConfigDict, *, keep: bool) -> Sequence[StereoPair]:
    """The pairs of a `data` block. keep: all in memory; else each is read when it is asked for."""
    d = data_block(**block.to_dict())
    moon = synthetic_moon(d.source)
    if moon is not None:
        pairs = pair_sequence(
            d.source, size=d.size, geometries=d.geometries, seed=d.seed, lighting=d.lighting
        )
        if d.kept:
            kind = tuple(d.trajectories)
            rendering = Rendering(d.seed, d.geometries, d.size, d.cameras, kind, moon)
            pairs = RenderedPairs(d.kept, rendering)
    else:
        pairs = open_folder(
            d.source, split=d.split or None, size=d.size or None, lighting=d.lighting
        )
    if not keep:
        return pairs
    out = []
    with Progress(len(pairs), label) as progress:
        for i in range(len(pairs)):
            out.append(pairs[i])
            progress.update(1)
    return out
