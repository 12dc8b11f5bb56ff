"""A network as a predictor of `evaluate.run`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.data.batches import stack_images
from lunar_distill_jax.data.source import open_pairs
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.evaluate import run
from lunar_distill_jax.types import PointMaps, StereoPair


def predictor(stereo: api.Stereo, batch: int = 8):
    """(pairs) -> point maps; short lists are padded to `batch`, so that one program serves all."""

    def predict(pairs: Sequence[StereoPair]) -> list[PointMaps]:
        maps = []
        for start in range(0, len(pairs), batch):
            chunk = pairs[start : start + batch]
            padded = [*chunk, *[chunk[-1]] * (batch - len(chunk))]
            views = api.predict(stereo, *stack_images(padded))
            points = np.stack([np.asarray(v.pts3d) for v in views], 1)
            conf = np.stack([np.asarray(v.conf) for v in views], 1)
            maps += [PointMaps(points[i], conf[i]) for i in range(len(chunk))]
        return maps

    return predict


def evaluate(
    stereo: api.Stereo,
    dataset: str | os.PathLike | Iterable[StereoPair],
    protocol: str = "ours",
    size: int = 96,
) -> dict:
    """Mean metrics of a network over the geometries of a data set, as `run.summarise` has them.

    dataset: a folder in StereoLunar's format, "synthetic" for 36 rendered pairs, or the pairs
             themselves
    size:    frames of a folder are resized to size x size (default: what `moonlet` was trained
             at); pairs are taken as they are

    Raises:
      InputError: an unknown protocol, or a data set that cannot be read.
    """
    if protocol != "ours":
        raise InputError(f"There is no evaluation protocol {protocol!r}: use 'ours'.")
    pairs = dataset
    if isinstance(dataset, str | os.PathLike):
        _, pairs = open_pairs(dataset, size=size, geometries=36, seed=0)
    return run.evaluate({"model": predictor(stereo)}, pairs).summary["model"]
