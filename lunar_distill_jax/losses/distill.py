"""The training objective: a table of weights over the losses, for a teacher or ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct

from lunar_distill_jax.losses import features, matching, points

TERMS = ("points", "features", "gradient", "relief", "matching")


@flax.struct.dataclass
class Targets:
    """What the student should say.

    points1, points2: [B, H, W, 3] in camera 1, any unit
    valid1, valid2:   bool [B, H, W]
    tokens1, tokens2: [B, N, D] the teacher's encoder tokens, or None under ground truth
    """

    points1: Any
    points2: Any
    valid1: Any
    valid2: Any
    tokens1: Any = None
    tokens2: Any = None


def objective(
    prediction1, prediction2, projected, targets: Targets, batch, weights: Mapping[str, float]
):
    """-> (loss [], {term: value []}); a weight of 0 costs nothing.

    projected: the student's encoder tokens of both views in the teacher's width, or None
    batch:     needs `pixels1`, `pixels2`, `pixels_valid` if weights["matching"] is not 0
    """
    valid1, valid2 = targets.valid1, targets.valid2
    p1, p2 = points.normalise(prediction1.pts3d, prediction2.pts3d, valid1, valid2)
    g1, g2 = points.normalise(targets.points1, targets.points2, valid1, valid2)
    terms = {}
    if weights["points"]:
        terms["points"] = points.confidence_weighted(
            points.distance(p1, g1), prediction1.conf, valid1
        ) + points.confidence_weighted(points.distance(p2, g2), prediction2.conf, valid2)
    if weights["features"]:
        terms["features"] = (
            features.cosine_margin(projected[0], targets.tokens1)
            + features.cosine_margin(projected[1], targets.tokens2)
        ) / 2
    if weights["gradient"]:
        terms["gradient"] = points.gradient_difference(p1, g1, valid1)
        terms["gradient"] += points.gradient_difference(p2, g2, valid2)
    if weights["relief"]:
        terms["relief"] = points.relief_difference(p1, g1, valid1)
        terms["relief"] += points.relief_difference(p2, g2, valid2)
    if weights["matching"]:
        terms["matching"] = matching.info_nce(
            prediction1.desc,
            prediction2.desc,
            batch["pixels1"],
            batch["pixels2"],
            batch["pixels_valid"],
        )
    return sum(weights[k] * v for k, v in terms.items()), terms
