"""How large a network is."""

from __future__ import annotations

from typing import Any

import jax


def count_parameters(params: Any) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
