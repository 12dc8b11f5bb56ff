"""Point-map regression (DUSt3R and MASt3R), by the teacher's points or the true ones.

A pair of maps (view 1, view 2) is a tuple of [B, H, W, 3] in the camera of view 1; masks and
confidences are tuples of [B, H, W].
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.losses.reduce import Mean
from lunar_distill_jax.losses.scale import (
    NORMS,
    distance,
    keep_valid,
    length,
    normalise,
    per_sample,
    spread,
    without_shift,
)
from lunar_distill_jax.models.heads import raw_from_points

WEIGHTINGS = ("confidence", "teacher", "none")


@dataclasses.dataclass(frozen=True)
class PointSettings:
    """How predicted and target points are compared.

    norm:        unit of length of a cloud, one of `scale.NORMS`
    metric:      samples marked metric are not freed of their scale: the prediction is divided by
                 the target's unit (MASt3R's "?" prefix of a norm)
    max_metric:  with `metric`: a sample stays metric only if all its points are nearer; 0: always
    keep_target: the target keeps its own unit (gt_scale): so do metric predictions
    shift_free, scale_free: the median depth, the median spread, are taken out of both
    log:         "no", "after": distances between points moved to length log1p, "target": the
                 target's points are moved so before anything else
    clip:        target points farther than this are not valid; 0: no limit
    sky:         constant error of pixels known as sky, which teaches low confidence there; 0: none
    weighting:   errors are weighed by the student's confidence (DUSt3R, eq. 4), by the teacher's
                 (Distill3R), or not
    alpha:       reward of log-confidence, for weighting "confidence"
    """

    norm: str = "avg_dis"
    metric: bool = False
    max_metric: float = 0.0
    keep_target: bool = False
    shift_free: bool = False
    scale_free: bool = False
    log: str = "no"
    clip: float = 0.0
    sky: float = 0.0
    weighting: str = "confidence"
    alpha: float = 0.2

    def __post_init__(self):
        for key, known in (("norm", NORMS), ("log", ("no", "after", "target"))):
            if (value := getattr(self, key)) not in known:
                raise InputError(f"points.{key} is {value!r}: choose from {', '.join(known)}.")
        if self.weighting not in WEIGHTINGS:
            raise InputError(
                f"points.weighting is {self.weighting!r}: choose from {', '.join(WEIGHTINGS)}."
            )
        if self.sky and self.weighting == "none":
            raise InputError(
                f"points.sky is {self.sky:g} but points.weighting is 'none': a constant error "
                "teaches nothing without confidences, set it to 0."
            )


def align(points, target, valid, settings: PointSettings, is_metric: Any = None):
    """-> (points, target, valid): comparable pairs, 0 where they are not valid.

    is_metric: bool [B], needed if `settings.metric`
    """
    s = settings
    if s.clip:
        near = (length(keep_valid(target, valid)[i]) <= s.clip for i in range(2))
        valid = tuple(v & n for v, n in zip(valid, near, strict=True))
    target = keep_valid(target, valid)
    if s.log == "target":
        target = tuple(raw_from_points(g) for g in target)
    own, _ = normalise(points, valid, s.norm)
    if s.metric:
        if s.max_metric:
            far = jnp.stack([length(g).max((1, 2)) for g in target])
            is_metric = is_metric & (far.max(0) < s.max_metric)
        _, unit = normalise(target, valid, s.norm)
        if s.keep_target:
            unit = jnp.ones_like(unit)
        given = keep_valid(points, valid)
        own = tuple(
            jnp.where(per_sample(is_metric), p / per_sample(unit), o)
            for p, o in zip(given, own, strict=True)
        )
    points = own
    if not s.keep_target:
        target, _ = normalise(target, valid, s.norm)
    if s.shift_free:
        points, target = without_shift(points, valid), without_shift(target, valid)
    if s.scale_free:
        p = per_sample(jnp.clip(spread(points, valid), 1e-3, 1e3))
        g = per_sample(spread(target, valid))
        g = jnp.where(g > 0, g, 1.0)  # a sample without valid pixels
        factor = (g / p, jnp.ones_like(g)) if s.keep_target else (1 / p, 1 / g)
        points, target = (
            tuple(x * f for x in pair) for pair, f in zip((points, target), factor, strict=True)
        )
    points, target = keep_valid(points, valid), keep_valid(target, valid)
    if s.log == "after":
        points, target = (tuple(map(raw_from_points, pair)) for pair in (points, target))
    return points, target, valid


def errors(points, target, valid, settings: PointSettings, sky=None):
    """-> (distances of the aligned pairs, their masks): pairs of [B, H, W].

    sky: pair of bool masks, or None; sky pixels get the constant error and join the masks
    """
    distances = tuple(distance(p, g) for p, g in zip(points, target, strict=True))
    if not settings.sky or sky is None:
        return distances, valid
    sky = tuple(s & ~v for s, v in zip(sky, valid, strict=True))
    distances = tuple(jnp.where(s, settings.sky, d) for s, d in zip(sky, distances, strict=True))
    return distances, tuple(v | s for v, s in zip(valid, sky, strict=True))


def mean_error(errors, mask) -> Mean:
    """Mean over view 1 + mean over view 2."""
    return Mean.over(errors[0], mask[0]) + Mean.over(errors[1], mask[1])


def confidence_weighted(errors, conf, mask, *, alpha: float = 0.2) -> Mean:
    """Means of error * conf - alpha * log conf (DUSt3R, eq. 4)."""
    conf = tuple(jnp.where(m, c, 1.0) for c, m in zip(conf, mask, strict=True))
    return mean_error(
        tuple(
            jnp.where(m, e, 0.0) * c - alpha * jnp.log(c)
            for e, c, m in zip(errors, conf, mask, strict=True)
        ),
        mask,
    )


def teacher_weighted(errors, teacher_conf, mask) -> Mean:
    """Means of error * the teacher's confidence: where it is sure, it is followed (Distill3R)."""
    weight = tuple(jnp.maximum(jax.lax.stop_gradient(c), 0.0) for c in teacher_conf)
    return mean_error(tuple(e * w for e, w in zip(errors, weight, strict=True)), mask)


def confidence_difference(conf, teacher_conf, mask) -> Mean:
    """Means of |confidence - the teacher's|."""
    return mean_error(tuple(jnp.abs(c - t) for c, t in zip(conf, teacher_conf, strict=True)), mask)


def surest(conf, valid, *, quantile: float = 0.0, threshold: float = 0.0):
    """The mask [B, H, W] without the pixels the teacher is least sure of.

    quantile:  share of a sample's valid pixels to leave out
    threshold: least confidence to keep; confidences are >= 1, so only thresholds above 1 filter
    """
    if threshold:
        valid = valid & (conf > threshold)
    if quantile:
        inside = jnp.sort(jnp.where(valid, conf, jnp.inf).reshape(conf.shape[0], -1), axis=-1)
        rank = jnp.floor(quantile * valid.sum((1, 2))).astype(jnp.int32)
        least = jnp.take_along_axis(inside, rank[:, None], axis=-1)
        valid = valid & (conf >= least[..., None])
    return valid
