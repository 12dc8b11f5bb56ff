"""Values and outputs of several teacher heads in one student head of limited size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lunar_distill_jax.init.tree import Affine


def pool(
    values: Sequence[Affine], outputs: Sequence[np.ndarray], moment: np.ndarray, size: int
) -> tuple[Affine, np.ndarray, np.ndarray, float]:
    """-> (value [s, size], output [size, s], constant [s], share of the energy that is kept)

    values: [s, h] each, of the student's normalised tokens; outputs: [h, s] each
    moment: second moment [s, s] of what the values are read from

    Attention rows sum to 1, so heads that share their attention write sum_a z V_a O_a plus a
    constant. Where the heads fit side by side, that is what is stored; else the map of rank `size`
    that is nearest for tokens of that moment (reduced-rank regression, globally optimal).
    """
    kernel = np.concatenate([v.kernel for v in values], 1)
    output = np.concatenate(outputs, 0)
    constant = np.zeros(output.shape[1])
    if kernel.shape[1] <= size:
        spare = size - kernel.shape[1]
        bias = np.concatenate([v.bias for v in values])
        value = Affine(np.pad(kernel, ((0, 0), (0, spare))), np.pad(bias, (0, spare)))
        return value, np.pad(output, ((0, spare), (0, 0))), constant, 1.0
    for v, o in zip(values, outputs, strict=True):
        constant += v.bias @ o
    reader, writer, share = reduced_rank(kernel @ output, moment, size)
    return Affine(reader, np.zeros(size)), writer, constant, share


def reduced_rank(
    solution: np.ndarray, moment: np.ndarray, rank: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The map [n, s] cut to a rank, for inputs of second moment [n, n], in two balanced factors.

    solution: the unrestricted least-squares map K, x -> x @ K
    -> (reader [n, rank], writer [rank, s], share of the energy of x @ K that is kept)

    The best is K P P^T with P the top eigenvectors of K^T M K (Izenman 1975).
    """
    energy, P = np.linalg.eigh(solution.T @ moment @ solution)
    P = P[:, ::-1][:, :rank]
    energy = np.maximum(energy[::-1], 0)
    reader = solution @ P
    # The factors share the size of the product: gradients reach both alike.
    scale = np.sqrt(np.linalg.norm(reader, axis=0))
    safe = np.where(scale > 0, scale, 1)
    writer = (P * scale).T
    return reader / safe, writer, float(energy[:rank].sum() / max(energy.sum(), 1e-300))
