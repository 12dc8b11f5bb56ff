"""One pair as the public evaluation scores it, from raw point maps.

The public code first runs 300 steps of global alignment on the network's output; we score that
output itself, so absolute numbers differ from a run of theirs where that optimiser moves points.
Everything after it is theirs: the crop, the principal point half a pixel off, the similarity with
ICP, the world's z coordinate as "depth", slopes of pixels one metre wide.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.evaluation import align, poses
from lunar_distill_jax.evaluation.catalogue import Metric
from lunar_distill_jax.evaluation.paper import alignment, classic, relief
from lunar_distill_jax.evaluation.points import in_metres
from lunar_distill_jax.types import PointMaps, StereoPair

FEWEST = 100  # pixels of both views below which a pair is an error

FAULTS = {
    "rmse": "over points and coordinates, so smaller than the RMS distance by the root of 3; "
    "after a similarity fitted to the ground truth and moved by ICP",
    "mae_3d": "after ICP, which slid known correspondences along the terrain in 36 of 36 tests",
    "accuracy": "both clouds are subsampled apart: a perfect prediction scores 1.58 ground samples",
    "completeness": "as accuracy",
    "chamfer": "as accuracy: differences below a ground sample are invisible",
    "scene_chamfer": "as accuracy",
    "scene_hausdorff_p95": "as accuracy",
    "depth_mae": "of the world's z coordinate, which is no depth",
    "depth_rmse": "of the world's z coordinate",
    "depth_pearson": "of the world's z coordinate: tilt and distance pass for agreement",
    "depth_ssim": "of the world's z coordinate: a plane without any relief scores 0.94",
    "silog": "only where the world's z is positive: never near the south pole",
    "delta1": "1.25 is met by any plane; and only where the world's z is positive",
    "profile_mae": "one row of the world's z coordinate",
    "profile_corr": "one row of the world's z coordinate",
    "slope_mae": "a pixel is taken as one metre wide: true slopes come out at 82 to 86 degrees",
    "slope_rmse": "as slope_mae",
    "slope_corr": "as slope_mae; and mostly the ground truth's HALF rounding (a perfect surface "
    "scores 0.64)",
    "slope_gt_mean": "as slope_mae: the tell-tale",
    "slope_ssim": "as slope_mae: a plane scores 0.61, white noise of 0.1 % of depth 0.31",
    **{
        f"{name}_{t}": "slopes of pixels one metre wide: next to nothing is below the threshold"
        for t in relief.HAZARD_DEG
        for name in ("agree", "false_alarm", "miss")
    },
    "roughness_corr": "in metres of the world's z on the image grid",
    "curvature_corr": "of pixels one metre wide; measures the ground truth's HALF rounding",
    "crater_combined_iou": "as curvature_corr: a perfect surface scores 0.07",
    "relief_corr": "the truth's plane is taken from the prediction too",
    "aspect_hist_corr": "as slope_mae",
    "peaks_recall": "where the world's z is negative peaks are valleys",
    "overlap_median": "all within 5 % of the scene's diagonal, about 2 km, counts as overlap",
    "rra": "by PnP of the point map, for the optimiser's pose",
    "rta": "by PnP of the point map, for the optimiser's pose",
    "vcre_px": "the true length of the translation is given",
    "scale_error_pct": "meaningless for a model that does not claim metres; none is given where it "
    "is off by more than ten times",
}
UNITS = {"rmse": "m", "mae_3d": "m", "accuracy": "m", "completeness": "m", "chamfer": "m"}
UNITS |= {"scene_chamfer": "m", "scene_hausdorff_p95": "m", "depth_mae": "m", "depth_rmse": "m"}
UNITS |= {"profile_mae": "m", "slope_mae": "degrees", "slope_rmse": "degrees"}
UNITS |= {"slope_gt_mean": "degrees", "overlap_median": "m", "rra": "degrees", "rta": "degrees"}
UNITS |= {"vcre_px": "px", "scale_error_pct": "%"}
HIGHER = ("pearson", "ssim", "corr", "delta", "agree", "iou", "recall")
NEITHER = ("slope_gt_mean",)

METRICS = {
    name: Metric(
        name.replace("_", " "),
        UNITS.get(name, ""),
        0 if name in NEITHER else (1 if any(word in name for word in HIGHER) else -1),
        ".4g",
        "paper",
        fault,
    )
    for name, fault in FAULTS.items()
}


@dataclasses.dataclass(frozen=True)
class Truth:
    """One pair as the public code reads it; rows are cropped.

    world:  float64 [2, h, W, 3], metres; depth: [2, h, W], z in each camera; known: bool [2, h, W]
    rows:   which rows of the frame these are
    """

    pair: StereoPair
    rows: slice
    world: np.ndarray
    depth: np.ndarray
    known: np.ndarray


def prepare(pair: StereoPair) -> Truth:
    """A square frame loses an eighth of its rows at the top and at the bottom."""
    height, width = pair.valid.shape[1:]
    cut = height // 8 if height == width else 0
    rows = slice(cut, height - cut)
    world = []
    for depth, K, T in zip(pair.depth_m, pair.K, pair.T_world_cam, strict=True):
        corner = np.array(K)
        corner[:2, 2] += 0.5  # the fault: pixel centres are read as pixel corners
        camera = geometry.backproject(depth.astype(np.float64), corner)
        world.append(geometry.transform(T, camera)[rows])
    depth = pair.depth_m[:, rows].astype(np.float64)
    return Truth(pair, rows, np.stack(world), depth, pair.valid[:, rows])


def score(
    prediction: PointMaps, truth: Truth, icp: bool = True
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """All `METRICS` of a pair (NaN where undefined), no curves."""
    values = dict.fromkeys(METRICS, np.nan)
    points = prediction.points_cam1[:, truth.rows].astype(np.float64)
    conf = prediction.conf[:, truth.rows]
    ok = (conf >= 1) & truth.known & np.isfinite(points).all(-1)
    if ok.sum() < FEWEST:
        return values, {}
    fit = align_scene(points[ok], truth.world[ok], conf[ok], icp)
    world = fit(points)
    if in_metres(fit.scale):
        values["scale_error_pct"] = 100 * abs(fit.scale - 1)
    views = [_view(world[v], truth.world[v], ok[v]) for v in range(2) if ok[v].any()]
    for name in dict.fromkeys(key for view in views for key in view):
        values[name] = float(np.mean([view[name] for view in views if name in view]))
    values |= _scene(world, truth, ok)
    values |= _pose(prediction, truth)
    return {name: float(values[name]) for name in METRICS}, {}


def align_scene(
    points: np.ndarray, world: np.ndarray, conf: np.ndarray, icp: bool = True
) -> align.Similarity:
    """One similarity for both views, fitted about their middle: positions are 1.7e6 m."""
    middle = world.mean(0)
    fit = alignment.fit(points, world - middle, conf)
    if icp:
        fit = alignment.with_icp(fit, points, world - middle)
    return fit._replace(translation=fit.translation + middle)


def _view(world: np.ndarray, true: np.ndarray, ok: np.ndarray) -> dict[str, float]:
    """Metrics of one view: world, true [h, W, 3]."""
    z, z_true = world[..., 2], true[..., 2]
    out = {**classic.point_errors(world[ok], true[ok])}
    out |= classic.nearest_neighbours(world[ok], true[ok])
    out |= {f"depth_{k}": v for k, v in classic.depth_errors(z, z_true, ok).items()}
    out |= {f"profile_{k}": v for k, v in classic.profile(z, z_true, ok).items()}
    inner = relief.eroded(ok)
    out |= relief.slope_errors(z, z_true, inner) | relief.relief_errors(z, z_true, inner)
    for name in ("silog", "delta1"):
        if f"depth_{name}" in out:
            out[name] = out[f"depth_{name}"]
    return {name: out[name] for name in METRICS if name in out}


def _scene(world: np.ndarray, truth: Truth, ok: np.ndarray) -> dict[str, float]:
    pred, gt = world[ok], truth.world[ok]
    near = classic.nearest_neighbours(pred, gt, classic.MOST_POINTS_SCENE)
    diagonal = float(np.linalg.norm(np.ptp(gt, axis=0)))
    one, two = (world[v][ok[v]] for v in range(2))
    both = len(one) and len(two)
    return {
        "scene_chamfer": near["chamfer"],
        "scene_hausdorff_p95": classic.hausdorff(pred, gt)["hausdorff_p95"],
        "overlap_median": classic.overlap(one, two, diagonal)["median"] if both else np.nan,
    }


def _pose(prediction: PointMaps, truth: Truth) -> dict[str, float]:
    pair = truth.pair
    aligned = prediction.points_cam1.astype(np.float64)
    T = poses.pose_from_points(aligned, pair, pair.valid & np.isfinite(aligned).all(-1))
    T_true = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
    if T is None:
        return {"rra": np.inf, "rta": np.inf, "vcre_px": np.inf}
    rra, rta = poses.pose_errors(T, T_true)
    length = float(np.linalg.norm(T_true[:3, 3]))
    return {
        "rra": rra,
        "rta": rta,
        "vcre_px": poses.vcre(poses.with_length(T, length), T_true, pair),
    }
