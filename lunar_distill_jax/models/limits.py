"""What a config may hold: known keys, and numbers that a network can be built of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lunar_distill_jax.errors import InputError

MAX_SIZE, MAX_DEPTH = 2**20, 256  # a damaged file must not ask for terabytes or hours


def require_numbers(name: str, sizes: Mapping[str, Any], ratios: Mapping[str, Any]) -> None:
    """sizes are positive integers, those called depth small ones; ratios are positive numbers.

    Raises:
      InputError: some are not; `name` says whose they are.
    """
    problems = [
        f"{key} is {v!r}, expected an integer from 1 to {limit}"
        for key, v in sizes.items()
        for limit in [MAX_DEPTH if key.endswith("depth") else MAX_SIZE]
        if type(v) is not int or not 1 <= v <= limit
    ]
    problems += [
        f"{key} is {v!r}, expected a number above 0, at most {MAX_SIZE}"
        for key, v in ratios.items()
        if type(v) not in (int, float) or not 0 < v <= MAX_SIZE
    ]
    if problems:
        raise InputError(f"{name}: {'; '.join(problems)}.")


def build_dataclass(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """cls(**values), its lists (of JSON) as tuples.

    Raises:
      InputError: a key that no field has; `where` says in which part it is.
    """
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(
            f"Unknown key {', '.join(unknown)} in {where}: it has {', '.join(sorted(known))}."
        )
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
