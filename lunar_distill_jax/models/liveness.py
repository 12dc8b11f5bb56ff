"""How much memory a traced program needs at once: the bytes of the values that are still wanted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.extend.core import Literal

_PROGRAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where an equation keeps the program it runs
_VIEWS = ("reshape", "squeeze", "expand_dims", "stop_gradient", "copy")  # the same bytes
_REWRITES = (  # each output element needs the same element of the operands: XLA reuses a buffer
    *("add", "sub", "mul", "div", "max", "min", "neg", "exp", "log", "log1p", "expm1", "tanh"),
    *("erf", "erfc", "erf_inv", "rsqrt", "sqrt", "square", "logistic", "integer_pow", "pow", "abs"),
    *("sign", "floor", "select_n", "convert_element_type", "and", "or", "not", "eq", "lt", "gt"),
    *("le", "ge", "ne", "is_finite", "clamp", "cos", "sin", "add_any"),
)


def inner_programs(equation: Any) -> Iterator[Any]:
    """Yields the programs that an equation runs; of a condition's branches, the first."""
    params = equation.params
    for value in (*(params.get(key) for key in _PROGRAMS), *params.get("branches", ())[:1]):
        if value is not None:
            yield getattr(value, "jaxpr", value)


def peak_bytes(jaxpr: Any, inputs: Sequence[Any], part_of: Callable[[str], str]) -> dict[str, int]:
    """{part: most bytes alive while one of its equations runs}, and "total", the most of all.

    Values are computed in the order of the program and dropped after their last use. What a fusing
    compiler surely does is assumed and no more: pointwise equations write over an operand that
    nobody else wants, reshapes are free, and what is broadcast is not stored. Values that follow
    from anything but `inputs`, such as parameters, are not activations.

    inputs:  those of the program's variables whose values count
    part_of: the part of an equation, from its scope's names joined by "/"
    """
    peaks: Counter[str] = Counter()
    memory = _Memory(peaks, part_of)
    for var in inputs:
        memory.store(var)
    memory.run(jaxpr, "", set(jaxpr.outvars))
    return {**peaks, "total": max(peaks.values(), default=0)}


class _Memory:
    """Buffers by variable. A buffer is a list of one number, its bytes, so that views share it."""

    def __init__(self, peaks: Counter[str], part_of: Callable[[str], str]):
        self.peaks, self.part_of = peaks, part_of
        self.buffers: dict[Any, list[int]] = {}
        self.alive = 0

    def store(self, var: Any, size: int | None = None) -> None:
        size = _bytes(var) if size is None else size
        self.buffers[var] = [size]
        self.alive += size

    def share(self, var: Any, buffer: list[int]) -> None:
        self.buffers[var] = buffer

    def drop(self, var: Any) -> None:
        buffer = self.buffers.pop(var, None)
        if buffer is not None and not any(b is buffer for b in self.buffers.values()):
            self.alive -= buffer[0]

    def note(self, scope: str) -> None:
        part = self.part_of(scope)
        self.peaks[part] = max(self.peaks[part], self.alive)

    def run(self, jaxpr: Any, scope: str, wanted: set[Any]) -> None:
        """Runs a program whose inputs are stored already; `wanted` values stay when it is over."""
        last = {v: i for i, e in enumerate(jaxpr.eqns) for v in e.invars if _is_variable(v)}
        for i, equation in enumerate(jaxpr.eqns):
            inner_scope = f"{scope}/{equation.source_info.name_stack}"
            operands = [v for v in equation.invars if _is_variable(v) and v in self.buffers]
            dying = {v for v in operands if last[v] == i and v not in wanted}
            programs = list(inner_programs(equation))
            if not operands:  # follows from parameters and constants alone
                continue
            if programs:
                self.call(programs[0], equation, inner_scope)
            elif equation.primitive.name in _VIEWS:
                self.share(equation.outvars[0], self.buffers[operands[0]])
            elif equation.primitive.name == "broadcast_in_dim":
                self.share(equation.outvars[0], self.buffers[operands[0]])
            else:
                self.compute(equation, dying)
            self.note(inner_scope)
            for var in dying:
                self.drop(var)
            for var in equation.outvars:
                if var in self.buffers and var not in last and var not in wanted:
                    self.drop(var)

    def compute(self, equation: Any, dying: set[Any]) -> None:
        for out in equation.outvars:
            size = _bytes(out)
            if equation.primitive.name in _REWRITES:
                for var in dying:
                    buffer = self.buffers[var]
                    sole = sum(b is buffer for b in self.buffers.values()) == 1
                    if sole and buffer[0] >= size:
                        self.share(out, buffer)
                        break
                else:
                    self.store(out, size)
            else:
                self.store(out, size)

    def call(self, jaxpr: Any, equation: Any, scope: str) -> None:
        """An equation that runs a program: its variables are new names of the caller's buffers."""
        outer = equation.invars[len(equation.invars) - len(jaxpr.invars) :]
        for inside, outside in zip(jaxpr.invars, outer, strict=True):
            if _is_variable(outside) and outside in self.buffers:
                self.share(inside, self.buffers[outside])
        self.run(jaxpr, scope, {v for v in jaxpr.outvars if _is_variable(v)})
        for inside, outside in zip(jaxpr.outvars, equation.outvars, strict=True):
            if _is_variable(inside) and inside in self.buffers:
                if _bytes(inside) == _bytes(outside):
                    self.share(outside, self.buffers[inside])
                else:  # a loop stacks what its rounds give
                    self.store(outside)
        for var in (*jaxpr.invars, *jaxpr.outvars):
            if _is_variable(var):
                self.drop(var)


def _is_variable(v: Any) -> bool:
    return not isinstance(v, Literal)


def _bytes(v: Any) -> int:
    return math.prod(v.aval.shape) * v.aval.dtype.itemsize
