"""The one basis of the residual stream in which a student of another width reads and writes.

A LayerNorm sees a token x of width d as u = Cx / |Cx|, C = I - 11^T / d. Let U [d, k - 1] and B
[s, k - 1] be orthonormal and orthogonal to ones, and E = B U^T + 1_s 1_d^T / sqrt(s d). Then the
student's token E x has the norm of Cx, if u lies in the span of U, and the student's LayerNorm
gives sqrt(s) B U^T u: a reader A of the teacher's normalised tokens becomes sqrt(d / s) A E^T,
exactly. The last term carries the token's mean, which norms on both sides take away, to what reads
the stream itself: the dense head's middle projections.
"""

from __future__ import annotations

import numpy as np


def centred(second_moment: np.ndarray) -> np.ndarray:
    """C M C: the part of a second moment [d, d] that a norm sees."""
    rows = second_moment - second_moment.mean(0, keepdims=True)
    return rows - rows.mean(1, keepdims=True)


def unit(second_moment: np.ndarray) -> np.ndarray:
    """C M C with trace 1: the second moment of unit tokens u, exact where |Cx| is constant."""
    moment = centred(second_moment)
    return moment / max(np.trace(moment), 1e-300)


def principal_directions(moment: np.ndarray) -> np.ndarray:
    """Orthonormal [d, d - 1], orthogonal to ones, by falling weight in C M C (Ky Fan: its first k
    columns keep more of `moment` than any other k)."""
    d = len(moment)
    # With ones far above all else the other eigenvectors are orthogonal to it, also in null spaces.
    shifted = centred(moment) + np.full((d, d), 2 * np.trace(moment) / d + 1)
    return np.linalg.eigh((shifted + shifted.T) / 2)[1][:, -2::-1]


def encoding(directions: np.ndarray, width: int) -> np.ndarray:
    """E [s, d] for a student of `width` s, from `principal_directions` [d, d - 1].

    B, whose choice no function of the student depends on, is the one that brings E nearest to
    cutting channels off: at s = d the student's tensors are the teacher's.
    """
    d = len(directions)
    kept = directions[:, : min(width, d) - 1]
    frame = _centred_frame(width)
    wish = frame[: min(width, d)].T @ kept[:width]
    left, _, right = np.linalg.svd(wish, full_matrices=False)
    return frame @ (left @ right) @ kept.T + 1 / np.sqrt(width * d)


def _centred_frame(size: int) -> np.ndarray:
    """Orthonormal [size, size - 1], orthogonal to ones (Helmert's)."""
    i = np.arange(1, size)
    frame = np.triu(np.ones((size, size - 1))) / np.sqrt(i * (i + 1))
    frame[i, i - 1] = -i / np.sqrt(i * (i + 1))
    return frame


def retained(moment: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Share of a second moment that the first 0, 1, ..., d - 1 directions keep: [d]."""
    energy = np.einsum("ik,ij,jk->k", directions, moment, directions, optimize=True)
    total = max(np.trace(centred(moment)), 1e-300)
    return np.concatenate([[0.0], np.cumsum(energy) / total])
