r"""Compiles the training step for TPUs that are not here, and says what it would cost on them.

    pip install 'lunar-distill-jax[aot]'
    python tools/aot_tpu.py --config configs/paper.py:s3 --topology v5e:4x4

libtpu compiles on a CPU machine (installed, or TPU_LIBRARY_PATH=.../libtpu.so). Memory is the
compiler's own figure, and a step that does not fit is refused by it. Times are a roofline over the
compiled program, a bound and no measurement, and the sum of the cycles that the compiler expects.
--config and --topology may be given several times; what follows as --config.key=value changes all
configs.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import math
import os
import pathlib
import re
import sys
import time
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # libtpu must not look for a TPU of this machine
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-16"
os.environ["TPU_MIN_LOG_LEVEL"] = "3"

import jax
import jax.numpy as jnp
from aot_counts import Program, collectives, cycles, memory_traffic, needed_operations
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.fresh import parameter_shapes, statistics_shapes
from lunar_distill_jax.models.zoo import architecture
from lunar_distill_jax.train import forward, sharding
from lunar_distill_jax.train.config import read_config
from lunar_distill_jax.train.options import complete_run, largest_frame
from lunar_distill_jax.train.plan import check_settings
from lunar_distill_jax.train.state import Student, Trial, init_state, unflatten
from lunar_distill_jax.train.step import make_train_step

GIB = 2**30
# With its usual 0 the compiler searches for many seconds at every convolution, and there are
# hundreds. Below this it no longer keeps arrays on the chip.
EFFORT = -0.4


@dataclasses.dataclass(frozen=True)
class Chip:
    """Public figures of a TPU chip: FLOP/s in bfloat16, bytes/s of memory and between chips, and
    the bytes of memory that the compiler has to give. `clock` in Hz, 0 where it is not known,
    follows from the FLOP/s and the number and size of the matrix units.
    """

    flops: float
    memory: float
    links: float
    capacity: float
    clock: float = 0.0


# docs.cloud.google.com/tpu/docs/v5e, v5p and v6e, read in November 2026. Between chips: the sum
# over the links of a chip, one way, half of what the pages call bidirectional.
CHIPS = {
    "v5e": Chip(197e12, 819e9, 200e9, 15.75 * GIB, 1.5e9),
    "v5p": Chip(459e12, 2765e9, 600e9, 95.74 * GIB, 1.75e9),
    "v6e": Chip(918e12, 1638e9, 400e9, 31.25 * GIB),
}


def shapes(of: dict[str, tuple[int, ...]]) -> Any:
    return unflatten({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in of.items()})


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes with the place where their arrays would be."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def batch_shapes(config, sharding) -> dict[str, jax.ShapeDtypeStruct]:
    size = (config.batch, *largest_frame(config))
    kinds = {"image": ((3,), jnp.float32), "valid": ((), jnp.bool_)}
    out = {
        f"{key}{view}": jax.ShapeDtypeStruct((*size, *tail), dtype, sharding=sharding)
        for key, (tail, dtype) in kinds.items()
        for view in (1, 2)
    }
    pixels = jax.ShapeDtypeStruct((config.batch, config.matches, 2), jnp.int32, sharding=sharding)
    valid = jax.ShapeDtypeStruct((config.batch, config.matches), jnp.bool_, sharding=sharding)
    return out | {"pixels1": pixels, "pixels2": pixels, "pixels_valid": valid}


def step_of(config, devices):
    """-> (the jitted step over these devices, the shapes of its arguments)

    config: complete. Its teacher is the architecture that its file is named for: none is read.
    """
    plan = check_settings(config, has_teacher=True)
    mesh = sharding.make_mesh(**config.mesh.to_dict(), devices=devices)
    sharding.check_batch(config.batch, mesh, config.accumulate)
    teacher = architecture(pathlib.Path(config.teacher).stem)
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


@dataclasses.dataclass(frozen=True)
class Report:
    """A compiled step, per device. `over`: bytes beyond its memory; nothing else is known then."""

    seconds: float
    pairs: int
    devices: int
    over: float = 0.0
    peak: int = 0
    state: int = 0
    flops: float = 0.0
    counted: float = 0.0
    moved: int = 0
    cycles: int = 0
    sent: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def largest(self, chip: Chip) -> int:
        """About the largest batch that fits: what is no argument grows with the batch."""
        peak = self.peak or chip.capacity + self.over
        grows = max(peak - self.state, 1)
        room = chip.capacity - self.state
        return int(self.pairs * room / grows) // self.devices * self.devices if room > 0 else 0

    def bounds(self, chip: Chip) -> dict[str, float]:
        """{what: least seconds a step}"""
        between = sum(size for _, size in self.sent.values())
        return {
            "compute": self.flops / chip.flops,
            "memory": self.moved / chip.memory,
            "links": between / chip.links,
        }


def devices_of(topology: str):
    """The devices of a TPU topology that is not here.

    Raises:
      InputError: there is no such topology, or no libtpu.
    """
    if topology.partition(":")[0] not in CHIPS:
        raise InputError(f"Unknown TPU {topology!r}: choose {', '.join(CHIPS)}, as v5e:4x4.")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as e:
        said = str(e).splitlines()[0][:120]
        raise InputError(
            f"There is no TPU topology {topology!r}, or no libtpu ({said}): give one such as "
            "v5e:4x4, and install the extra aot or set TPU_LIBRARY_PATH."
        ) from e


def excess_memory(message: str) -> float | None:
    """Bytes too many by the compiler's refusal; nan where it gives none; None: another error."""
    unit = {"K": 2**10, "M": 2**20, "G": GIB}
    if found := re.search(r"xceed\w* [^.]*? by (?:\w+ )?([\d.]+)([KMG])", message):
        return float(found[1]) * unit[found[2]]
    both = r"\(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)"
    if found := re.search(both, message):
        return float(found[1]) * unit[found[2]] - float(found[3]) * unit[found[4]]
    return float("nan") if "RESOURCE_EXHAUSTED" in message else None


def compile_step(config, devices, effort: float):
    """-> (operations of all devices by the jaxpr, bytes of arguments on a device, the compiled
    step or the bytes beyond memory)
    """
    step, arguments = step_of(config, devices)
    traced = step.jitted.trace(*arguments)
    flops = needed_operations(traced)
    held = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(arguments)
    )
    options = {"exec_time_optimization_effort": effort}
    try:
        return flops, held, traced.lower(lowering_platforms=("tpu",)).compile(options)
    except jax.errors.JaxRuntimeError as e:
        excess = excess_memory(str(e))
        if excess is None:
            raise
        return flops, held, excess


def report(config, topology: str, effort: float = EFFORT) -> Report:
    """Compiles the step of a config (complete) for a topology.

    effort: of the compiler, -1 to 1. Below `EFFORT` traffic and cycles are not worth noting.

    Raises:
      InputError: there is no such topology, or the config cannot be used.
    """
    devices = devices_of(topology)
    start = time.perf_counter()
    compiled: Any
    flops, held, compiled = compile_step(config, devices, effort)
    known: dict[str, Any] = {
        "pairs": config.batch,
        "state": held,
        "devices": len(devices),
        "flops": flops / len(devices),
    }
    if isinstance(compiled, float):
        return Report(time.perf_counter() - start, over=compiled, **known)
    memory, program = compiled.memory_analysis(), Program(compiled.as_text())
    # The compiler counts a loop's body once. Nearly all of the step is in the loop over the
    # micro-batches; the optimizer is not, so this is a little too much.
    return Report(
        time.perf_counter() - start,
        peak=memory.peak_memory_in_bytes,
        counted=config.accumulate * compiled.cost_analysis().get("flops", 0.0),
        moved=memory_traffic(program) if effort >= EFFORT else 0,
        cycles=cycles(program) if effort >= EFFORT else 0,
        sent=collectives(program, len(devices)),
        **known,
    )


def describe(name: str, topology: str, config, r: Report) -> str:
    chip = CHIPS[topology.partition(":")[0]]
    micro = r.pairs / r.devices / config.accumulate * max(1, config.mesh.trial)
    lines = [f"{name} on {topology}: {r.pairs} pairs a step, {r.devices} devices"]
    lines.append(f"  {config.accumulate} micro-batches of {micro:g} pairs a device and trial")
    lines.append(f"  compiled in {r.seconds:.0f} s")
    if r.over:
        if math.isnan(r.over):
            lines.append("  does NOT fit; the compiler does not say by how much")
        else:
            lines.append(f"  does NOT fit: {r.over / GIB:.2f} GiB too much on every device")
            lines.append(f"  with as many micro-batches about {r.largest(chip)} pairs would")
        return "\n".join(lines)
    lines.append(
        f"  fits: peak {r.peak / GIB:.2f} GiB a device, {r.state / GIB:.2f} of it arguments"
    )
    lines.append(f"  with as many micro-batches about {r.largest(chip)} pairs would fit")
    lines.append(
        f"  {r.flops / 1e12:.2f} TFLOP a device by the jaxpr; the compiler counts "
        f"{r.counted / 1e12:.2f} (of loops within a micro-batch the body once)"
    )
    for kind, (count, size) in r.sent.items():
        lines.append(f"  {kind}: {count} times, {size / 2**20:.1f} MiB sent by a device")
    if not r.moved:
        return "\n".join([*lines, "  at this effort nothing is known of memory traffic and cycles"])
    lines.append(
        f"  {r.moved / 1e9:.1f} GB to and from memory, arithmetic intensity "
        f"{r.flops / max(r.moved, 1):.0f} FLOP a byte"
    )
    bounds = r.bounds(chip)
    longest = max(bounds, key=bounds.__getitem__)
    times = ", ".join(f"{k} {v * 1e3:.1f}" for k, v in bounds.items())
    mfu = bounds["compute"] / bounds[longest]
    lines.append(f"  least ms a step: {times}; bound by {longest}, MFU at most {100 * mfu:.0f} %")
    if chip.clock and r.cycles:
        seconds = r.cycles / chip.clock
        lines.append(
            f"  the compiler itself reckons with {seconds * 1e3:.1f} ms, "
            f"MFU {100 * bounds['compute'] / seconds:.0f} %"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", action="append", required=True, metavar="F.py[:mode]")
    parser.add_argument("--topology", action="append", required=True, metavar="v5e:4x4")
    parser.add_argument(
        "--effort",
        type=float,
        default=EFFORT,
        help="of the compiler; -1 is four times as fast and enough for memory and collectives "
        f"(default {EFFORT})",
    )
    args, overrides = parser.parse_known_args()
    installed = importlib.util.find_spec("libtpu")
    if "TPU_LIBRARY_PATH" not in os.environ and installed and installed.submodule_search_locations:
        folder = pathlib.Path(next(iter(installed.submodule_search_locations)))
        os.environ["TPU_LIBRARY_PATH"] = str(folder / "libtpu.so")
    worst = 0
    for source in args.config:
        for topology in args.topology:
            try:
                config = complete_run(read_config(source, overrides))
                r = report(config, topology, args.effort)
            except InputError as error:
                print(f"aot_tpu: {error}", file=sys.stderr)
                return 2
            print(describe(source, topology, config, r), flush=True)
            worst |= bool(r.over)
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
