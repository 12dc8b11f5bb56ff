"""What a group's program needs, as its compilation says: nothing is trained or allocated."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.models.fresh import fresh_params, fresh_statistics
from lunar_distill_jax.runs.start import network_config
from lunar_distill_jax.sweep.planner import members
from lunar_distill_jax.sweep.trials import Spec
from lunar_distill_jax.train import forward
from lunar_distill_jax.train.options import largest_frame
from lunar_distill_jax.train.state import Student, Trial, init_state
from lunar_distill_jax.train.step import make_train_step


def limit_bytes(memory_gb: float) -> int | None:
    """What a device may use: as told, or as it says of itself; None where nobody knows."""
    if memory_gb:
        return int(memory_gb * 1e9)
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")


def peak_bytes(specs: Sequence[Spec]) -> float:
    """Of one device that runs the group's step alone; infinite where the compiler refuses it."""
    c = specs[0].config
    teacher = api.load(c.teacher) if c.teacher else None
    family = members(specs)
    plans = {m.name: m.plan for m in family}
    on = tuple(dict.fromkeys(term for plan in plans.values() for term in plan.on))
    compiled, first = {}, {}
    for m in family:
        first_config = m.specs[0].config
        config, plan = network_config(first_config, first_config.student), plans[m.name]
        compiled[m.name] = Student(config, plan.optim, plan.on, plan.compute)
        params, stats = fresh_params(config, 0), fresh_statistics(config)
        first[m.name] = [Trial(params, r.weights, r.lr, r.seed, stats) for r in plan.runs]
    shared = next(iter(plans.values()))
    if teacher is None:
        target_fn = forward.ground_truth(
            on, shared.settings, symmetric=c.symmetric, matches=c.matches
        )
    else:
        target_fn = forward.live_teacher(
            teacher.config,
            on,
            shared.settings,
            symmetric=c.symmetric,
            matches=c.matches,
            compute=shared.teacher_compute,
        )
    step = make_train_step(
        compiled, target_fn, shared.settings, symmetric=c.symmetric, accumulate=c.accumulate
    )
    width = teacher and teacher.config.encoder.width
    state = jax.eval_shape(
        lambda: init_state({n: (compiled[n], first[n]) for n in compiled}, width)
    )
    variables = None if teacher is None else jax.tree.map(_shape, teacher.variables)
    matches = c.matches if any(p.true_matches for p in plans.values()) else 0
    try:
        analysis = (
            step.jitted.lower(state, variables, _batch(c, matches)).compile().memory_analysis()
        )
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" in str(e):
            return float("inf")
        raise
    aliased = analysis.alias_size_in_bytes
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - aliased
    )


def _shape(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), np.float32)


def _batch(c, matches: int) -> dict[str, jax.ShapeDtypeStruct]:
    """`batches.make_batch` in shapes, at the largest frame."""
    frame = (c.batch, *largest_frame(c))
    out = {"T_cam2_cam1": jax.ShapeDtypeStruct((c.batch, 4, 4), np.float32)}
    out |= {f"K{v}": jax.ShapeDtypeStruct((c.batch, 3, 3), np.float32) for v in (1, 2)}
    for view in "12":
        out[f"image{view}"] = out[f"points{view}"] = jax.ShapeDtypeStruct((*frame, 3), np.float32)
        out[f"valid{view}"] = jax.ShapeDtypeStruct(frame, bool)
        if matches:
            out[f"pixels{view}"] = jax.ShapeDtypeStruct((c.batch, matches, 2), np.int32)
    if matches:
        out["pixels_valid"] = jax.ShapeDtypeStruct((c.batch, matches), bool)
    return out
