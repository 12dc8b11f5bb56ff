"""Matching of local features between the views (InfoNCE, Leroy et al. 2024, eq. 10)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lunar_distill_jax.losses.reduce import masked_mean


def gather_pixels(maps, pixels):
    """maps [B, H, W, K] at pixels [B, M, 2] (x, y) -> [B, M, K]"""
    flat = maps.reshape(maps.shape[0], -1, maps.shape[-1])
    index = pixels[..., 1] * maps.shape[2] + pixels[..., 0]
    return jnp.take_along_axis(flat, index[..., None], axis=1)


def info_nce(desc1, desc2, pixels1, pixels2, valid, *, temperature: float = 0.05):
    """Each descriptor must find its partner among all M of the other view, in both directions.

    desc1, desc2: [B, H, W, K] of unit norm; pixels1, pixels2: int [B, M, 2] (x, y);
    valid: bool [B, M]. Invalid entries are negatives of the others. Mean over the valid entries of
    the batch.
    """
    a, b = gather_pixels(desc1, pixels1), gather_pixels(desc2, pixels2)
    similarity = jnp.einsum("bmk,bnk->bmn", a, b) / temperature
    own = jnp.diagonal(similarity, axis1=1, axis2=2)
    rows = jax.nn.logsumexp(similarity, 2) - own
    columns = jax.nn.logsumexp(similarity, 1) - own
    return masked_mean(rows + columns, valid)
