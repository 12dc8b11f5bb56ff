"""A student initialised from a teacher, by name of the method."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.init.calibrated import calibrated, steps
from lunar_distill_jax.init.calibration import token_pixels
from lunar_distill_jax.init.controls import HeadPair, heads_only, paper_fixed
from lunar_distill_jax.init.depth import layer_map
from lunar_distill_jax.init.energy import energy_report
from lunar_distill_jax.init.paper import paper
from lunar_distill_jax.init.pictures import Calibration, Pictures, calibration_pictures
from lunar_distill_jax.init.planes import plane_sources
from lunar_distill_jax.init.provenance import parameter_report, summary
from lunar_distill_jax.init.store import Store, digest
from lunar_distill_jax.init.structured import inherited_encoder, structured, with_head_names
from lunar_distill_jax.init.tree import flatten, unflatten
from lunar_distill_jax.measure import peak_rss_bytes
from lunar_distill_jax.models.config import StereoConfig

METHODS = ("random", "heads_only", "paper", "paper_fixed", "structured", "calibrated")


def init_student(
    teacher: api.Stereo,
    student: str | StereoConfig | api.Stereo,
    method: str,
    calibration: Calibration = None,
    seed: int = 0,
    *,
    layers: str = "uniform",
    compression: str = "svd",
    size: int = 96,
    pairs: int = 256,
    workdir: str | os.PathLike | None = None,
    on_step: Callable[[int, int], object] = lambda done, total: None,
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
      structured   one basis for the whole residual stream, from the weights alone
      calibrated   the same, fitted to the teacher's activations on pairs of images
    calibration: of `calibrated`: pairs, or two arrays of images [P, H, W, 3] in [-1, 1], or a
             folder of pairs, or "synthetic" for `pairs` rendered ones; a folder's and synthetic
             frames are resized to size x size, and of a folder at most `pairs` are used
    workdir: of `calibrated`: a folder for activations, so that memory does not grow with the number
             of pairs, and a run that was killed goes on; by default they are kept in memory
    layers, compression: of `paper` and `paper_fixed`, see `depth.layer_map` and `paper.compress`
    on_step: called with the number of steps done and of all

    `structured` and `calibrated` take over the teacher's encoder where an architecture allows it.

    Raises:
      InputError: an unknown method or option, or a pair that the method cannot serve; the message
        has the reason.
    """
    if method not in METHODS:
        raise InputError(f"There is no init method {method!r}: choose from {', '.join(METHODS)}.")
    start = time.monotonic()
    given = isinstance(student, api.Stereo)
    own = student if isinstance(student, api.Stereo) else api.build(student, seed)
    configs = (teacher.config, own.config)
    theirs, ours = with_head_names(flatten(teacher.params), configs), flatten(own.params)
    how: dict[str, str] = {}
    report: dict[str, Any] = {}
    if method == "heads_only":
        ours, how = heads_only(theirs, ours)
    elif method in ("paper", "paper_fixed"):
        blocks = layer_map(layers, own.config.decoder.depth, teacher.config.decoder.depth)
        report |= {"layers": layers, "compression": compression, "blocks": blocks}
        if method == "paper":
            ours, how = paper(theirs, ours, blocks, compression)
        else:
            check_rotary(*configs)
            ours, how = paper_fixed(theirs, ours, blocks, head_pair(*configs), compression)
    elif method != "random":
        check_rotary(*configs)
        encoder = {} if given else inherited_encoder(theirs, ours, configs)
        ours = {**ours, **encoder}
        if method == "structured":
            total = 2 * own.config.decoder.depth
            ours, how, notes, made = structured(theirs, ours, configs, _counter(on_step, total))
        else:
            check_grid(*configs)
            pictures = calibration_pictures(calibration, size, pairs, seed)
            own = api.Stereo(own.config, unflatten(ours), own.meta, own.batch_stats)
            ours, how, notes, made = calibrated(
                teacher,
                own,
                pictures,
                _counter(on_step, steps(configs, pictures.count)),
                store=_store(workdir, (teacher, own), pictures),
            )
        how |= dict.fromkeys(encoder, "copied")
        heads = head_pair(*configs)
        report |= {
            "energy": energy_report(made),
            "rotary_planes": plane_sources(heads.their_size, heads.our_size).tolist(),
            **notes,
        }
    numbers = {name: array.size for name, array in ours.items()}
    parameters = parameter_report(
        how, sorted(ours), numbers, configs, report, "given" if given else "fresh"
    )
    counts, share = summary(parameters)
    report = {
        "method": method,
        "teacher": teacher.config.name,
        "student": own.config.name,
        "seed": seed,
        "share": share,
        "numbers": counts,
        **report,
        "parameters": parameters,
        "seconds": round(time.monotonic() - start, 3),
        "peak_rss_gb": round(peak_rss_bytes() / 2**30, 3),
    }
    meta = _meta(teacher, own, method) if how else own.meta
    return api.Stereo(own.config, unflatten(ours), meta, own.batch_stats), report


def _store(
    workdir: str | os.PathLike | None, both: tuple[api.Stereo, api.Stereo], pictures: Pictures
) -> Store:
    if workdir is None:
        return Store()
    ends = pictures.read(np.array([0, pictures.count - 1]))
    parts = [part for one in both for part in (flatten(one.arrays), one.config.to_dict())]
    return Store(workdir, digest(*parts, pictures.count, dict(zip("12", ends, strict=True))))


def _counter(on_step: Callable[[int, int], object], total: int) -> Callable[..., None]:
    done = 0

    def count(more: int = 1) -> None:
        nonlocal done
        done += more
        on_step(done, total)

    return count


def check_rotary(teacher: StereoConfig, student: StereoConfig) -> None:
    """Raises InputError where queries and keys of one cannot turn as the other's do."""
    if teacher.rope_base != student.rope_base:
        raise InputError(
            f"{student.name} turns positions with rope_base {student.rope_base:g} and its teacher "
            f"{teacher.name} with {teacher.rope_base:g}: their queries and keys have no frequency "
            "in common; set the teacher's, or take the method heads_only."
        )


def check_grid(teacher: StereoConfig, student: StereoConfig) -> None:
    """Raises InputError where the tokens of one do not lie where the other's do."""
    theirs, ours = token_pixels(teacher), token_pixels(student)
    if theirs != ours:
        raise InputError(
            f"A token of {student.name} is {ours} pixels wide and one of its teacher "
            f"{teacher.name} {theirs}, so neither can be fitted to the other: set encoder.patch to "
            f"{theirs}, or take the method structured."
        )


def head_pair(teacher: StereoConfig, student: StereoConfig) -> HeadPair:
    """The heads of both decoders."""
    a, b = teacher.decoder, student.decoder
    return HeadPair(a.heads, a.width // a.heads, b.heads, b.width // b.heads)


def _meta(teacher: api.Stereo, student: api.Stereo, method: str) -> dict[str, str]:
    meta = {k: v for k, v in student.meta.items() if k not in ("self_check", "source_sha256")}
    # A student is a derived work of its teacher.
    source = teacher.meta.get("source", teacher.config.name)
    return {
        **meta,
        "source": f"{method} from {teacher.config.name} ({source})",
        "licence": teacher.meta.get("licence", "unknown"),
    }
