"""Rotary planes of heads of different sizes.

A head of h channels turns h / 4 planes with y and as many with x, plane i at the frequency
base^(-4 i / h). What commutes with all rotations acts on each plane by itself, so queries and keys
can be moved between head sizes only plane by plane, to planes of the same frequency.
"""

from __future__ import annotations

import numpy as np


def plane_sources(theirs: int, ours: int) -> np.ndarray:
    """The teacher's plane for each of the student's, -1 for none: int [ours / 4].

    theirs, ours: head sizes. Where one divides the other the frequencies of the smaller head are
    among those of the larger: 64 -> 128 fills every second plane, 64 -> 32 keeps every second one.
    For other ratios each plane of the smaller head is paired with the nearest free frequency of the
    larger, the closest pairs first.
    """
    a, b = (np.arange(h // 4) / (h // 4) for h in (theirs, ours))
    distance = np.abs(a[:, None] - b[None])
    sources = np.full(len(b), -1)
    for _ in range(min(len(a), len(b))):
        i, j = np.unravel_index(np.argmin(distance), distance.shape)
        sources[j] = i
        distance[i], distance[:, j] = np.inf, np.inf
    return sources


def channel_sources(theirs: int, ours: int) -> np.ndarray:
    """The teacher's channel within a head for each of the student's, -1 for none: int [ours]."""
    planes = plane_sources(theirs, ours)
    # Quarters are [y, y, x, x]; a plane is a pair (k, k + h / 4).
    return np.concatenate(
        [np.where(planes >= 0, planes + quarter * (theirs // 4), -1) for quarter in range(4)]
    )


def logit_scale(theirs: int, ours: int) -> float:
    """Factor of both query and key that makes up for the other 1 / sqrt(head size) of the logit."""
    return (ours / theirs) ** 0.25


def take(array: np.ndarray, sources: np.ndarray, axis: int = -1) -> np.ndarray:
    """Entries `sources` of `array` along `axis`, zeros where the source is -1."""
    taken = np.take(array, np.maximum(sources, 0), axis)
    keep = np.moveaxis(np.broadcast_to(sources >= 0, np.moveaxis(taken, axis, -1).shape), -1, axis)
    return np.where(keep, taken, 0)
