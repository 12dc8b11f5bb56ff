"""The recipes that config files share: the paper's, in full, and how any of them becomes tiny."""

from __future__ import annotations

import ml_collections as mlc

from lunar_distill_jax.data.synthetic import TRAINING_SEEDS
from lunar_distill_jax.train.options import data_block, run_config

# (height, width) of MASt3R's training frames.
MAST3R_SIZES = ((384, 512), (336, 512), (288, 512), (256, 512), (160, 512))
MODES = ("full", "tiny")


def paper(student: str, mode: str, *, tiny_student: str, epochs: float = 60) -> mlc.ConfigDict:
    """The published distillation of MASt3R (its training scripts): AdamW (0.9, 0.95), peak rate
    3e-5 after 5 epochs of warm-up, half cosine to 2e-7, 16 pairs a step in 4 micro-batches, decay
    0.05, clipping at 1, SVD initialisation; points + 0.075 matching + 0.1 features + 1.0 Sobel.

    Its loss sees the teacher's points in place of the truth, and true matches.

    tiny_student: the architecture of the mode "tiny", with an encoder of the same kind
    """
    c = run_config()
    c.teacher, c.student, c.init = "mast3r.pth", student, "paper"
    c.epochs, c.warmup_epochs = epochs, 5.0
    c.batch, c.accumulate, c.matches, c.symmetric = 16, 4, 8192, True
    c.loss.update(points=1.0, matching=0.075, features=0.1, sobel=1.0)
    c.loss_settings.points.metric = False
    c.loss_settings.matching.confidence = "mean"
    c.optim.update(lr=3e-5, final=2e-7, weight_decay=0.05, clip=1.0)
    c.compute.dtype = c.teacher_compute.dtype = "bfloat16"
    c.pipeline.update(on=True, monocular=0.005, swap=0.5, crop="homography", jitter=0.5)
    c.log_every, c.checkpoint_every, c.keep_every = 20, 1000, 10_000
    c.evaluate_every = c.pictures_every = 2000
    return finish(c, mode, tiny_student)


def lunar(student: str, mode: str, *, tiny_student: str) -> mlc.ConfigDict:
    """`paper` on StereoLunar: square frames of 512 pixels, 60 epochs."""
    c = paper(student, "full", tiny_student=tiny_student)
    c.data = data_block(source="data/stereolunar", split="train")
    c.sets = mlc.ConfigDict({"test": data_block(source="data/stereolunar", split="test", size=512)})
    c.pipeline.sizes = ((512, 512),)
    return finish(c, mode, tiny_student)


def blendedmvs(student: str, mode: str, *, tiny_student: str) -> mlc.ConfigDict:
    """`paper` on BlendedMVS in MASt3R's layout: its five frame sizes, quarter turns, 50 epochs."""
    c = paper(student, "full", tiny_student=tiny_student, epochs=50)
    c.data = data_block(source="data/blendedmvs", split="train")
    c.sets = mlc.ConfigDict({"val": data_block(source="data/blendedmvs", split="val", size=512)})
    # One program for each size is compiled. A step's frames are all of one size.
    c.pipeline.update(sizes=MAST3R_SIZES, turn="quarters")
    return finish(c, mode, tiny_student)


def synthetic(student: str, mode: str, *, tiny_student: str) -> mlc.ConfigDict:
    """The embedded teacher on rendered ground: no download, 128 pixels as `moonlet` was trained."""
    c = run_config()
    c.teacher, c.student, c.init = "moonlet", student, "fresh"
    c.steps, c.batch, c.matches = 2000, 8, 128
    c.loss.update(points=3.0, features=0.3, relief=10.0)
    c.optim.update(lr=5e-4, final=2e-5, warmup=100)
    moon = "synthetic:stereolunar"
    c.data = data_block(source=moon, size=128, geometries=2000, seed=TRAINING_SEEDS)
    c.sets = mlc.ConfigDict({"unseen": data_block(source=moon, size=128, geometries=36)})
    c.log_every, c.checkpoint_every = 10, 200
    c.evaluate_every = c.pictures_every = 400
    return finish(c, mode, tiny_student)


def finish(c: mlc.ConfigDict, mode: str, tiny_student: str) -> mlc.ConfigDict:
    """The config in its mode: "tiny" is three steps of the same recipe on the embedded teacher and
    rendered ground, for tests and laptops.
    """
    if mode not in MODES:
        raise ValueError(f"Unknown mode {mode!r}: expected 'full' or 'tiny'.")
    if mode == "tiny":
        c.teacher, c.student = "moonlet", tiny_student
        c.init = "fresh" if c.init == "paper" else c.init
        c.epochs = c.warmup_epochs = 0.0
        c.steps, c.batch, c.accumulate, c.matches = 3, 2, 1, min(c.matches, 16)
        c.data = data_block(source="synthetic", size=64, geometries=3, seed=TRAINING_SEEDS)
        c.sets = mlc.ConfigDict({"unseen": data_block(source="synthetic", size=64, geometries=2)})
        c.pipeline.sizes = ((64, 64),)
        c.compute.dtype = c.teacher_compute.dtype = "float32"
        c.log_every, c.checkpoint_every = 1, 2
        c.evaluate_every = c.pictures_every = 3
    return c
