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
    (r"dpt/project(?P<i>\d)", "", "P{i}"),
    (r"dpt/resize(?P<i>\d)", "P{i}", "R{i}"),
    (r"dpt/layer2", "P2", "F2"),  # level 2 keeps its size: nothing resizes it
    (r"dpt/layer(?P<i>\d)", "R{i}", "F{i}"),
    (r"dpt/skip(?P<i>\d)", "", "F{i}"),
    (r"dpt/fusion(?P<i>\d)/unit(?P<u>\d)/conv1", "F{i}", "U{i}{u}"),
    (r"dpt/fusion(?P<i>\d)/unit(?P<u>\d)/conv2", "U{i}{u}", "F{i}"),
    (r"dpt/fusion0/out", "F0", "G"),
    (r"dpt/fusion1/out", "F1", "F0"),
    (r"dpt/fusion2/out", "F2", "F1"),
    (r"dpt/fusion3/out", "F3", "F2"),
    (r"dpt/head0", "G", "H0"),
    (r"dpt/head1", "H0", "H1"),
    (r"dpt/norm", "", "H1"),
    (r"dpt/head2", "H1", ""),
    # T: of the token grid, L: of a step of the ladder (L2 is T), X: four times as fine.
    (r"catconv/project", "", "T"),
    (r"catconv/unit0/conv1", "T", "U0"),
    (r"catconv/unit0/conv2", "U0", "T"),
    (r"catconv/expand", "T", "X"),
    (r"catconv/skip", "", "X"),
    (r"catconv/ladder/skip(?P<i>\d)", "", "L{i}"),
    (r"catconv/ladder/up1", "T", "L1"),
    (r"catconv/ladder/up0", "L1", "L0"),
    (r"catconv/ladder/unit(?P<i>\d)(?P<u>\d)/conv1", "L{i}", "V{i}{u}"),
    (r"catconv/ladder/unit(?P<i>\d)(?P<u>\d)/conv2", "V{i}{u}", "L{i}"),
    (r"catconv/add", "L0", "X"),
    (r"catconv/unit1/conv1", "X", "U1"),
    (r"catconv/unit1/conv2", "U1", "X"),
    (r"catconv/head1", "X", "H1"),
    (r"(catconv/head2|desc_fine)", "H1", ""),
)
_SAME = {"L2": "T"}
_BLOCKS = {"catconv/expand": 16}  # pixels whose channels follow one another in what it writes


def channel_groups(module: str) -> tuple[str, str]:
    """-> (group that a module of the dense head reads, group that it writes), "" for neither."""
    for pattern, *sides in _TABLE:
        if match := re.fullmatch(pattern, module):
            reads, writes = (side.format(**match.groupdict()) for side in sides)
            return _SAME.get(reads, reads), _SAME.get(writes, writes)
    return "", ""


def choose_channels(
    head: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """{group: the teacher's channel for each of the student's, -1 for none}, by the weights.

    head, fresh: the heads of teacher and student, {name: array}. A channel weighs what is written
    to it, times what is read from it.
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
            blocks = _BLOCKS.get(module, 1)
            written[writes].append(squares.sum((0, 1, 2)).reshape(blocks, -1).sum(0))
            sizes[writes] = fresh[name].shape[-1] // blocks
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
        blocks, sources = _BLOCKS.get(module, 1), chosen[writes]
        width = array.shape[-1] // blocks
        each = [np.where(sources < 0, -1, sources + i * width) for i in range(blocks)]
        array = take(array, np.concatenate(each))
    if reads and kind == "kernel":
        sources = chosen[reads]
        array = np.where((sources >= 0)[:, None], take(array, sources, -2), fresh)
    return array


def slim(head: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray]) -> tuple[Flat, dict]:
    """-> (the student's dense head but for its projections, {group: channels} where some are lost)

    head, fresh: as of `choose_channels`. Tensors that fit in no other way are left out; what reads
    a stem of other widths is silent at first.
    """
    chosen = choose_channels(head, fresh)
    out = {}
    for name, own in fresh.items():
        module, _, kind = name.rpartition("/")
        if name not in head or channel_groups(module) == ("", "") or "/project" in name:
            continue
        made = cut(name, head[name], own, chosen)
        if made.shape == own.shape:
            out[name] = made
        elif kind == "kernel" and re.fullmatch(r"catconv/(ladder/)?skip\d?", module):
            out[name] = np.zeros_like(own)
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
            return array.shape[-1] // _BLOCKS.get(module, 1)
    return 0
