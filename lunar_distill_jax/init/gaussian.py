"""What GELU units do with Gaussian input, without samples.

For jointly Gaussian pre-activations p_i = m_i + s_i x_i, E[f(p_i) f(p_j)] = sum_k c_ik c_jk r_ij^k
with r the correlation and c_ik = E[f(m_i + s_i x) He_k(x)] / sqrt(k!) (Mehler's formula).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import scipy.special

ORDER = 8  # of the expansion; what is left of each unit's variance stays its own
LARGE = 2048
ROWS = 64  # of a covariance at a time: what they need stays in the cache
_NODES = 48


@dataclasses.dataclass(frozen=True)
class Units:
    """GELU units of Gaussian tokens z ~ N(mean, cov).

    readers: [d, m] what each unit reads of z - mean, deviation: [m] of its pre-activation,
    coefficients: [m, ORDER + 1], variance: [m] of its value; coefficient 0 is the mean value
    """

    readers: np.ndarray
    deviation: np.ndarray
    coefficients: np.ndarray
    variance: np.ndarray

    def take(self, chosen: np.ndarray) -> Units:
        return Units(
            self.readers[:, chosen],
            self.deviation[chosen],
            self.coefficients[chosen],
            self.variance[chosen],
        )

    @property
    def mean(self) -> np.ndarray:
        return self.coefficients[:, 0]


def gelu_units(kernel: np.ndarray, bias: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> Units:
    """Units gelu(z @ kernel + bias) for z ~ N(mean, cov); kernel: [d, m]."""
    deviation = np.sqrt(np.maximum(np.einsum("im,im->m", kernel, cov @ kernel), 1e-24))
    nodes, weights = _quadrature()
    values = gelu((mean @ kernel + bias)[:, None] + deviation[:, None] * nodes)
    coefficients = values * weights @ _polynomials()
    second = (values**2) @ weights
    return Units(kernel, deviation, coefficients, np.maximum(second - coefficients[:, 0] ** 2, 0))


def covariance(a: Units, b: Units, cov: np.ndarray, same: bool = False) -> np.ndarray:
    """Covariance [m_a, m_b] of the units' values; `same`: a is b, and its diagonal is exact.

    float64, but float32 from LARGE units on.
    """
    dtype = np.float64 if max(len(a.mean), len(b.mean)) < LARGE else np.float32
    r = (a.readers / a.deviation).T.astype(dtype) @ (cov @ (b.readers / b.deviation)).astype(dtype)
    np.clip(r, -1, 1, out=r)
    ca, cb = a.coefficients.astype(dtype), b.coefficients.T.astype(dtype)
    for start in range(0, len(r), ROWS):
        rows = slice(start, start + ROWS)
        # Horner's scheme, from the highest power of r down.
        total = np.zeros_like(r[rows])
        for k in range(ORDER, 0, -1):
            total += ca[rows, k, None] * cb[k]
            total *= r[rows]
        r[rows] = total
    if same:
        np.fill_diagonal(r, a.variance)
    return r


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact GELU."""
    return x * scipy.special.ndtr(x)


@functools.lru_cache(maxsize=1)
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return nodes, weights / weights.sum()


@functools.lru_cache(maxsize=1)
def _polynomials() -> np.ndarray:
    """He_k(node) / sqrt(k!): [_NODES, ORDER + 1], orthonormal under the weights."""
    table = np.polynomial.hermite_e.hermevander(_quadrature()[0], ORDER)
    return table / np.sqrt([math.factorial(k) for k in range(ORDER + 1)])
