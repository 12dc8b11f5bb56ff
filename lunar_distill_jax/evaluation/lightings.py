"""Pairs whose views were taken under different suns: free in StereoLunar, and much harder."""

from __future__ import annotations

from collections.abc import Sequence

from lunar_distill_jax.data.pair_lists import PairRef


def crossed(refs: Sequence[PairRef]) -> list[PairRef]:
    """View 1 of each pair with view 2 of every other pair of the same geometry."""
    return [
        PairRef(
            f"{one.name}+{two.name.rsplit('/', 1)[-1]}",
            one.geometry,
            one.trajectory,
            (one.frames[0], two.frames[1]),
        )
        for one in refs
        for two in refs
        if one is not two and one.geometry == two.geometry
    ]
