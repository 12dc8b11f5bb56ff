"""Protocol `ours`: everything of one pair that a number can be believed in.

Raw point maps in the camera of view 1, the same pixels for every model: those with ground truth.
A predictor that has no answer for a pair (all points NaN) fails on it, and that is counted.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lunar_distill_jax.evaluation import calibration, conditions, metrics, points, poses, terrain
from lunar_distill_jax.evaluation.catalogue import Metric
from lunar_distill_jax.evaluation.flow import Flow, true_flow
from lunar_distill_jax.types import PointMaps, StereoPair

METRICS: dict[str, Metric] = {
    "failed_pct": Metric("No answer", "% of pairs", -1, ".1f", "surface"),
    **metrics.METRICS,
    **points.METRICS,
    **poses.METRICS,
    **terrain.METRICS,
    **calibration.METRICS,
}


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the metrics of one pair share, whatever the model.

    gsd_m: [2, H, W]  metres that a pixel covers
    """

    pair: StereoPair
    surface: metrics.GroundTruth
    gsd_m: np.ndarray
    flow: Flow
    terrain: terrain.Terrain
    numbers: dict[str, float]
    conditions: dict[str, str]


def prepare(pair: StereoPair) -> Truth:
    """Raises InputError where a view has fewer than three valid pixels."""
    surface = metrics.ground_truth(pair)
    gsd = points.ground_samples(surface, pair.K)
    flow = true_flow(pair)
    ground = terrain.reference(pair, surface, gsd)
    numbers = conditions.pair_numbers(pair, flow)
    named = conditions.conditions(pair, numbers)
    return Truth(pair, surface, gsd, flow, ground, numbers, named)


def score(prediction: PointMaps, truth: Truth) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """All `METRICS` (NaN where one does not apply), and curves by name.

    Raises:
      ValueError: the prediction has another shape than the truth, or some points are not finite.
    """
    if np.isnan(prediction.points_cam1).all():
        return _no_answer(prediction, truth), {}
    surface, valid = truth.surface, truth.surface.valid
    aligned = metrics.aligned(prediction, surface)
    T_points = poses.pose_from_points(aligned.points, truth.pair, valid)
    length = 0.0 if T_points is None else float(np.linalg.norm(T_points[:3, 3]))
    true_length = float(np.linalg.norm(truth.surface.T_cam2_cam1[:3, 3]))
    X = aligned.scale * aligned.points[valid]
    error = metrics.distance_pct(X, surface.points_cam1[valid], surface.depth[valid])
    trust, curves = calibration.calibration(error, aligned.conf[valid])
    values = {
        "failed_pct": 0.0,
        **metrics.surface_metrics(aligned, surface),
        **points.point_metrics(
            aligned, surface, truth.gsd_m, truth.flow, true_length / length if length else None
        ),
        **poses.pose_metrics(prediction, T_points, aligned.scale, truth.pair),
        **terrain.terrain_metrics(X, truth.terrain),
        **trust,
    }
    return {name: values[name] for name in METRICS}, curves


def _no_answer(prediction: PointMaps, truth: Truth) -> dict[str, float]:
    values = dict.fromkeys(METRICS, np.nan) | {"failed_pct": 100.0}
    values |= poses.pose_metrics(prediction, None, np.nan, truth.pair)
    return {name: float(values[name]) for name in METRICS}
