"""The inside of the dense head with fewer channels: the same ones on both sides of every tensor.

Its nets are convolutions, ReLUs and sums, so a channel can be kept or dropped but not mixed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from lunar_distill_jax.init.planes import take
from lunar_distill_jax.init.tree import Flat

# tensor -> (channels it reads, channels it writes); "" where these are not the head's own.
# P: re-assembled tokens, R: the same resized, F: of one pyramid level, U: inside a residual unit.
_TABLE = (
    (r"project(?P<i>\d)", "", "P{i}"),
    (r"resize(?P<i>\d)", "P{i}", "R{i}"),
    (r"layer2", "P2", "F2"),  # level 2 keeps its size: nothing resizes it
    (r"layer(?P<i>\d)", "R{i}", "F{i}"),
    (r"skip(?P<i>\d)", "", "F{i}"),
    (r"fusion(?P<i>\d)/unit(?P<u>\d)/conv1", "F{i}", "U{i}{u}"),
    (r"fusion(?P<i>\d)/unit(?P<u>\d)/conv2", "U{i}{u}", "F{i}"),
    (r"fusion0/out", "F0", "G"),
    (r"fusion1/out", "F1", "F0"),
    (r"fusion2/out", "F2", "F1"),
    (r"fusion3/out", "F3", "F2"),
    (r"head0", "G", "H0"),
    (r"head1", "H0", "H1"),
    (r"norm", "", "H1"),
    (r"head2", "H1", ""),
)


def channel_groups(module: str) -> tuple[str, str]:
    """-> (group that a module of the dense head reads, group that it writes), "" for neither."""
    for pattern, reads, writes in _TABLE:
        if match := re.fullmatch(pattern, module):
            return reads.format(**match.groupdict()), writes.format(**match.groupdict())
    return "", ""


def choose_channels(
    head: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """{group: the teacher's channel for each of the student's, -1 for none}, by the weights.

    head, fresh: the dense heads of teacher and student, {name: array}. A channel weighs what is
    written to it, times what is read from it.
    """
    sizes: dict[str, int] = {}
    written: dict[str, list[np.ndarray]] = defaultdict(list)
    read: dict[str, list[np.ndarray]] = defaultdict(list)
    for name, array in head.items():
        module, _, kind = name.rpartition("/")
        if kind != "kernel" or name not in fresh:
            continue
        reads, writes = channel_groups(module)
        squares = np.asarray(array, np.float64) ** 2
        if writes:
            written[writes].append(squares.sum((0, 1, 2)))
            sizes[writes] = fresh[name].shape[-1]
        if reads:
            read[reads].append(squares.sum((0, 1, 3)))
    chosen = {}
    for group, ours in sizes.items():
        theirs = len(written[group][0])
        if ours >= theirs:
            chosen[group] = np.where(np.arange(ours) < theirs, np.arange(ours), -1)
        else:
            score = np.add.reduce(written[group]) * np.add.reduce(read[group])
            chosen[group] = np.sort(np.argsort(-score, kind="stable")[:ours])
    return chosen


def cut(
    name: str, array: np.ndarray, fresh: np.ndarray, chosen: Mapping[str, np.ndarray]
) -> np.ndarray:
    """A tensor of the dense head on the chosen channels.

    Channels without a source are written by nobody; what reads them stays as in `fresh`.
    """
    module, _, kind = name.rpartition("/")
    reads, writes = channel_groups(module)
    if writes:
        array = take(array, chosen[writes])
    if reads and kind == "kernel":
        sources = chosen[reads]
        array = np.where((sources >= 0)[:, None], take(array, sources, -2), fresh)
    return array


def slim(head: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray]) -> tuple[Flat, dict]:
    """-> (the student's dense head but for its projections, {group: channels} where some are lost)

    head, fresh: as of `choose_channels`. Tensors that fit in no other way are left out.
    """
    chosen = choose_channels(head, fresh)
    out = {}
    for name, own in fresh.items():
        if name in head and not name.startswith("project"):
            made = cut(name, head[name], own, chosen)
            if made.shape == own.shape:
                out[name] = made
    lost = {
        group: indices
        for group, indices in chosen.items()
        if not np.array_equal(indices, np.arange(len(indices)))
        or len(indices) < _width(head, group)
    }
    return out, lost


def _width(head: Mapping[str, np.ndarray], group: str) -> int:
    for name, array in head.items():
        module, _, kind = name.rpartition("/")
        if kind == "kernel" and channel_groups(module)[1] == group:
            return array.shape[-1]
    return 0
