r"""Compiles the training step for TPUs that are not here, and says what it would cost on them.

    pip install 'lunar-distill-jax[aot]'
    python tools/aot_tpu.py --config configs/paper.py:s3 --topology v5e:4x4 --config.accumulate=4

libtpu compiles on a CPU machine (installed, or TPU_LIBRARY_PATH=.../libtpu.so). Memory is the
compiler's own figure, and a step that does not fit is refused by it. Times are a roofline over the
compiled program: a bound, no measurement.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # libtpu must not look for a TPU of this machine
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-16"
os.environ["TPU_MIN_LOG_LEVEL"] = "3"

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lunar_distill_jax.models.fresh import parameter_shapes, statistics_shapes
from lunar_distill_jax.models.zoo import architecture
from lunar_distill_jax.train import forward, sharding
from lunar_distill_jax.train.plan import check_settings, complete
from lunar_distill_jax.train.state import Student, Trial, init_state, unflatten
from lunar_distill_jax.train.step import make_train_step


def shapes(of: dict[str, tuple[int, ...]]) -> Any:
    return unflatten({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in of.items()})


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes with the place where their arrays would be."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def batch_shapes(config, sharding) -> dict[str, jax.ShapeDtypeStruct]:
    size = (config.batch, config.data.size, config.data.get("width", config.data.size))
    kinds = {"image": ((3,), jnp.float32), "valid": ((), jnp.bool_)}
    out = {
        f"{key}{view}": jax.ShapeDtypeStruct((*size, *tail), dtype, sharding=sharding)
        for key, (tail, dtype) in kinds.items()
        for view in (1, 2)
    }
    pixels = jax.ShapeDtypeStruct((config.batch, config.matches, 2), jnp.int32, sharding=sharding)
    valid = jax.ShapeDtypeStruct((config.batch, config.matches), jnp.bool_, sharding=sharding)
    return out | {"pixels1": pixels, "pixels2": pixels, "pixels_valid": valid}


def lower(config, devices):
    """-> (the lowered step, its jaxpr's maker and arguments)"""
    plan = check_settings(config, has_teacher=True)
    config = complete(config)
    mesh = sharding.make_mesh(**config.mesh.to_dict(), devices=devices)
    sharding.check_batch(config.batch, mesh, config.accumulate)
    teacher = architecture(config.teacher)
    student = Student(architecture(config.student), plan.optim, plan.on, plan.compute)
    variables = {"params": shapes(parameter_shapes(teacher))}

    def first(params, batch_stats):
        trials = [Trial(params, r.weights, r.lr, r.seed, batch_stats) for r in plan.runs]
        return init_state({student.config.name: (student, trials)}, teacher.encoder.width)

    state = jax.eval_shape(
        first,
        shapes(parameter_shapes(student.config)),
        shapes(statistics_shapes(student.config)),
    )
    target_fn = forward.live_teacher(
        teacher,
        plan.on,
        plan.settings,
        symmetric=config.symmetric,
        matches=config.matches,
        compute=plan.teacher_compute,
    )
    step = make_train_step(
        {student.config.name: student},
        target_fn,
        plan.settings,
        symmetric=config.symmetric,
        accumulate=config.accumulate,
        mesh=mesh,
        state=state,
        teacher=variables,
    )
    arguments = (
        placed(state, sharding.state_sharding(state, mesh)),
        placed(variables, sharding.params_sharding(variables, mesh)),
        batch_shapes(config, NamedSharding(mesh, P("data"))),
    )
    return step, arguments
