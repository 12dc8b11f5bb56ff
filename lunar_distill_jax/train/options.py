"""Every key of a run with its default: those of the step, of the data, and of watching it."""

from __future__ import annotations

import dataclasses

import ml_collections as mlc

from lunar_distill_jax.data import pipeline
from lunar_distill_jax.data.synthetic import TRAJECTORIES
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.train.plan import base_config

OF_THE_RUN = ("seed", "batch", "matches", "labels")  # of the pipeline's, told by the run itself


def run_config() -> mlc.ConfigDict:
    """`plan.base_config` and what a whole run has beside it; a config file changes some keys.

    teacher:    a model, or "" to train on ground truth; student: an architecture, or several with
                commas between them, which share the teacher and the batches
    decoder:    changes the decoder of every student; 0 keeps the architecture's own
    init:       how students begin (`init.inherit.METHODS`); calibration: pairs for it, 0: none
    encoder:    a model of the student's architecture whose encoder it begins with, or ""
    start_from: another workdir whose students of these names are taken up with their optimizers
    data_seed:  of the order of the pairs and of their augmentation; -1: the same as `seed`
    epochs, warmup_epochs: if not 0 they give `steps` and `optim.warmup`, by the number of pairs
    data:       `source` a folder, "synthetic" or "synthetic:PRESET" (`geometries` scenes from
                `seed` on); `split` and `lighting` as `data.source.open_folder`; `size` 0 keeps the
                frames' own. `kept`: a folder for rendered scenes (`data.rendered`): each is then
                seen by up to `cameras` pairs of cameras, under equal and crossed suns, and
                `trajectories` take turns
    pipeline:   `on`: pairs are read one by one as they are needed, by `threads` and `workers`, and
                go through `data.pipeline`; off: all are held in memory and `augment` turns them
    sets:       {name: a table like `data`} to evaluate on every `evaluate_every` steps (0: never);
                `best_by` is the metric that chooses the best
    keep_last, keep_every: checkpoints that stay, beside the best of each set
    pictures_every: steps between pictures of teacher and student; 0: none
    profile:    a trace of `steps` steps after step `start` (0: none; a file WORKDIR/profile.request
                asks for one at any time)
    sweep:      for `lunar-distill sweep`: at most `most` trials in one program, if the device has
                `memory_gb` for them (0: what it says it has); `retries` of a group whose worker
                died, seen by a `heartbeat` of so many seconds; `latency`: measure each architecture
    """
    c = base_config()
    c.teacher, c.student, c.init, c.calibration, c.encoder = "", "", "fresh", 0, ""
    c.decoder = dict(width=0, depth=0, heads=0, mlp_ratio=0.0)
    c.start_from, c.data_seed = "", -1
    c.epochs, c.warmup_epochs = 0.0, 0.0
    c.data = data_block()
    samples = {
        f.name: f.default for f in dataclasses.fields(pipeline.Settings) if f.name not in OF_THE_RUN
    }
    c.pipeline = {**samples, "on": False, "threads": 2, "workers": 0}
    c.sets, c.evaluate_every, c.best_by = mlc.ConfigDict(), 0, "point_error_pct"
    c.keep_last, c.keep_every, c.pictures_every = 2, 0, 0
    c.profile = dict(start=0, steps=5)
    c.tensorboard = True
    c.sweep = dict(most=16, memory_gb=0.0, retries=2, heartbeat=15, latency=True)
    return c


def data_block(**changes) -> mlc.ConfigDict:
    block = dict(source="", split="", lighting="same", size=0, geometries=0, seed=0)
    block |= dict(kept="", cameras=4, trajectories=TRAJECTORIES)
    return mlc.ConfigDict({**block, **changes})


def complete_run(config: mlc.ConfigDict) -> mlc.ConfigDict:
    """The config with the defaults of what it leaves out; its own further keys stay.

    Raises:
      InputError: a value is of another type than the default, or a number out of range.
    """
    full = run_config()
    try:
        with full.unlocked():
            for key, value in config.items():
                table = isinstance(value, mlc.ConfigDict) and isinstance(
                    full.get(key), mlc.ConfigDict
                )
                if table and key != "sets":
                    with full[key].unlocked():
                        full[key].update(value)
                elif key in full and key not in ("student", "sets", "trials"):
                    full[key] = value
                else:
                    with full.ignore_type():
                        full[key] = value
    except (TypeError, KeyError, ValueError) as e:
        raise InputError(f"The config cannot be used: {str(e).splitlines()[0]}") from e
    least = {"keep_last": 1, "keep_every": 0, "pictures_every": 0, "evaluate_every": 0}
    for key, value in {**least, "epochs": 0, "warmup_epochs": 0, "data_seed": -1}.items():
        if full[key] < value:
            raise InputError(f"config.{key} is {full[key]}: give {value} or more.")
    return full


def largest_frame(config: mlc.ConfigDict) -> tuple[int, int]:
    """(height, width) of the largest frames that a complete config trains on, in pixels."""
    if config.pipeline.on:
        return tuple(max(config.pipeline.sizes, key=lambda size: size[0] * size[1]))
    return (config.data.size or 512,) * 2


def steps_of(config: mlc.ConfigDict, pairs: int) -> mlc.ConfigDict:
    """The config with epochs turned into steps of `batch` pairs, at least one."""
    config = config.copy_and_resolve_references()
    for epochs, to, at in (("epochs", config, "steps"), ("warmup_epochs", config.optim, "warmup")):
        if config[epochs]:
            to[at] = max(1, round(config[epochs] * pairs / config.batch))
    return config
