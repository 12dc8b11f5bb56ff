"""What the paper's initialisation is compared with, short of another idea: two controls.

`paper_fixed` is the paper's with queries, keys and values kept apart and heads kept whole.
`heads_only` copies what keeps its shape in the heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lunar_distill_jax.init.depth import mapped_name
from lunar_distill_jax.init.paper import compress, paper
from lunar_distill_jax.init.planes import channel_sources, logit_scale


@dataclasses.dataclass(frozen=True)
class HeadPair:
    """How many heads of how many channels both decoders have."""

    theirs: int
    their_size: int
    ours: int
    our_size: int

    def query_sources(self) -> np.ndarray:
        """The teacher's channel for each of the student's query channels, -1 for none."""
        return self._all_heads(channel_sources(self.their_size, self.our_size))

    def value_sources(self) -> np.ndarray:
        """The same for value channels, which do not turn."""
        channel = np.arange(self.our_size)
        return self._all_heads(np.where(channel < self.their_size, channel, -1))

    def _all_heads(self, within: np.ndarray) -> np.ndarray:
        head = np.arange(self.ours)[:, None]
        known = (within >= 0) & (head < self.theirs)
        return np.where(known, within + head * self.their_size, -1).reshape(-1)


def heads_only(
    teacher: Mapping[str, np.ndarray], student: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Copies the tensors of the heads that keep their shape: the inside of the dense head.

    -> as `paper`
    """
    how = {
        name: "copied"
        for name, array in student.items()
        if name.startswith("head") and name in teacher and teacher[name].shape == array.shape
    }
    return {**student, **{name: np.array(teacher[name]) for name in how}}, how


def paper_fixed(
    teacher: Mapping[str, np.ndarray],
    student: Mapping[str, np.ndarray],
    blocks: Sequence[int],
    heads: HeadPair,
    compression: str = "svd",
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The paper's, but student head i is made of teacher head i, in each of Q, K and V by itself.

    Arguments, result and errors as of `paper`. Query channels go to the planes of their frequency.
    Channels without a source add nothing at first: their queries and the columns that read their
    values are 0, their keys and values stay fresh.
    """
    attention = [n for n in student if n.startswith("decoder/") and "attn/" in n]
    rest = {n: a for n, a in student.items() if n not in attention}
    out, how = paper(teacher, rest, blocks, compression)
    out = {**student, **out}
    turned, kept = heads.query_sources(), heads.value_sources()
    scale = logit_scale(heads.their_size, heads.our_size)
    parts = {"q": (turned, scale, True), "k": (turned, scale, False), "v": (kept, 1.0, False)}
    for name in attention:
        source, fresh = teacher[mapped_name(name, blocks)], student[name]
        module = name.split("/")[-2]
        if module == "proj":
            out[name] = source[: len(fresh)]
            if fresh.ndim == 2:
                out[name] = _gather(source, kept, fresh.shape[1], compression)
        elif module == "qkv":
            thirds = zip(np.split(source, 3, -1), np.split(fresh, 3, -1), "qkv", strict=True)
            made = [_select(s, f, *parts[which], compression) for s, f, which in thirds]
            out[name] = np.concatenate(made, -1)
        else:
            out[name] = _select(source, fresh, *parts[module], compression)
        how[name] = "compressed" if fresh.ndim == 2 else "cut"
    return out, how


def _select(source, fresh, sources, scale, silent, compression) -> np.ndarray:
    """Columns `sources` of a kernel [in, out] or entries of a bias; others 0 if `silent`."""
    columns = source.T if source.ndim == 2 else source[:, None]
    made = _gather(columns, sources, fresh.shape[0] if fresh.ndim == 2 else 1, compression) * scale
    made = made.T if source.ndim == 2 else made[:, 0]
    if silent:
        return made.astype(np.float32)
    return np.where(sources >= 0, made, fresh if fresh.ndim == 2 else 0).astype(np.float32)


def _gather(matrix: np.ndarray, sources: np.ndarray, columns: int, compression: str) -> np.ndarray:
    """Rows `sources` (-1: zeros) of the truncated matrix, the first `columns` of each."""
    present = np.flatnonzero(sources >= 0)
    chosen = sources[present]
    # The SVD commutes with a permutation of the rows: those wanted go to the corner that is kept.
    order = np.concatenate([chosen, np.setdiff1d(np.arange(len(matrix)), chosen)])
    made = np.zeros((len(sources), columns), np.float32)
    made[present] = compress(matrix[order][None], len(present), columns, compression)[0]
    return made
