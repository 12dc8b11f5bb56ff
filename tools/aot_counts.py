"""What a compiled step does: operations by its jaxpr; by its HLO text, bytes between devices, bytes
of memory, and the cycles that the compiler reckons with.

The compiler's own analysis counts a loop's body once, and numbers that never leave the chip; here
loops count as often as they run, and what is held on the chip does not count.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from jax.interpreters import partial_eval

from lunar_distill_jax.models.liveness import inner_programs

TYPES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# They move nothing: names of arrays and their parts, the ends of what began before, and what is
# visited in computations of its own.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "call", "conditional", "partition-id", "replica-id"),
}
PARTS = ("dynamic-slice", "slice", "gather")  # they read of an array as much as they give
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.+?) ([a-z][a-z\-]*)\((.*)$")
_CALLED = re.compile(r"(?:body|to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch|true|false)_computations?=\{?([^}=]+?)(?:\}|, \w+=|$)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_TRIPS = re.compile(r'known_trip_count[":{]+n[":]+(\d+)')
_NUMBER = re.compile(r"(\d+)\)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def needed_operations(traced: Any) -> int:
    """`operations` of a traced function (jax.stages.Traced), without what no result needs."""
    everything = traced.jaxpr.jaxpr
    needed, _ = partial_eval.dce_jaxpr(everything, [True] * len(everything.outvars))
    return operations(needed)


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


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. `rest` follows its opening bracket."""

    name: str
    shape: str
    kind: str
    rest: str
    root: bool

    @functools.cached_property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.partition(")")[0])

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Bytes of each of its arrays."""
        return [size for size, _ in self._arrays]

    @functools.cached_property
    def in_memory(self) -> list[bool]:
        """Which of its arrays are in the device's memory, and not in the chip's own (S(1))."""
        return [outside for _, outside in self._arrays]

    @functools.cached_property
    def _arrays(self) -> list[tuple[int, bool]]:
        return [
            (TYPES[t] * math.prod(map(int, filter(None, d.split(",")))), "S(" not in layout)
            for t, d, layout in _ARRAY.findall(self.shape)
            if t in TYPES
        ]


class Program:
    """The text of a compiled program as computations of instructions."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = current = ""
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                current = found[1]
                self.entry = current if line.startswith("ENTRY") else self.entry
                self.computations[current] = {}
            elif current and (found := _INSTRUCTION.match(line)):
                root, name, shape, kind, rest = found.groups()
                self.computations[current][name] = Instruction(name, shape, kind, rest, bool(root))

    def run(self) -> Iterator[tuple[str, Instruction, int]]:
        """(its computation, instruction, how often it runs), without the insides of fusions."""
        waiting = [(self.entry, 1)]
        while waiting:
            name, times = waiting.pop()
            for i in self.computations.get(name, {}).values():
                yield name, i, times
                if i.kind == "while":
                    waiting += [(c, times * self._trips(i)) for c in _CALLED.findall(i.rest)]
                elif i.kind in ("call", "conditional"):
                    names = {*_CALLED.findall(i.rest)}
                    for branches in _BRANCHES.findall(i.rest):
                        names |= {b.strip().lstrip("%") for b in branches.split(",")}
                    waiting += [(c, times) for c in names]

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: as noted, or the number that its condition compares with."""
        if found := _TRIPS.search(loop.rest):
            return int(found[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        inside = self.computations.get(condition[1] if condition else "", {}).values()
        numbers = [
            int(n[1]) for i in inside if i.kind == "constant" and (n := _NUMBER.match(i.rest))
        ]
        return max(numbers, default=1)

    def moved(self, computation: str, i: Instruction) -> int:
        """Bytes of the device's memory that an instruction reads and writes."""
        if i.kind in FREE or i.kind.endswith("-done"):
            return 0
        if i.kind in ("copy-start", "slice-start"):  # from memory to the chip, or back
            moved = i.sizes[0] if i.kind == "copy-start" else i.sizes[1]
            return moved * sum(i.in_memory[:2])
        written = sum(size for size, out in zip(i.sizes, i.in_memory, strict=True) if out)
        if i.kind.endswith("-start"):
            return written  # its tuple holds what it reads too
        known = self.computations[computation]
        operands = [known[o] for o in i.operands if o in known]
        inner = None
        if i.kind == "fusion" and (called := _CALLED.search(i.rest)):
            inner = self.computations.get(called[1])
        read = 0
        for k, o in enumerate(operands):
            size = sum(size for size, out in zip(o.sizes, o.in_memory, strict=True) if out)
            if size and inner is not None:
                size = min(size, _used(inner, k, size))
            elif i.kind in PARTS and k == 0:
                size = min(size, sum(i.sizes))
            read += size
        if i.kind == "dynamic-update-slice" and len(operands) > 1:  # in place
            update = operands[1]
            return sum(update.sizes) * (sum(update.in_memory) + bool(written))
        if inner is not None and written:
            written = min(written, _stored(inner, written))
        return read + written


def _used(inner: dict[str, Instruction], index: int, whole: int) -> int:
    """How much of its operand a fusion reads: all of it, unless it only takes parts."""
    names = {
        name
        for name, i in inner.items()
        if i.kind == "parameter" and i.rest.startswith(f"{index})")
    }
    total = 0
    while names:
        users = [i for i in inner.values() if names & set(i.operands)]
        for i in users:
            if i.kind in PARTS:
                total += sum(i.sizes)
            elif i.kind == "dynamic-update-slice" and not names & set(i.operands[1:]):
                continue  # the array is written in place: only a part changes
            elif i.kind != "bitcast":
                return whole
        names = {i.name for i in users if i.kind == "bitcast"}
    return total


def _stored(inner: dict[str, Instruction], whole: int) -> int:
    """How much of its result a fusion writes: all of it, unless that is updated in place."""
    root = next((i for i in inner.values() if i.root), None)
    while root is not None and root.kind == "bitcast" and root.operands[0] in inner:
        root = inner[root.operands[0]]
    if root is None or root.kind != "dynamic-update-slice":
        return whole
    return sum(inner[root.operands[1]].sizes) if root.operands[1] in inner else whole


def memory_traffic(program: Program) -> int:
    """Bytes that a device reads from its memory and writes to it in a run."""
    return sum(times * program.moved(name, i) for name, i, times in program.run())


def cycles(program: Program) -> int:
    """The sum of the cycles that the compiler for TPUs notes at its fusions; 0 where it notes none.

    Copies and collectives have no such note, nor have kernels.
    """
    return sum(
        times * int(found[1]) for _, i, times in program.run() if (found := _CYCLES.search(i.rest))
    )


def group_size(rest: str, devices: int) -> int:
    """How many devices take part in one collective."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found[2])
    return devices


def collectives(program: Program, devices: int) -> dict[str, tuple[int, int]]:
    """{kind: (how often a step, bytes that a device sends)}.

    Sent bytes are those of a ring: of n devices, (n - 1) / n of the whole array, twice for a sum.
    """
    count: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    for _, i, times in program.run():
        kind, started = i.kind.removesuffix("-start"), i.kind.endswith("-start")
        if kind not in KINDS:
            continue
        n = group_size(i.rest, devices)
        whole = max(i.sizes) if started else sum(i.sizes)
        share = (n - 1) / n
        factor = {"all-reduce": 2 * share, "reduce-scatter": n - 1, "collective-permute": 1}.get(
            kind, share
        )
        if kind == "reduce-scatter" and started:
            factor = share  # the tuple holds the whole input
        count[kind] += times
        sent[kind] += round(times * factor * whole)
    return {kind: (count[kind], sent[kind]) for kind in KINDS if count[kind]}
