"""Means over masked pixels of the whole batch, whatever the parts it comes in."""

from __future__ import annotations

from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Mean:
    """A sum of k means that are not divided yet: total and count are [k].

    Totals and counts of the parts of a batch (micro-batches, devices) add up to those of the whole,
    so a mean over the global batch does not depend on how it was cut.
    """

    total: Any
    count: Any

    @classmethod
    def over(cls, x, mask) -> Mean:
        """Of x over mask: any shape, the same one of both.

        Raises:
          AssertionError: the shapes differ; broadcast, the mean would be over another count.
        """
        chex.assert_equal_shape([x, mask])
        # `where`, not `x * mask`: masked pixels may hold nan depth, and 0 * nan is nan.
        return cls(jnp.where(mask, x, 0.0).sum()[None], mask.sum()[None])

    @classmethod
    def of(cls, x) -> Mean:
        """Of all of x."""
        return cls(x.sum()[None], jnp.full((1,), x.size, jnp.int32))

    def __add__(self, other: Mean) -> Mean:
        return Mean(
            jnp.concatenate([self.total, other.total]), jnp.concatenate([self.count, other.count])
        )

    def __rmul__(self, factor: float) -> Mean:
        return Mean(factor * self.total, self.count)

    def value(self, count=None):
        """-> []; 0, with zero gradient, where a mask is empty. `count` [k]: of the whole batch."""
        count = self.count if count is None else count
        return jnp.sum(self.total / jnp.maximum(count, 1))


def masked_median(x, mask):
    """Median of x over mask along the last axis, the lower of the two middles; 0 of an empty mask.

    No gradient passes: a median follows one pixel, and jumps.
    """
    ordered = jnp.sort(jnp.where(mask, x, jnp.inf), axis=-1)
    count = mask.sum(-1, keepdims=True)
    middle = jnp.take_along_axis(ordered, jnp.maximum(count - 1, 0) // 2, axis=-1)
    return jax.lax.stop_gradient(jnp.where(count > 0, middle, 0.0)[..., 0])
