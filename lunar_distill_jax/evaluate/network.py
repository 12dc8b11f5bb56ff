"""A network as a predictor of `evaluate.run`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.data.batches import stack_images
from lunar_distill_jax.types import PointMaps, StereoPair


def predictor(stereo: api.Stereo, batch: int = 8):
    """(pairs) -> point maps. Short lists are padded to `batch`, so that one program serves them all."""

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
