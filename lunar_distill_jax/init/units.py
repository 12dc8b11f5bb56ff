"""Which hidden units a narrower layer keeps, and how its outputs are read from them."""

from __future__ import annotations

import numpy as np
import scipy.linalg

CANDIDATES = 2048  # units that are looked at closely, or twice as many as are kept if that is more
SKETCH = 768  # columns of a target that are looked at when units are chosen


def candidate_units(score: np.ndarray, count: int) -> np.ndarray:
    """Indices, ascending, of the units that may be kept, by a cheap score: those that write
    anything, at most CANDIDATES or twice `count`, at least `count` if there are so many."""
    order = np.argsort(-score, kind="stable")
    alive = np.count_nonzero(score > 1e-12 * score.max())
    return np.sort(order[: max(min(alive, max(CANDIDATES, 2 * count)), count)])


def select_units(S: np.ndarray, C: np.ndarray, count: int, ridge: float = 1e-4) -> np.ndarray:
    """Indices, ascending, of `count` units from which a target can be read well.

    S: [m, m] covariance of the units, C: [m, s] of the units with the target

    Forward selection: the units that explain most of what is left of the target, |C_j|^2 / S_jj in
    the Schur complement of those chosen; many at a time, and among these one by one. A wide target
    is looked at through a fixed random projection, which keeps the lengths |C_j| to some percent.
    """
    m = len(S)
    if count >= m:
        return np.arange(m)
    S, C = S.astype(np.float32), sketch(C.astype(np.float32))
    floor = ridge * max(float(np.trace(S)) / m, 1e-30)
    left = np.maximum(np.diag(S).copy(), floor)
    gains = np.einsum("js,js->j", C, C)
    chosen = np.zeros(m, bool)
    # Cholesky-like factor of the chosen: S ~ F F^T, and the target's coefficients on it.
    F = np.zeros((m, count), np.float32)
    done = 0
    step = max(1, count // 64)
    while done < count:
        score = np.where(chosen, -1.0, gains / left)
        wanted = min(step, count - done)
        pool = np.argsort(-score, kind="stable")[: 4 * wanted]
        pool = pool[~chosen[pool]]
        inner = S[np.ix_(pool, pool)] - F[pool, :done] @ F[pool, :done].T
        picks = _pivot(inner, C[pool], wanted, floor)
        new = pool[picks]
        block = S[:, new] - F[:, :done] @ F[new, :done].T
        block[new, np.arange(wanted)] += floor
        root = np.linalg.cholesky(_repaired(block[new].astype(np.float64), floor))
        G = np.linalg.solve(root, block.T.astype(np.float64)).T.astype(np.float32)
        F[:, done : done + wanted] = G
        C = C - G @ np.linalg.solve(root, C[new].astype(np.float64)).astype(np.float32)
        left = np.maximum(left - np.einsum("jk,jk->j", G, G), floor)
        gains = np.einsum("js,js->j", C, C)
        chosen[new] = True
        done += wanted
    return np.flatnonzero(chosen)


def sketch(columns: np.ndarray) -> np.ndarray:
    """A matrix [m, s] through a fixed random projection of its columns, if these are many."""
    s = columns.shape[1]
    if s <= 2 * SKETCH:
        return columns
    return columns @ np.random.default_rng(0).normal(size=(s, SKETCH)).astype(columns.dtype)


def _pivot(S: np.ndarray, C: np.ndarray, count: int, floor: float) -> np.ndarray:
    """Forward selection of `count` of a few units, one by one; S, C: their Schur complements."""
    S, C, picks = S.astype(np.float64), C.astype(np.float64), []
    for _ in range(count):
        left = np.maximum(np.diag(S), floor)
        score = np.einsum("js,js->j", C, C) / left
        score[picks] = -1.0
        best = int(np.argmax(score))
        picks.append(best)
        column = S[:, best] / left[best]
        S, C = S - np.outer(column, S[best]), C - np.outer(column, C[best])
    return np.array(picks)


def _repaired(S: np.ndarray, floor: float) -> np.ndarray:
    """S with eigenvalues of `floor` or more: rounding may have left less."""
    S = (S + S.T) / 2
    value, vector = np.linalg.eigh(S)
    if value[0] >= floor / 2:
        return S
    return (vector * np.maximum(value, floor)) @ vector.T


def readout(
    S: np.ndarray, C: np.ndarray, prior: np.ndarray, ridge: float = 1e-4
) -> tuple[np.ndarray, float]:
    """-> (kernel [k, s] that reads the target from the units, condition number of what was solved)

    S: [k, k] covariance of the units, C: [k, s] with the target. Ridge regression of what `prior`
    [k, s] leaves: a prior that is exact stays as it is.
    """
    S = S.astype(np.float64)
    damped = S + ridge * max(np.trace(S) / len(S), 1e-300) * np.eye(len(S))
    rest = C - S @ prior
    try:
        kernel = prior + scipy.linalg.cho_solve(scipy.linalg.cho_factor(damped), rest)
    except np.linalg.LinAlgError:  # an expansion that was cut off may have negative eigenvalues
        kernel = prior + np.linalg.solve(damped, rest)
    # The damping bounds the small end: the ratio of what is there to it.
    norm = float(np.linalg.norm(S, 2)) if len(S) <= 1024 else float(np.abs(S).sum(1).max())
    return kernel, norm / (ridge * max(np.trace(S) / len(S), 1e-300))
