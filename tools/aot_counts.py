"""What a compiled step does: operations by its jaxpr, bytes between devices by its HLO text."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from lunar_distill_jax.models.liveness import inner_programs

TYPES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_OPERATION = re.compile(
    rf"= (?P<shape>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\((?P<rest>.*)$"
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count[":{]+n[":]+(\d+)')


def operations(jaxpr: Any) -> int:
    """Floating-point operations of matrix products and convolutions, 2 a multiply-add.

    A loop counts as often as it runs; of the branches for several platforms, the largest.
    """
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        shapes: list[Any] = [
            getattr(v.aval, "shape", ()) for v in (*equation.invars, *equation.outvars)
        ]
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * math.prod(shapes[2]) * math.prod(shapes[0][i] for i in contracted)
        elif name == "conv_general_dilated":
            total += _convolution(equation, shapes)
        elif name == "cond":
            total += max(operations(b.jaxpr) for b in equation.params["branches"])
        elif name == "pallas_call":
            continue  # the branch of other platforms has the same products
        else:
            repeats = equation.params.get("length", 1) if name == "scan" else 1
            total += repeats * sum(operations(inner) for inner in inner_programs(equation))
    return total


def _convolution(equation, shapes) -> int:
    """Products with the zeros between dilated inputs are not counted."""
    params = equation.params
    out_features = shapes[1][params["dimension_numbers"].rhs_spec[0]]
    macs = math.prod(shapes[2]) * math.prod(shapes[1]) // out_features
    macs //= params["batch_group_count"]
    return 2 * macs // math.prod(params["lhs_dilation"])


def size_of(shape: str) -> list[int]:
    """Bytes of each array in an HLO type, such as "(f32[2,3]{1,0}, bf16[4])"."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return [
        TYPES[t] * math.prod(map(int, filter(None, d.split(",")))) for t, d in found if t in TYPES
    ]


def group_size(rest: str, devices: int) -> int:
    """How many devices take part in one collective."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found[2])
    return devices


def collectives(text: str, devices: int) -> dict[str, tuple[int, int]]:
    """{kind: (how often a step, bytes that a device sends)} of a compiled program's text.

    Sent bytes are those of a ring: of n devices, (n - 1) / n of the whole array, twice for a sum.
    Loops count as often as they run.
    """
    computations: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = found[1]
            entry = current if line.startswith("ENTRY") else entry
            computations[current] = []
        elif current:
            computations[current].append(line)
    count: Counter[str] = Counter()
    sent: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        for line in computations.get(name, ()):
            if found := _OPERATION.search(line):
                n = group_size(found["rest"], devices)
                sizes = size_of(found["shape"])
                whole = max(sizes) if found["start"] else sum(sizes)
                share = (n - 1) / n
                factor = {"all-reduce": 2 * share, "reduce-scatter": n - 1}.get(
                    found["kind"], share
                )
                if found["kind"] == "collective-permute":
                    factor = 1
                if found["kind"] == "reduce-scatter" and found["start"]:
                    factor = share  # the tuple holds the whole input
                count[found["kind"]] += times
                sent[found["kind"]] += round(times * factor * whole)
            trips = times * int(t[1]) if (t := _TRIPS.search(line)) and " while(" in line else times
            if " while(" in line or " call(" in line or " conditional(" in line:
                for called in set(_CALLED.findall(line)):
                    visit(called, trips)

    visit(entry, 1)
    return {kind: (count[kind], sent[kind]) for kind in KINDS if count[kind]}
