"""A network as a predictor of `evaluate.run`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from lunar_distill_jax import api
from lunar_distill_jax.data.batches import stack_images
from lunar_distill_jax.data.source import open_pairs
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.evaluation import efficiency, run
from lunar_distill_jax.evaluation.protocol import PROTOCOLS
from lunar_distill_jax.twoview import matching
from lunar_distill_jax.twoview.adjust import adjust
from lunar_distill_jax.types import PointMaps, StereoPair

SEEDS = 4096  # about as many pixels of view 1 look for a match
MOST_MATCHES = 2000  # the surest
SIDE = 96  # of frames, where a model does not say what it was trained at
BORDER_PX = 3  # descriptors at the rim of a frame see half of their surroundings


def predictor(
    stereo: api.Stereo,
    batch: int = 8,
    *,
    matches: bool = False,
    program: efficiency.Program | None = None,
    turns: int | None = None,
) -> run.Predictor:
    """(pairs) -> point maps; short lists are padded to `batch`, so that one program serves all.

    program: what predicts pairs of its size, one by one; `batch` is then without meaning
    turns:   of view 2, as `api.predict`; None: as many as the network wants
    matches: also match the descriptors, and find the relative pose by them and the point maps
    """
    return _predictors(stereo, batch, matches, program, turns)[0]


def predictors(
    stereo: api.Stereo,
    batch: int = 8,
    *,
    program: efficiency.Program | None = None,
    turns: int | None = None,
) -> tuple[run.Predictor, run.Predictor]:
    """Point maps as the network says them, and as its matches and the pictures adjust them.

    The second answers with what `reconstruct` shows (`twoview.adjust`); where most matches do not
    agree on a pose, with what the network says. Both have matches and the same poses. Asked for the
    same pairs one after the other, they run the network once. Arguments as of `predictor`.
    """
    return _predictors(stereo, batch, True, program, turns)


def _predictors(stereo, batch, matches, program, turns) -> tuple[run.Predictor, run.Predictor]:
    turns = stereo.turns if turns is None else turns
    last: list[tuple[StereoPair, PointMaps, PointMaps]] = []

    def predict(pairs: Sequence[StereoPair]) -> None:
        if len(pairs) == len(last) and all(a is b for a, (b, *_) in zip(pairs, last, strict=True)):
            return
        last.clear()
        fits = program is not None and {p.valid.shape[1:] for p in pairs} == {program.size}
        count = 1 if fits else batch
        for start in range(0, len(pairs), count):
            chunk = pairs[start : start + count]
            padded = [*chunk, *[chunk[-1]] * (count - len(chunk))]
            images = stack_images(padded)
            if program and fits:
                views = program(*images)
            else:
                views = api.predict(stereo, *images, turns=turns)
            points, conf, desc, trust = (
                np.stack([np.asarray(getattr(v, field)) for v in views], 1)
                for field in ("pts3d", "conf", "desc", "desc_conf")
            )
            for i, pair in enumerate(chunk):
                own = PointMaps(points[i], conf[i])
                if matches:
                    own, bent = _matched(own, match(desc[i], trust[i]), pair)
                last.append((pair, own, bent if matches else own))

    def answer(which: int) -> run.Predictor:
        def predicted(pairs: Sequence[StereoPair]) -> list[PointMaps]:
            predict(pairs)
            return [entry[which] for entry in last]

        return predicted

    return answer(1), answer(2)


def _matched(own: PointMaps, found: np.ndarray, pair: StereoPair) -> tuple[PointMaps, PointMaps]:
    """With matches and pose: the network's own points, and the adjusted ones."""
    fit = adjust(own.points_cam1, found, pair.K, pair.image)
    pose = np.full((4, 4), np.nan) if fit is None else fit.T_cam2_cam1
    own = dataclasses.replace(own, matches=found, T_cam2_cam1=pose)
    if fit is None or not fit.believable:
        return own, own
    return own, dataclasses.replace(own, points_cam1=np.stack(fit.points).astype(np.float32))


def match(desc: Sequence[np.ndarray], conf: Sequence[np.ndarray]) -> np.ndarray:
    """Matches [N, 4] (x1, y1, x2, y2) of two frames, the surest first. desc: two [H, W, K]."""
    height, width = desc[0].shape[:2]
    step = max(1, round((height * width / SEEDS) ** 0.5))
    on_device = jax.default_backend() != "cpu"  # there the transfer costs more than it saves
    nearest = matching.nearest_dot_on_device if on_device else matching.nearest_dot
    pixels = matching.reciprocal_matches(desc[0], desc[1], step, both_ways=True, nearest=nearest)
    trust = matching.match_confidence(conf[0], conf[1], *pixels)
    inside = np.ones(len(trust), bool)
    for at, d in zip(pixels, desc, strict=True):
        inside &= (at >= BORDER_PX).all(1) & (at < np.array(d.shape[1::-1]) - BORDER_PX).all(1)
    found = np.concatenate(pixels, 1)[inside]
    return found[np.argsort(-trust[inside], kind="stable")[:MOST_MATCHES]].astype(np.float64)


def evaluate(
    stereo: api.Stereo,
    dataset: str | os.PathLike | Iterable[StereoPair],
    protocol: str = "ours",
    size: int | None = None,
) -> dict:
    """Mean metrics of a network over the geometries of a data set, as `run.summarise` has them.

    dataset: a folder in StereoLunar's format, "synthetic" for 36 rendered pairs, or the pairs
             themselves
    size:    frames of a folder are resized to size x size (default: what the model was trained at,
             or 96 where its meta is silent); pairs are taken as they are

    Raises:
      InputError: an unknown protocol, or a data set that cannot be read.
    """
    if protocol not in PROTOCOLS:
        known = " or ".join(map(repr, PROTOCOLS))
        raise InputError(f"There is no evaluation protocol {protocol!r}: use {known}.")
    if not isinstance(dataset, str | os.PathLike):
        pairs = dataset
    else:
        side = size or stereo.training_side or SIDE
        _, pairs = open_pairs(dataset, size=side, geometries=36, seed=0)
    models = {"model": predictor(stereo, matches=True)}
    return run.evaluate(models, pairs, protocol=PROTOCOLS[protocol]).summary["model"]
