"""The paper's initialisation, as its public code does it.

Of each teacher matrix the truncated SVD's top-left corner is kept, which is the best approximation
of nothing that has the student's shape; see docs/initialisation.md. It is here to be compared with.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.init.depth import mapped_name

COMPRESSIONS = ("svd", "direct_truncation")
# Our axes in torch's order [out, in, height, width], whose corner is cut; `Unpatch` has [in, out,
# height, width] there.
_AXES = {2: (1, 0), 3: (0, 1, 2), 4: (3, 2, 0, 1)}
_UNPATCH_AXES = (2, 3, 0, 1)
_UNPATCH = re.compile(r"head[12]/dpt/resize[01]/kernel")


def compress(matrices: np.ndarray, rows: int, columns: int, compression: str = "svd") -> np.ndarray:
    """The top-left corner of truncated matrices.

    matrices: float32 [batch, o, i] -> float32 [batch, rows, columns]: with W = U S V^T and
    r = min(rows, columns), `svd` gives U[:rows, :r] S[:r] V[:columns, :r]^T and
    `direct_truncation` W[:rows, :columns].

    A truncated matrix is a projection, W V_r V_r^T, so on the host the eigenvectors of the smaller
    of W^T W and W W^T suffice. In float64 their squares still hold what float32 can show.
    Accelerators, which have no float64, take the SVD itself.
    """
    corner = matrices[:, :rows, :columns]
    rank = min(rows, columns)
    if compression == "direct_truncation" or rank >= min(matrices.shape[1:]):
        return np.array(corner)
    if jax.default_backend() != "cpu":
        return np.asarray(_compress_on_device(matrices, rows, columns))
    wide = matrices.shape[2] > matrices.shape[1]
    W = (matrices.swapaxes(1, 2) if wide else matrices).astype(np.float64)
    V = np.linalg.eigh(W.swapaxes(1, 2) @ W)[1][:, :, -rank:]
    kept = (columns, rows) if wide else (rows, columns)
    out = (W[:, : kept[0]] @ V) @ V[:, : kept[1]].swapaxes(1, 2)
    return (out.swapaxes(1, 2) if wide else out).astype(np.float32)


def _compress_on_device(matrices, rows: int, columns: int):
    rank = min(rows, columns)

    @jax.jit
    def run(W):
        u, s, vt = jnp.linalg.svd(W, full_matrices=False)
        left = u[:, :rows, :rank] * s[:, None, :rank]
        return jnp.matmul(left, vt[:, :rank, :columns], precision="highest")

    return run(jnp.asarray(matrices, jnp.float32))


def as_matrix(name: str, array: np.ndarray) -> np.ndarray:
    """A tensor as the reference flattens it: torch's first axis by all others."""
    axes = _UNPATCH_AXES if _UNPATCH.fullmatch(name) else _AXES[array.ndim]
    turned = array.transpose(axes)
    return turned.reshape(turned.shape[0], -1)


def from_matrix(name: str, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Inverse of `as_matrix` for a tensor of `shape`."""
    axes = _UNPATCH_AXES if _UNPATCH.fullmatch(name) else _AXES[len(shape)]
    return matrix.reshape([shape[i] for i in axes]).transpose(np.argsort(axes))


def paper(
    teacher: Mapping[str, np.ndarray],
    student: Mapping[str, np.ndarray],
    blocks: Sequence[int],
    compression: str = "svd",
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """-> (the student's tensors, {name: "copied" | "compressed" | "cut"} of those initialised)

    teacher, student: {name: array}; of the student's, those that are not initialised stay
    blocks: the teacher's decoder block for each of the student's

    Everything but the encoder is initialised: equal shapes are copied, vectors cut, all else
    flattened to a matrix and compressed. A vector longer than the teacher's stays.

    Raises:
      InputError: an unknown compression, or a matrix larger than the teacher's, whose corner the
        reference cuts too small and then fails to load.
    """
    if compression not in COMPRESSIONS:
        raise InputError(
            f"There is no compression {compression!r}: choose from {', '.join(COMPRESSIONS)}."
        )
    out, how = dict(student), {}
    batches: dict[tuple, list[tuple[str, np.ndarray]]] = defaultdict(list)
    for name, array in student.items():
        source = teacher.get(mapped_name(name, blocks))
        if name.startswith("encoder/") or source is None:
            continue
        if source.shape == array.shape:
            out[name], how[name] = np.array(source), "copied"
        elif array.ndim == 1:
            if len(array) <= len(source):
                out[name], how[name] = np.array(source[: len(array)]), "cut"
        else:
            matrix, target = as_matrix(name, source), as_matrix(name, array).shape
            if target[0] > matrix.shape[0] or target[1] > matrix.shape[1]:
                raise InputError(
                    f"{name} is {target[0]} x {target[1]} as a matrix and the teacher's only "
                    f"{matrix.shape[0]} x {matrix.shape[1]}: the paper's method cuts, it cannot "
                    "grow; take a smaller student, or the method structured."
                )
            batches[matrix.shape, target].append((name, matrix))
    for (_, target), members in batches.items():
        # One at a time where they are large: a batch is held in float64.
        size = max(1, int(2e7) // members[0][1].size)
        for start in range(0, len(members), size):
            part = members[start : start + size]
            corners = compress(np.stack([m for _, m in part]), target[0], target[1], compression)
            for (name, _), corner in zip(part, corners, strict=True):
                out[name] = from_matrix(name, corner, student[name].shape)
                how[name] = "compressed"
    return out, how
