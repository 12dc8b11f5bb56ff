"""Evaluation on several hosts: each scores its share of the pairs, then all know all rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


def own_share(items: Sequence[T]) -> Sequence[T]:
    """Every n-th item from this host's number on, n the number of hosts."""
    return items[jax.process_index() :: jax.process_count()]


def gather(texts: Sequence[str]) -> list[str]:
    """The texts of all hosts, host by host. Every host must call it, with any number of them."""
    if jax.process_count() == 1:
        return list(texts)
    data = np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    parts = multihost_utils.process_allgather(padded)
    return [
        text
        for part, size in zip(parts, sizes, strict=True)
        for text in json.loads(part[:size].tobytes().decode())
    ]
