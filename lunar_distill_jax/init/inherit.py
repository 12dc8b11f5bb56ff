"""A shallower student takes over the teacher's tensors of its own shapes; the others are fresh."""

from __future__ import annotations

from typing import Any

import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.init import student as student_init
from lunar_distill_jax.init.depth import teacher_name
from lunar_distill_jax.init.tree import flatten, unflatten
from lunar_distill_jax.models.config import StereoConfig

METHODS = ("fresh", "inherit", *student_init.METHODS)


def first_student(
    name: str | StereoConfig,
    method: str,
    teacher: api.Stereo | None,
    seed: int = 0,
    calibration=None,
    encoder: api.Stereo | None = None,
) -> tuple[api.Stereo, float]:
    """-> (the named architecture before training, the share of it that the teacher gave)

    method: "fresh", "inherit", or one of `student.init_student`, which has `calibration` too
    encoder: a network of the same encoder, which is taken from it whatever the method

    Raises:
      InputError: an unknown architecture or method, another than "fresh" without a teacher, or an
        encoder of another architecture.
    """
    if method not in METHODS:
        raise InputError(f"There is no init {method!r}: choose from {', '.join(METHODS)}.")
    student = api.build(name, seed)
    if encoder is not None:
        student = with_encoder(student, encoder)
    if method == "fresh":
        return student, 0.0
    if teacher is None:
        raise InputError(
            f"init is {method!r} but there is no teacher to inherit from: set 'fresh'."
        )
    if method != "inherit":
        start = name if encoder is None else student
        made, report = student_init.init_student(teacher, start, method, calibration, seed)
        return made, report["share"]
    params, share = inherit(teacher, student)
    if encoder is not None:
        params = {**params, "encoder": student.params["encoder"]}
    source = f"inherited from {teacher.meta.get('source', teacher.config.name)}, seed {seed}"
    return api.Stereo(student.config, params, {"source": source}), share


def with_encoder(student: api.Stereo, encoder: api.Stereo) -> api.Stereo:
    """The student with another network's encoder.

    Raises:
      InputError: the encoders differ in their architecture.
    """
    if student.config.encoder != encoder.config.encoder:
        raise InputError(
            f"The encoder of {encoder.config.name} is {encoder.config.encoder} and that of "
            f"{student.config.name} {student.config.encoder}: give a model with the same encoder."
        )
    params = {**student.params, "encoder": encoder.params["encoder"]}
    return student.replace(params=params)


def inherit(teacher: api.Stereo, student: api.Stereo) -> tuple[Any, float]:
    """-> (the student's parameters, the share of them that came from the teacher)

    A tensor is copied where the teacher has one of the same name and shape. Block i of d stands for
    the teacher's block at the same relative depth, the last for the last: of blocks 0..3, two
    students' blocks take 1 and 3.
    """
    given, ours, theirs = flatten(teacher.params), student.config, teacher.config
    depths = {
        # Other encoders than MASt3R's have no depth that could be mapped.
        "encoder": (getattr(ours.encoder, "depth", 0), getattr(theirs.encoder, "depth", 0)),
        "decoder": (ours.decoder.depth, theirs.decoder.depth),
    }
    out, copied, total = {}, 0, 0
    for name, fresh in flatten(student.params).items():
        source = given.get(teacher_name(name, depths))
        matches = source is not None and source.shape == fresh.shape
        out[name] = np.array(source if matches else fresh)
        copied += fresh.size * matches
        total += fresh.size
    return unflatten(out), copied / total
