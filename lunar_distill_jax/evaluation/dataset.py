"""The pairs of an evaluation: at the size that networks see, and as they are stored."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from lunar_distill_jax.data.source import open_folder, pair_sequence, synthetic_moon
from lunar_distill_jax.data.synthetic import TRAINING_SEEDS
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.evaluation import hosts
from lunar_distill_jax.types import StereoPair


class Dataset:
    """Pairs read one by one; each may be read again by its name.

    Iterating yields this host's share. A pair is known by its name once it has been yielded.
    """

    def __init__(self, pairs: Sequence[StereoPair], stored: Sequence[StereoPair] | None = None):
        """stored: the same pairs at the size of their files; None where there are no others"""
        self._pairs, self._stored = pairs, pairs if stored is None else stored
        self._index: dict[str, int] = {}

    def __len__(self) -> int:
        return len(hosts.own_share(range(len(self._pairs))))

    def __iter__(self) -> Iterator[StereoPair]:
        for index in hosts.own_share(range(len(self._pairs))):
            pair = self._pairs[index]
            self._index[pair.name] = index
            yield pair

    def read(self, name: str) -> StereoPair:
        """A pair at the size it is evaluated at."""
        return self._pairs[self._find(name)]

    def stored(self, pair: StereoPair) -> StereoPair:
        """The same pair as it is stored: what classical methods look at."""
        return pair if self._stored is self._pairs else self._stored[self._find(pair.name)]

    def _find(self, name: str) -> int:
        if name not in self._index:  # another host's pair
            self._index |= {self._pairs[i].name: i for i in range(len(self._pairs))}
        return self._index[name]


def open_dataset(
    source: str | os.PathLike, *, size: int, geometries: int, seed: int, lighting: str = "same"
) -> Dataset:
    """The pairs of a folder or of the synthetic Moon, as `data.source.pair_sequence` has them.

    Raises:
      InputError: as there; or synthetic terrain that networks may have been trained on.
    """
    pairs = pair_sequence(source, size=size, geometries=geometries, seed=seed, lighting=lighting)
    if synthetic_moon(source) is None:
        return Dataset(pairs, open_folder(source, lighting=lighting))
    if seed + geometries > TRAINING_SEEDS:
        raise InputError(
            f"Seeds from {TRAINING_SEEDS} on are training terrain, and --seed {seed} with "
            f"{geometries} geometries reaches them: take a smaller --seed."
        )
    return Dataset(pairs)
