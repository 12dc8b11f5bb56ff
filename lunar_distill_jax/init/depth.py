"""Which teacher blocks a student's decoder block stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from lunar_distill_jax.errors import InputError

LAYERS = ("uniform", "last_k", "first_k")
_BLOCK = re.compile(r"(decoder/view[12]_block)(\d+)(/.+)")


def layer_map(strategy: str, ours: int, theirs: int) -> list[int]:
    """The teacher's block for each of a student's `ours`, as the paper's release has it.

    uniform: floor(i * theirs / ours); last_k, first_k: the teacher's last or first blocks

    Raises:
      InputError: an unknown strategy, or `last_k` or `first_k` of fewer blocks than asked for.
    """
    if strategy not in LAYERS:
        raise InputError(
            f"There is no layer mapping {strategy!r}: choose from {', '.join(LAYERS)}."
        )
    if strategy == "uniform":
        return [i * theirs // ours for i in range(ours)]
    if ours > theirs:
        raise InputError(
            f"Layer mapping {strategy} gives a student of {ours} decoder blocks one teacher block "
            f"each, but the teacher has {theirs}: take uniform, or a shallower student."
        )
    return list(range(ours) if strategy == "first_k" else range(theirs - ours, theirs))


def mapped_name(name: str, blocks: Sequence[int]) -> str:
    """The teacher's name of a student's tensor: decoder block i becomes blocks[i]."""
    match = _BLOCK.fullmatch(name)
    return f"{match[1]}{blocks[int(match[2])]}{match[3]}" if match else name


def segments(ours: Sequence[int], theirs: Sequence[int]) -> list[range]:
    """Consecutive runs of teacher blocks, one a student block, whose ends meet at the hooks.

    ours, theirs: the four token maps that feed the dense head, indices into
    [encoder tokens, block 1, ..., block d]; the last is the depth. Hooks 3, 4, 6 of six blocks and
    6, 9, 12 of twelve give {0,1}{2,3}{4,5} {6,7,8} {9,10}{11}. Where two of the student's hooks
    coincide, they share a point between the teacher's. A student block beyond the number of
    teacher blocks in its stretch gets an empty run.
    """
    anchors = {0: 0, ours[-1]: theirs[-1]}
    for hook in sorted(set(ours[:-1]) - anchors.keys()):
        meets = [t for o, t in zip(ours[:-1], theirs[:-1], strict=True) if o == hook]
        anchors[hook] = sum(meets) // len(meets)
    ends = [0]
    hooks = sorted(anchors)
    meets = np.maximum.accumulate([anchors[hook] for hook in hooks])
    points = list(zip(hooks, meets.tolist(), strict=True))
    for (o0, t0), (o1, t1) in zip(points, points[1:], strict=False):
        for i in range(1, o1 - o0 + 1):
            ends.append(t0 + -(-i * (t1 - t0) // (o1 - o0)))
    return [range(a, b) for a, b in zip(ends, ends[1:], strict=False)]


def teacher_name(name: str, depths: dict[str, tuple[int, int]]) -> str:
    """The teacher's name of a student's tensor: block numbers are mapped, the rest stays.

    depths: {"encoder" | "decoder": (the student's, the teacher's)}
    """
    match = re.match(r"(encoder|decoder)/(.*?block)(\d+)(/.*)", name)
    if not match:
        return name
    part, prefix, number, rest = match.groups()
    ours, theirs = depths[part]
    if not (ours and theirs):
        return name
    return f"{part}/{prefix}{(int(number) + 1) * theirs // ours - 1}{rest}"
