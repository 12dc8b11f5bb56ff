"""Pixel matches from descriptors by fast reciprocal nearest neighbours.

Leroy, Cabon, Revaud, "Grounding Image Matching in 3D with MASt3R" (ECCV 2024), section 3.3: seeds
on a grid walk to their nearest neighbour in the other image and back until they stay where they
are. The fixed points are mutual nearest neighbours, found without comparing all pixels with all.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Nearest = Callable[[np.ndarray, np.ndarray], np.ndarray]

ROUNDS = 10  # walks that are longer are given up; on trained descriptors nearly all end in three
BLOCK = 1 << 24  # similarities held at once


def nearest_dot(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Index of the key [M, K] with the largest dot product with each query [N, K]: int [N]."""
    step = max(1, BLOCK // len(keys))
    found = [(queries[i : i + step] @ keys.T).argmax(1) for i in range(0, len(queries), step)]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def nearest_dot_on_device(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """`nearest_dot` by the default JAX device, in blocks of one size: one program for all calls."""
    on_device = jnp.asarray(keys)
    block = max(16, BLOCK // len(keys))
    found = []
    for i in range(0, len(queries), block):
        part = queries[i : i + block]
        padded = np.pad(part, ((0, block - len(part)), (0, 0)))
        found.append(np.asarray(_argmax_dot(padded, on_device))[: len(part)])
    return np.concatenate(found) if found else np.zeros(0, np.int64)


@jax.jit
def _argmax_dot(queries, keys):
    return jnp.argmax(jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST), axis=1)


def grid_pixels(height: int, width: int, step: int) -> np.ndarray:
    """Pixels (x, y) of a regular grid, the first `step // 2` from the corner: int [N, 2]."""
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    return np.stack([x.ravel(), y.ravel()], 1)


def reciprocal_matches(
    desc1: np.ndarray,
    desc2: np.ndarray,
    step: int = 8,
    *,
    both_ways: bool = False,
    nearest: Nearest = nearest_dot,
) -> tuple[np.ndarray, np.ndarray]:
    """Mutual nearest neighbours that a grid of seeds walks to.

    Args:
      desc1: [H1, W1, K], of unit norm
      desc2: [H2, W2, K]
      step: pixels between seeds, in view 1
      both_ways: also seed view 2, and return the union
      nearest: (queries [N, K], keys [M, K]) -> int [N]

    Returns:
      pixels1, pixels2: int [N, 2] (x, y), each pair once, in the order of view 1's pixels.
    """
    flat1, flat2 = (d.reshape(-1, d.shape[-1]) for d in (desc1, desc2))
    (h1, w1), (h2, w2) = desc1.shape[:2], desc2.shape[:2]
    pairs = _fixed_points(_flat(grid_pixels(h1, w1, step), w1), flat1, flat2, nearest)
    if both_ways:
        back = _fixed_points(_flat(grid_pixels(h2, w2, step), w2), flat2, flat1, nearest)
        pairs = np.concatenate([pairs, back[:, ::-1]])
    pairs = np.unique(pairs, axis=0)
    return _xy(pairs[:, 0], w1), _xy(pairs[:, 1], w2)


def tolerant_matches(
    desc1: np.ndarray,
    desc2: np.ndarray,
    pixels1: np.ndarray,
    tolerance: float,
    nearest: Nearest = nearest_dot,
) -> tuple[np.ndarray, np.ndarray]:
    """The best match of each given pixel, kept if its own best match is near that pixel.

    pixels1: int [N, 2] (x, y); tolerance: pixels -> pixels1, pixels2: int [M, 2], M <= N
    """
    flat1, flat2 = (d.reshape(-1, d.shape[-1]) for d in (desc1, desc2))
    there = nearest(flat1[_flat(pixels1, desc1.shape[1])], flat2)
    back = _xy(nearest(flat2[there], flat1), desc1.shape[1])
    kept = np.linalg.norm(back - pixels1, axis=1) <= tolerance
    return pixels1[kept], _xy(there, desc2.shape[1])[kept]


def match_confidence(
    conf1: np.ndarray, conf2: np.ndarray, pixels1: np.ndarray, pixels2: np.ndarray
) -> np.ndarray:
    """The smaller of both pixels' descriptor confidences: [N]. conf: [H, W]; pixels: [N, 2]."""
    return np.minimum(conf1[pixels1[:, 1], pixels1[:, 0]], conf2[pixels2[:, 1], pixels2[:, 0]])


def _fixed_points(
    start: np.ndarray, desc1: np.ndarray, desc2: np.ndarray, nearest: Nearest
) -> np.ndarray:
    """int [N, 2] indices of mutual neighbours; seeds that end nowhere are left out."""
    here, there = start.copy(), np.zeros_like(start)
    walking = np.arange(len(start))
    for _ in range(ROUNDS):
        there[walking] = nearest(desc1[here[walking]], desc2)
        back = nearest(desc2[there[walking]], desc1)
        moved = back != here[walking]
        here[walking] = back
        walking = walking[moved]
        if not len(walking):
            break
    ended = np.ones(len(start), bool)
    ended[walking] = False
    return np.stack([here, there], 1)[ended]


def _flat(pixels: np.ndarray, width: int) -> np.ndarray:
    return pixels[:, 1].astype(np.int64) * width + pixels[:, 0]


def _xy(index: np.ndarray, width: int) -> np.ndarray:
    return np.stack([index % width, index // width], 1)
