"""Means over masked pixels of the whole batch."""

import jax.numpy as jnp


def masked_mean(x, mask):
    """Mean of x over mask (same shape); 0, with zero gradient, where the mask is empty."""
    # `where`, not `x * mask`: masked pixels may hold nan depth, and 0 * nan is nan.
    return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)
