"""Correspondences without ground truth: pixels whose descriptors choose each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lunar_distill_jax.losses.matching import pixels_of


def nearest(query, desc, *, block: int = 16384):
    """Index of the most similar row of `desc` for each row of `query`.

    query: [M, K], desc: [P, K] -> int32 [M]; at most `block` rows of desc are compared at a time
    """
    p = desc.shape[0]
    block = min(block, p)
    blocks = jnp.pad(desc, ((0, -p % block), (0, 0))).reshape(-1, block, desc.shape[1])
    firsts = jnp.arange(len(blocks), dtype=jnp.int32) * block

    def body(best, rows):
        value, index = best
        desc, first = rows
        s = jnp.where(first + jnp.arange(block) < p, query @ desc.T, -jnp.inf)
        own = jnp.max(s, axis=1)
        better = own > value
        return (
            jnp.where(better, own, value),
            jnp.where(better, first + jnp.argmax(s, axis=1).astype(jnp.int32), index),
        ), None

    start = (jnp.full(len(query), -jnp.inf, query.dtype), jnp.zeros(len(query), jnp.int32))
    return jax.lax.scan(body, start, (blocks, firsts))[0][1]


def reciprocal_matches(desc1, desc2, key, count: int):
    """Looks for `count` matches from random pixels of view 1 on.

    desc1, desc2: [B, H, W, K] of unit norm -> pixels1, pixels2: int32 [B, count, 2] (x, y),
    valid: bool [B, count]

    A start goes to its nearest in view 2 and from there back to view 1; that pair is valid if each
    is the other's nearest (fast reciprocal matching with one iteration, Leroy et al. 2024, 3.3) and
    no earlier start found it. The other entries are a start and a random pixel of view 2.
    """
    height, width = desc1.shape[1:3]
    key1, key2 = jax.random.split(key)
    # The same draws for every sample, so that they do not depend on how the batch is cut.
    start = jax.random.randint(key1, (count,), 0, height * width)
    other = jax.random.randint(key2, (count,), 0, desc2.shape[1] * desc2.shape[2])

    def one(desc1, desc2):
        flat1, flat2 = (d.reshape(-1, d.shape[-1]) for d in (desc1, desc2))
        two = nearest(flat1[start], flat2)
        one = nearest(flat2[two], flat1)
        valid = nearest(flat1[one], flat2) == two
        # Of starts that came back to one pixel those that are no match do not count as earlier.
        order = jnp.lexsort((~valid, one))
        again = jnp.concatenate([jnp.zeros(1, bool), one[order][1:] == one[order][:-1]])
        valid &= ~jnp.zeros(count, bool).at[order].set(again)
        one, two = jnp.where(valid, one, start), jnp.where(valid, two, other)
        return pixels_of(one, width), pixels_of(two, desc2.shape[1]), valid

    return jax.vmap(one)(desc1, desc2)
