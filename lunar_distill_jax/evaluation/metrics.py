"""What a prediction of one pair is worth: errors at the same pixel, relief, confidence.

Every number is taken over the pixels whose ground truth is valid, the same for every model. Unless
a name says otherwise, the prediction has been brought to the scale of the ground truth by
`align.fit_scale` and by nothing else. A plane explains nearly all of a lunar point map, so errors
alone flatter: `relief_corr` asks for what a plane cannot know.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.evaluation import align
from lunar_distill_jax.evaluation.catalogue import Metric
from lunar_distill_jax.types import PointMaps, StereoPair

METRICS = {  # the order of tables
    "abs_rel": Metric(
        "Depth AbsRel", "fraction", -1, ".4f", about="mean |z - z_gt| / z_gt in each own camera"
    ),
    "point_error_pct": Metric(
        "Point error", "% of depth", -1, ".2f", about="mean distance to the true point"
    ),
    "point_error_median_pct": Metric(
        "Point error, median", "% of depth", -1, ".2f", about="its median over pixels", detail=True
    ),
    "point_error_p90_pct": Metric(
        "Point error, 90th pct.", "% of depth", -1, ".2f", about="its 90th percentile", detail=True
    ),
    "point_error_sim3_pct": Metric(
        "Point error, Sim(3)", "% of depth", -1, ".2f", "similarity", "after a trimmed similarity"
    ),
    "sim3_rotation_deg": Metric(
        "Sim(3) rotation", "degrees", -1, ".2f", "similarity", "what it had to turn", detail=True
    ),
    "sim3_translation_pct": Metric(
        "Sim(3) shift", "% of depth", -1, ".2f", "similarity", "what it had to move", detail=True
    ),
    "relief_corr": Metric(
        "Relief corr.", "r", +1, ".3f", "relief", "correlation of depths minus the true plane's"
    ),
    "relief_corr_detrended": Metric(
        "Relief corr., detrended", "r", +1, ".3f", "relief", "each depth minus its own best plane"
    ),
    "conf_mean": Metric("Mean confidence", "", 0, ".2f", "confidence", detail=True),
    "conf_rank_corr": Metric(
        "Confidence rank corr.", "ρ", +1, ".3f", "confidence", "Spearman's, with minus the error"
    ),
}
FLAT = 1e-4  # relief whose sd is a smaller part of the depth is less than HALF's rounding of it
MAX_RANKED = 65536  # pixels; ranking all of two 512 x 512 views would dominate the run time


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """What all metrics of one pair share; all float64, metres.

    points_cam1: [2, H, W, 3]
    depth:       [2, H, W]  z-depth in each view's own camera
    plane:       [2, H, W]  z-depth of the plane that fits `depth` best
    valid:       bool [2, H, W]
    rays:        [2, H, W, 3]  z = 1
    T_cam2_cam1: [4, 4]
    """

    points_cam1: np.ndarray
    depth: np.ndarray
    plane: np.ndarray
    valid: np.ndarray
    rays: np.ndarray
    T_cam2_cam1: np.ndarray


def ground_truth(pair: StereoPair) -> GroundTruth:
    """Prepares one pair for `pair_metrics`.

    Raises:
      InputError: a view has fewer than three valid pixels, so that no plane can be fitted.
    """
    if (counts := pair.valid.sum((1, 2))).min() < 3:
        raise InputError(
            f"The views of pair {pair.name} have {counts.tolist()} pixels of valid depth, expected "
            "at least 3 in each: leave the pair out."
        )
    shape = pair.depth_m.shape[1:]
    rays = np.stack([geometry.pixel_rays(K, *shape) for K in pair.K])
    depth = pair.depth_m.astype(np.float64)
    plane = np.stack(
        [
            geometry.fit_inverse_depth_plane(*view)
            for view in zip(rays, depth, pair.valid, strict=True)
        ]
    )
    T_cam2_cam1 = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
    points = geometry.pointmaps_cam1(pair)
    return GroundTruth(points, depth, plane, pair.valid, rays, T_cam2_cam1)


@dataclasses.dataclass(frozen=True)
class Aligned:
    """A prediction and what brings it to the ground truth.

    points:     float64 [2, H, W, 3]  in camera 1, as predicted
    conf:       float64 [2, H, W]
    scale:      of `align.fit_scale`
    similarity: of `align.fit_similarity`
    """

    points: np.ndarray
    conf: np.ndarray
    scale: float
    similarity: align.Similarity


def aligned(prediction: PointMaps, truth: GroundTruth) -> Aligned:
    """Checks a prediction and aligns it.

    Raises:
      ValueError: the prediction has another shape than the truth, or a point that is not finite.
    """
    _check(prediction, truth)
    points = prediction.points_cam1.astype(np.float64)
    X, X_gt = points[truth.valid], truth.points_cam1[truth.valid]
    return Aligned(
        points,
        prediction.conf.astype(np.float64),
        align.fit_scale(X, X_gt),
        align.fit_similarity(X, X_gt),
    )


def pair_metrics(prediction: PointMaps, truth: GroundTruth) -> dict[str, float]:
    """All `METRICS` of one prediction; raises as `aligned` does."""
    return surface_metrics(aligned(prediction, truth), truth)


def surface_metrics(prediction: Aligned, truth: GroundTruth) -> dict[str, float]:
    """All `METRICS` of an aligned prediction."""
    points, similarity = prediction.points, prediction.similarity
    X, X_gt, z_gt = points[truth.valid], truth.points_cam1[truth.valid], truth.depth[truth.valid]
    error = distance_pct(prediction.scale * X, X_gt, z_gt)
    error_sim3 = distance_pct(similarity(X), X_gt, z_gt)
    moved = np.linalg.norm(similarity.translation) / np.median(z_gt)
    own = own_depths(prediction.scale * points, truth)
    conf = prediction.conf[truth.valid]
    step = -(-len(conf) // MAX_RANKED)
    values = {
        "abs_rel": _per_view(_abs_rel, own, truth),
        "point_error_pct": error.mean(),
        "point_error_median_pct": np.median(error),
        "point_error_p90_pct": np.percentile(error, 90),
        "point_error_sim3_pct": error_sim3.mean(),
        "sim3_rotation_deg": align.rotation_angle_deg(similarity.rotation),
        "sim3_translation_pct": 100 * moved,
        "relief_corr": _per_view(_relief_corr, own, truth),
        "relief_corr_detrended": _per_view(_relief_corr_detrended, own, truth),
        "conf_mean": conf.mean(),
        "conf_rank_corr": spearman(conf[::step], -error[::step]),
    }
    return {name: float(values[name]) for name in METRICS}


def distance_pct(X: np.ndarray, X_gt: np.ndarray, z_gt: np.ndarray) -> np.ndarray:
    """Distance of points [N, 3] from the truth in % of its depth [N]."""
    offset = X - X_gt
    return 100 * np.sqrt(np.einsum("nc,nc->n", offset, offset)) / z_gt


def own_depths(points_cam1: np.ndarray, truth: GroundTruth) -> np.ndarray:
    """z of points [2, H, W, 3] in each view's own camera, by the true relative pose: [2, H, W]."""
    return np.stack(
        [points_cam1[0, ..., 2], geometry.transform(truth.T_cam2_cam1, points_cam1[1])[..., 2]]
    )


def pearson(a: np.ndarray, b: np.ndarray, flat: float = 0.0) -> float:
    """Correlation of a and b, both [N]; 0 where the sd of either is no more than `flat`."""
    a, b = a - a.mean(), b - b.mean()
    sd_a, sd_b = np.sqrt((a**2).mean()), np.sqrt((b**2).mean())
    if not (sd_a > flat and sd_b > flat):
        return 0.0
    return float((a / sd_a * (b / sd_b)).mean())


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of a and b, both [N]; ties share their mean rank; 0 if one is constant."""
    return pearson(_ranks(a), _ranks(b))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def _per_view(metric, own: np.ndarray, truth: GroundTruth) -> float:
    """Mean over both views of metric(z, z_gt, z_plane, rays), each of one view's valid pixels."""
    arrays = (own, truth.depth, truth.plane, truth.rays)
    views = [
        metric(*(array[view][valid] for array in arrays)) for view, valid in enumerate(truth.valid)
    ]
    return float(np.mean(views))


def _abs_rel(z, z_gt, plane, rays) -> float:
    return float((np.abs(z - z_gt) / z_gt).mean())


def _relief_corr(z, z_gt, plane, rays) -> float:
    """Pearson correlation of both depths minus the oracle plane's; 0 where either is `FLAT`."""
    return pearson(z - plane, z_gt - plane, FLAT * z_gt.mean())


def _relief_corr_detrended(z, z_gt, plane, rays) -> float:
    """As `_relief_corr`, but the prediction loses its own best plane; 0 where none fits it."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a plane may pass through the camera
        relief = z - geometry.fit_inverse_depth_plane(rays, z, np.ones(len(z), bool))
    if not np.isfinite(relief).all():
        return 0.0
    return pearson(relief, z_gt - plane, FLAT * z_gt.mean())


def _check(prediction: PointMaps, truth: GroundTruth) -> None:
    shapes = prediction.points_cam1.shape, prediction.conf.shape
    wanted = truth.points_cam1.shape, truth.depth.shape
    if shapes != wanted:
        raise ValueError(f"points and conf have the shapes {shapes}, expected {wanted}.")
    finite = np.isfinite(prediction.points_cam1).all(-1) & np.isfinite(prediction.conf)
    if bad := int((truth.valid & ~finite).sum()):
        raise ValueError(f"{bad} of {truth.valid.sum()} predicted points are not finite.")
