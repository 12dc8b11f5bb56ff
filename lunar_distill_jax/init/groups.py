"""Which teacher heads one student head stands for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def k_medoids(distance: np.ndarray, weight: np.ndarray, count: int) -> list[list[int]]:
    """Groups of indices, each led by its medoid, that lower sum_i weight_i min_m distance_im.

    distance: [n, n], weight: [n]; -> min(count, n) groups, by falling weight. Built greedily, then
    medoids are swapped with others as long as it helps (Kaufman & Rousseeuw's PAM): deterministic,
    and a relabelling of the n changes no more than the labels, short of ties.
    """
    n = len(distance)
    cost = weight[:, None] * distance
    medoids: list[int] = []
    nearest = np.full(n, np.inf)
    while len(medoids) < min(count, n):
        # The first medoid has no cost to lower yet.
        before = nearest if medoids else cost.max(1)
        gains = np.maximum(before[:, None] - cost, 0).sum(0)
        gains[medoids] = -1.0
        # Where nothing is left to gain, the heaviest of the others.
        best = gains >= gains.max() * (1 - 1e-12) - 1e-300
        medoids.append(int(np.argmax(np.where(best, weight, -1.0))))
        nearest = np.minimum(nearest, cost[:, medoids[-1]])
    total = nearest.sum()
    improved = True
    while improved:
        improved = False
        for slot in range(len(medoids)):
            others = medoids[:slot] + medoids[slot + 1 :]
            rest = cost[:, others].min(1) if others else np.full(n, np.inf)
            totals = np.minimum(rest[:, None], cost).sum(0)
            totals[others] = np.inf
            best = int(np.argmin(totals))
            if totals[best] < total * (1 - 1e-9):
                medoids[slot], total, improved = best, totals[best], True
    owner = np.argmin(distance[:, medoids], 1)
    owner[medoids] = np.arange(len(medoids))
    groups = [
        [m, *(i for i in range(n) if owner[i] == g and i != m)] for g, m in enumerate(medoids)
    ]
    return sorted(groups, key=lambda group: -weight[group].sum())


def overlap_distance(gram: np.ndarray) -> np.ndarray:
    """1 - cos^2 between maps of Gram matrix [n, n]: what a scaled copy of one leaves of another."""
    norm = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    return np.clip(1 - (gram / np.outer(norm, norm)) ** 2, 0, 1)


def map_gram(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
    """tr(K_a^T K_b) of K_a = right_a @ left_a: [n, n]; right_a: [d, h], left_a: [h, s]."""
    sizes = np.cumsum([0, *(a.shape[0] for a in left)])[:-1]
    L, R = np.concatenate(left), np.concatenate(right, 1)
    blocks = (L @ L.T) * (R.T @ R)
    return np.add.reduceat(np.add.reduceat(blocks, sizes, 0), sizes, 1)
