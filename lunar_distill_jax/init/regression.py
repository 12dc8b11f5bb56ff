"""Linear maps between the activations of two networks, from sums that fit in memory."""

from __future__ import annotations

import dataclasses

import numpy as np

from lunar_distill_jax.init.tree import Affine

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the mean variance of an input
FEW_RIDGES = (1e-4, 1e-2, 1.0)  # of large inputs: each costs a factorisation
LARGE = 1500  # inputs: beyond, FEW_RIDGES are tried and sums are kept in float32
ALLOWED = 0.2  # error on what is held out beyond the best one's, given up for a smaller map


@dataclasses.dataclass(frozen=True)
class Fit:
    """layer: the map; r2: share of the target's variance that it explains on pairs that it was not
    fitted to; ridge: that was chosen there; condition: number of what was solved"""

    layer: Affine
    r2: float
    ridge: float
    condition: float

    def notes(self) -> dict[str, float]:
        return {"r2": self.r2, "ridge": self.ridge, "condition": self.condition}


@dataclasses.dataclass(frozen=True)
class Centred:
    """means of input [n] and target [m], covariances S [n, n], C [n, m], the target's variance."""

    mean_in: np.ndarray
    mean_out: np.ndarray
    S: np.ndarray
    C: np.ndarray
    variance: float


class Pairs:
    """Sums over tokens of an input [T, n] and a target [T, m], of two sets of pairs of images:
    those fitted to and those held out."""

    def __init__(self, inputs: int, outputs: int):
        self._type = np.float64 if inputs <= LARGE else np.float32
        self._sums = [self._zero(inputs, outputs) for _ in range(2)]

    def _zero(self, n: int, m: int) -> list:
        return [
            0,
            np.zeros(n),
            np.zeros(m),
            *(np.zeros(s, self._type) for s in ((n, n), (n, m))),
            0.0,
        ]

    def add(self, x, y, held: bool) -> None:
        """x: [..., n] and y: [..., m] of the same tokens, of numpy or jax."""
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        if isinstance(x, np.ndarray):
            x, y = x.astype(self._type), y.astype(self._type)
        sums = self._sums[held]
        sums[0] += x.shape[0]
        sums[1] += np.asarray(x.sum(0), np.float64)
        sums[2] += np.asarray(y.sum(0), np.float64)
        sums[3] += np.asarray(x.T @ x)
        sums[4] += np.asarray(x.T @ y)
        sums[5] += float((y * y).sum())

    def centred(self, held: bool = False) -> Centred:
        count, x, y, xx, xy, yy = self._sums[held]
        mean_in, mean_out = x / count, y / count
        S, C = xx / count - np.outer(mean_in, mean_in), xy / count - np.outer(mean_in, mean_out)
        return Centred(mean_in, mean_out, S, C, max(yy / count - float(mean_out @ mean_out), 0.0))

    def take(self, chosen: np.ndarray) -> Pairs:
        """Of some of the inputs."""
        out = Pairs(0, 0)
        for mine, (count, x, y, xx, xy, yy) in zip(out._sums, self._sums, strict=True):
            mine[:] = [count, x[chosen], y, xx[np.ix_(chosen, chosen)], xy[chosen], yy]
        return out

    @property
    def has_held(self) -> bool:
        return self._sums[1][0] > 0

    def fit(self, prior: Affine | None = None) -> Fit:
        """Ridge regression of the target on the input, shrunk towards `prior`.

        The ridge is the largest whose error on what was held out is within ALLOWED of the best:
        an optimizer that moves every parameter alike, whatever its size, soon spoils a map that
        leans on small differences of large numbers. The prior itself counts as the largest ridge.
        """
        fitted = self.centred()
        held = self.centred(True) if self.has_held else fitted
        start = np.zeros_like(fitted.C) if prior is None else prior.kernel
        rest = fitted.C - fitted.S @ start
        unit = max(float(np.trace(fitted.S)) / len(fitted.S), 1e-300)
        solve, top = _solver(fitted.S)
        tried = []
        for ridge in RIDGES if len(fitted.S) <= LARGE else FEW_RIDGES:
            kernel = start + solve(ridge * unit, rest)
            layer = Affine(kernel, fitted.mean_out - fitted.mean_in @ kernel)
            tried.append((unexplained(layer, held), ridge, layer))
        if prior is not None:
            tried.append((unexplained(prior, held), np.inf, prior))
        enough = (1 + ALLOWED) * min(error for error, *_ in tried)
        error, ridge, layer = next(t for t in reversed(tried) if t[0] <= enough)
        condition = top / (ridge * unit) if np.isfinite(ridge) else 1.0
        return Fit(layer, 1 - error / max(held.variance, 1e-300), ridge, condition)


def unexplained(layer: Affine, on: Centred) -> float:
    """Mean squared error of a map, summed over outputs."""
    K, shift = layer.kernel, on.mean_out - on.mean_in @ layer.kernel - layer.bias
    spread = on.variance - 2 * np.sum(K * on.C) + np.sum(K * (on.S @ K))
    return max(float(spread + shift @ shift), 0.0)


def _solver(S: np.ndarray):
    """-> (function (ridge, R) -> (S + ridge I)^-1 R, largest eigenvalue of S or a bound of it)"""
    if len(S) <= LARGE:
        values, vectors = np.linalg.eigh(S)
        values = np.maximum(values, 0)

        def solve(ridge, R):
            return vectors @ ((vectors.T @ R) / (values + ridge)[:, None])

        return solve, float(values[-1])

    def solve_large(ridge, R):
        return np.linalg.solve(S + ridge * np.eye(len(S), dtype=S.dtype), R)

    return solve_large, float(np.abs(S).sum(1).max())
