"""What an answer costs: parameters, arithmetic, bytes, time at batch 1; and the tiers it fits.

Counts hold anywhere; times and memory hold for the device that is named beside them.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lunar_distill_jax import api, measure
from lunar_distill_jax.evaluation.catalogue import Metric
from lunar_distill_jax.models.accounting import mac_counts, parameter_counts
from lunar_distill_jax.types import Prediction

WARM_UP = 3  # calls that are not timed
ROUNDS = 20
SECONDS = 20.0  # after which no further round is begun

METRICS = {
    "parameters_used": Metric("Parameters used", "M", -1, ".2f", "cost", "that are read"),
    "gmacs": Metric("MACs", "G a pair", -1, ".2f", "cost", "products and convolutions, as traced"),
    "gflops": Metric("FLOPs", "G a pair", -1, ".2f", "cost", "2 for each MAC"),
    "gflops_xla": Metric("FLOPs by XLA", "G a pair", -1, ".2f", "cost", "all operations"),
    "mb_float32": Metric("Weights float32", "MB", -1, ".1f", "cost", "4 bytes each"),
    "mb_bfloat16": Metric("Weights bfloat16", "MB", -1, ".1f", "cost", "2 bytes each"),
    "mb_int8": Metric("Weights int8", "MB", -1, ".1f", "cost", "a byte each, no scales"),
    "latency_p50_ms": Metric("Latency, median", "ms", -1, ".1f", "cost", "batch 1, compiled"),
    "latency_p95_ms": Metric("Latency, 95 %", "ms", -1, ".1f", "cost", "batch 1, compiled"),
    "peak_mb": Metric("Peak memory", "MB", -1, ".0f", "cost", "as XLA plans it"),
    "compile_s": Metric("Compilation", "s", -1, ".1f", "cost", "trace and compile, once"),
}  # fmt: skip

MEASURED = ("latency_p50_ms", "latency_p95_ms", "peak_mb", "compile_s")  # the others are counted


@dataclasses.dataclass(frozen=True)
class Program:
    """One forward pass over one pair, compiled; call it with two [1, H, W, 3] float32 in [-1, 1].

    compile_s: what tracing and compiling took
    turns:     of view 2 that it tries, as `api.predict`
    size:      H, W
    """

    stereo: api.Stereo
    compiled: Any
    compile_s: float
    size: tuple[int, int]
    turns: int = 1

    def __call__(self, image1, image2) -> tuple[Prediction, Prediction]:
        return self.compiled(self.stereo, image1, image2)


def program(stereo: api.Stereo, height: int, width: int, turns: int | None = None) -> Program:
    """Compiles the network for one pair of frames of that size, float32.

    turns: None asks at as many quarter turns as the network wants
    """
    turns = stereo.turns if turns is None else turns
    stereo = jax.device_put(stereo)
    image = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
    start = time.perf_counter()
    predict = jax.jit(functools.partial(api.predict, turns=turns))
    compiled = predict.lower(stereo, image, image).compile()
    return Program(stereo, compiled, time.perf_counter() - start, (height, width), turns)


def cost(program: Program) -> dict:
    """`METRICS` of a program, and {"size", "device"}.

    The peak is what XLA plans for the program; Python and the compiler are not in it.
    """
    stereo, (height, width) = program.stereo, program.size
    counts = parameter_counts(stereo.config)
    used = sum(count for part, count in counts.items() if part != "unused")
    macs = program.turns * sum(mac_counts(stereo.config, height, width).values())
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 1, height, width, 3)).astype(np.float32)
    images = jax.device_put(images)
    seconds = latencies(lambda: jax.block_until_ready(program(*images)))
    return {
        "parameters_used": used / 1e6,
        "gmacs": macs / 1e9,
        "gflops": 2 * macs / 1e9,
        "gflops_xla": _flops(program.compiled),
        **{f"mb_{kind}": used * size / 1e6 for kind, size in (("float32", 4), ("bfloat16", 2))},
        "mb_int8": used / 1e6,
        "latency_p50_ms": 1e3 * float(np.percentile(seconds, 50)),
        "latency_p95_ms": 1e3 * float(np.percentile(seconds, 95)),
        "peak_mb": _peak_mb(program.compiled),
        "compile_s": program.compile_s,
        "size": f"{width}x{height}",
        "device": device(),
    }


def latencies(call, rounds: int = ROUNDS, seconds: float = SECONDS) -> list[float]:
    """Seconds of each of up to `rounds` calls, after warming up; five at least.

    A call that takes seconds is warm after one.
    """
    began = time.perf_counter()
    for _ in range(WARM_UP):
        call()
        if time.perf_counter() - began > 0.1 * seconds:
            break
    times: list[float] = []
    while len(times) < rounds and (len(times) < 5 or sum(times) < seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def device() -> str:
    """What the numbers were measured on."""
    kind = jax.devices()[0].device_kind
    return measure.machine() if jax.default_backend() == "cpu" else f"{kind}, jax {jax.__version__}"


def _flops(compiled) -> float:
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return float((analysis or {}).get("flops", np.nan)) / 1e9


def _peak_mb(compiled) -> float:
    memory = compiled.memory_analysis()
    if memory is None:  # not every backend tells
        return float("nan")
    sizes = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return (sizes - memory.alias_size_in_bytes) / 1e6


@dataclasses.dataclass(frozen=True)
class Tier:
    """A class of flight computers, and what we ask of a network to fit it: our own limits."""

    name: str
    example: str
    weights_mb: float
    gop: float
    ram_mb: float
    latency_s: float
    power_w: float


TIERS = (
    Tier("A, landing loop", "HPSC, Versal, Orin class", 100, 250, 512, 1, 15),
    Tier("B, rover stop-and-look, mapping", "HPSC, K26, Snapdragon", 35, 150, 256, 10, 8),
    Tier("C, micro", "Myriad, Edge TPU class", 15, 20, 128, 1, 2),
)


def fits(costs: Mapping, tier: Tier) -> dict[str, bool | None]:
    """Which limits a network keeps: weights in int8, operations of a pair (2 a MAC), memory.

    Memory is that of the float32 program measured here. Latency and power are None: they ask for
    the tier's own hardware, and nothing here was run on it.
    """
    return {
        "weights": costs["mb_int8"] <= tier.weights_mb,
        "work": costs["gflops"] <= tier.gop,
        "memory": costs["peak_mb"] <= tier.ram_mb if np.isfinite(costs["peak_mb"]) else None,
        "latency": None,
        "power": None,
    }
