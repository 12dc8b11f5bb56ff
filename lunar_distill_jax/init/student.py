"""A student initialised from a teacher, by name of the method."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.data.batches import check_pairs, stack_images
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.init.calibrated import calibrated
from lunar_distill_jax.init.controls import HeadPair, heads_only, paper_fixed
from lunar_distill_jax.init.depth import layer_map
from lunar_distill_jax.init.paper import paper
from lunar_distill_jax.init.structured import inherited_encoder, structured
from lunar_distill_jax.init.tree import flatten, unflatten
from lunar_distill_jax.models.config import StereoConfig

METHODS = ("random", "heads_only", "paper", "paper_fixed", "structured", "calibrated")


def init_student(
    teacher: api.Stereo,
    student: str | StereoConfig | api.Stereo,
    method: str,
    calibration=None,
    seed: int = 0,
    *,
    layers: str = "uniform",
    compression: str = "svd",
) -> tuple[api.Stereo, dict[str, Any]]:
    """-> (the student before training, a report of where each of its parameters came from)

    student: an architecture, by name or as a config, whose parameters start fresh by `seed`; or a
             network, whose own parameters stay where the method has nothing better: its trained
             encoder above all
    method:
      random       nothing is taken over
      heads_only   what keeps its shape in the heads
      paper        the truncated SVD's corner of each matrix, as the paper's code does it
      paper_fixed  the same with Q, K and V kept apart and heads kept whole
    layers, compression: of `paper` and `paper_fixed`, see `depth.layer_map` and `paper.compress`

    Raises:
      InputError: an unknown method or option, or a pair that the method cannot serve; the message
        has the reason.
    """
    if method not in METHODS:
        raise InputError(f"There is no init method {method!r}: choose from {', '.join(METHODS)}.")
    start = time.monotonic()
    given = isinstance(student, api.Stereo)
    student = student if isinstance(student, api.Stereo) else api.build(student, seed)
    theirs, ours = flatten(teacher.params), flatten(student.params)
    how: dict[str, str] = {}
    report: dict[str, Any] = {}
    if method == "heads_only":
        ours, how = heads_only(theirs, ours)
    elif method in ("paper", "paper_fixed"):
        blocks = layer_map(layers, student.config.decoder.depth, teacher.config.decoder.depth)
        report |= {"layers": layers, "compression": compression, "blocks": blocks}
        if method == "paper":
            ours, how = paper(theirs, ours, blocks, compression)
        else:
            heads = head_pair(teacher.config, student.config)
            ours, how = paper_fixed(theirs, ours, blocks, heads, compression)
    elif method in ("structured", "calibrated"):
        configs = (teacher.config, student.config)
        encoder = {} if given else inherited_encoder(theirs, ours, configs)
        ours = {**ours, **encoder}
        if method == "structured":
            ours, how, notes, made = structured(theirs, ours, configs)
        else:
            images = calibration_images(calibration)
            student = student.replace(params=unflatten(ours))
            ours, how, notes, made = calibrated(teacher, student, images)
        how |= {name: "copied" for name in encoder}
        report |= notes
    report = {
        "method": method,
        "teacher": teacher.config.name,
        "student": student.config.name,
        "seed": seed,
        **report,
        "parameters": {name: how.get(name, "given" if given else "fresh") for name in ours},
        "seconds": time.monotonic() - start,
    }
    meta = _meta(teacher, student, method, how)
    return student.replace(params=unflatten(ours), meta=meta), report


def calibration_images(calibration) -> tuple[np.ndarray, np.ndarray]:
    """Both views of the calibration pairs: two [P, H, W, 3] in [-1, 1].

    calibration: these two arrays, or `StereoPair`s of one size

    Raises:
      InputError: there are none.
    """
    if calibration is None:
        raise InputError(
            "The method calibrated needs pairs of images: give calibration (--calibration DATA), "
            "or take the method structured."
        )
    if isinstance(calibration, tuple) and len(calibration) == 2:
        return calibration
    pairs = list(calibration)
    check_pairs(pairs)
    return stack_images(pairs)


def head_pair(teacher: StereoConfig, student: StereoConfig) -> HeadPair:
    """The heads of both decoders."""
    a, b = teacher.decoder, student.decoder
    return HeadPair(a.heads, a.width // a.heads, b.heads, b.width // b.heads)


def _meta(teacher: api.Stereo, student: api.Stereo, method: str, how: Mapping) -> dict[str, str]:
    meta = {k: v for k, v in student.meta.items() if k not in ("self_check", "source_sha256")}
    if not how:
        return meta
    # A student is a derived work of its teacher.
    source = teacher.meta.get("source", teacher.config.name)
    return {
        **meta,
        "source": f"{method} from {teacher.config.name} ({source})",
        "licence": teacher.meta.get("licence", "unknown"),
    }
