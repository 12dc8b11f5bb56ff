"""A shallower student takes over the teacher's tensors of its own shapes; the others are fresh."""

from __future__ import annotations

import re
from typing import Any

import flax.traverse_util
import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.errors import InputError

METHODS = ("fresh", "inherit")


def first_student(
    name: str, method: str, teacher: api.Stereo | None, seed: int = 0
) -> tuple[api.Stereo, float]:
    """-> (the named architecture before training, the share of it that the teacher gave)

    method: "fresh" or "inherit"

    Raises:
      InputError: an unknown architecture or method, or "inherit" without a teacher.
    """
    if method not in METHODS:
        raise InputError(f"There is no init {method!r}: choose from {', '.join(METHODS)}.")
    student = api.build(name, seed)
    if method == "fresh":
        return student, 0.0
    if teacher is None:
        raise InputError("init is 'inherit' but there is no teacher to inherit from: set 'fresh'.")
    params, share = inherit(teacher, student)
    source = f"inherited from {teacher.meta.get('source', teacher.config.name)}, seed {seed}"
    return api.Stereo(student.config, params, {"source": source}), share


def inherit(teacher: api.Stereo, student: api.Stereo) -> tuple[Any, float]:
    """-> (the student's parameters, the share of them that came from the teacher)

    A tensor is copied where the teacher has one of the same name and shape. Block i of d stands for
    the teacher's block at the same relative depth, the last for the last: of blocks 0..3, two
    students' blocks take 1 and 3.
    """
    given = flax.traverse_util.flatten_dict(teacher.params, sep="/")
    depths = {
        "encoder": (student.config.encoder.depth, teacher.config.encoder.depth),
        "decoder": (student.config.decoder.depth, teacher.config.decoder.depth),
    }
    out, copied, total = {}, 0, 0
    for name, fresh in flax.traverse_util.flatten_dict(student.params, sep="/").items():
        source = given.get(teacher_name(name, depths))
        matches = source is not None and source.shape == fresh.shape
        out[name] = np.array(source if matches else fresh)
        copied += fresh.size * matches
        total += fresh.size
    return flax.traverse_util.unflatten_dict(out, sep="/"), copied / total


def teacher_name(name: str, depths: dict[str, tuple[int, int]]) -> str:
    """The teacher's name of a student's tensor: block numbers are mapped, the rest stays.

    depths: {"encoder" | "decoder": (the student's, the teacher's)}
    """
    match = re.match(r"(encoder|decoder)/(.*?block)(\d+)(/.*)", name)
    if not match:
        return name
    part, prefix, number, rest = match.groups()
    ours, theirs = depths[part]
    return f"{part}/{prefix}{(int(number) + 1) * theirs // ours - 1}{rest}"
