"""How alike the teacher's attention maps are, and how much each head writes."""

from __future__ import annotations

import numpy as np

QUERIES = 24  # of each image, evenly spaced


class MapDistances:
    """Mean Jensen-Shannon distance between heads' attention maps, and each head's energy."""

    def __init__(self, outputs: list[np.ndarray]):
        """outputs: [h, s] of each head, in the student's coordinates."""
        self._outputs = outputs
        n, size = len(outputs), outputs[0].shape[0]
        self._sum, self._rows = np.zeros((n, n)), 0
        self._count, self._mean, self._second = 0, np.zeros((n, size)), np.zeros((n, size, size))

    def add_maps(self, weights: np.ndarray) -> None:
        """weights: [B, heads, N, M], all heads of all blocks in the order of `outputs`."""
        step = max(1, weights.shape[2] // QUERIES)
        p = np.ascontiguousarray(weights[:, :, ::step], np.float32)
        own = _entropy(p)
        for i in range(p.shape[1]):
            both = _entropy((p[:, i : i + 1] + p[:, i + 1 :]) / 2)
            js = (both - (own[:, i : i + 1] + own[:, i + 1 :]) / 2).sum((0, 2))
            self._sum[i, i + 1 :] += js
            self._sum[i + 1 :, i] += js
        self._rows += p.shape[0] * p.shape[2]

    def add_context(self, context: np.ndarray) -> None:
        """context: [B, heads, N, h], of the same heads."""
        c = np.moveaxis(context, 1, 0).reshape(context.shape[1], -1, context.shape[3])
        self._count += c.shape[1]
        self._mean += c.sum(1)
        self._second += np.einsum("htk,htl->hkl", c, c, optimize=True)

    @property
    def distance(self) -> np.ndarray:
        """[n, n], in [0, log 2]"""
        return np.maximum(self._sum / max(self._rows, 1), 0)

    @property
    def energy(self) -> np.ndarray:
        """[n] variance of what each head adds to the student's stream."""
        mean = self._mean / self._count
        cov = self._second / self._count - mean[:, :, None] * mean[:, None]
        return np.array([np.sum((o @ o.T) * c) for o, c in zip(self._outputs, cov, strict=True)])


def _entropy(p: np.ndarray) -> np.ndarray:
    return -np.sum(p * np.log(np.maximum(p, 1e-30)), -1)
