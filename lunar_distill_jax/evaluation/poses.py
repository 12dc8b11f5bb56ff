"""Errors of a relative pose and of the matches it came from.

Angles are signed: a translation that points the wrong way is 180 degrees wrong. A pose that was not
found is a failure, and counts: as infinite in medians, as zero in the area under the recall curve.
"""

from __future__ import annotations

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.evaluation import align, flow
from lunar_distill_jax.evaluation.catalogue import Metric
from lunar_distill_jax.twoview import essential, pnp
from lunar_distill_jax.types import PointMaps, StereoPair

AUC_DEG = (5, 10, 20)
WITHIN_PX = (2, 4)
MOST_POINTS = 4096  # of view 2, for its pose in the point map
CUBE = 6  # points along an edge of the cube of VCRE

METRICS = {
    "match_count": Metric("Matches", "", 0, ".0f", "matching", detail=True),
    "match_error_px": Metric(
        "Match error, median", "px", -1, ".2f", "matching", "in the evaluated frame", "median"
    ),
    "match_within_1pct": Metric(
        "Matches within 1 % of the width",
        "% of matches",
        +1,
        ".1f",
        "matching",
        "matches of ground that view 2 does not see count as wrong",
    ),
    **{
        f"match_within_{px}px": Metric(
            f"Matches within {px} px",
            "% of matches",
            +1,
            ".1f",
            "matching",
            "in the evaluated frame",
        )
        for px in WITHIN_PX
    },
    "epipolar_error_px": Metric(
        "Epipolar error, median", "px", -1, ".2f", "matching", "distance to the true line", "median"
    ),
    "rra_deg": Metric("RRA by matches", "degrees", -1, ".2f", "pose", "rotation", "median"),
    "rta_deg": Metric(
        "RTA by matches", "degrees", -1, ".2f", "pose", "direction of translation", "median"
    ),
    **{
        f"pose_auc{t}": Metric(
            f"AUC@{t}° by matches", "%", +1, ".1f", "pose", "of max(RRA, RTA)", detail=t != 10
        )
        for t in AUC_DEG
    },
    "pose_failed_pct": Metric("No pose by matches", "% of pairs", -1, ".1f", "pose"),
    "rra_points_deg": Metric("RRA by points", "degrees", -1, ".2f", "pose", "PnP", "median"),
    "rta_points_deg": Metric("RTA by points", "degrees", -1, ".2f", "pose", "PnP", "median"),
    **{
        f"pose_points_auc{t}": Metric(
            f"AUC@{t}° by points", "%", +1, ".1f", "pose", "of max(RRA, RTA)", detail=t != 10
        )
        for t in AUC_DEG
    },
    "pose_points_failed_pct": Metric("No pose by points", "% of pairs", -1, ".1f", "pose"),
    "vcre_px": Metric(
        "VCRE, length given",
        "px",
        -1,
        ".2f",
        "pose",
        "reprojection error of a cube of points; the true length of the translation is given",
        "median",
        True,
    ),
    "vcre_own_px": Metric(
        "VCRE, own length", "px", -1, ".2f", "pose", "the translation's own length", "median", True
    ),
}


def angle_deg(a: np.ndarray, b: np.ndarray) -> float:
    """Between two vectors [3], degrees in [0, 180]."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b)))


def pose_errors(T: np.ndarray, T_true: np.ndarray) -> tuple[float, float]:
    """(RRA, RTA) in degrees of a relative pose [4, 4]; infinite if it is not finite."""
    if not np.isfinite(T).all():
        return np.inf, np.inf
    rotation = align.rotation_angle_deg(T[:3, :3] @ T_true[:3, :3].T)
    return rotation, angle_deg(T[:3, 3], T_true[:3, 3])


def recall_area(error_deg: float, limit_deg: float) -> float:
    """What one pair adds to AUC@limit, in %: the mean of it over pairs is the area (exact)."""
    return 100 * max(0.0, 1 - error_deg / limit_deg)


def pose_from_points(
    points_cam1: np.ndarray, pair: StereoPair, valid: np.ndarray
) -> np.ndarray | None:
    """T_cam2_cam1 [4, 4] from the point map of view 2 and its true camera matrix; None if none.

    The length of its translation is in the unit of the prediction.
    points_cam1: [2, H, W, 3]; valid: bool [2, H, W].
    """
    y, x = np.nonzero(valid[1])
    step = -(-len(x) // MOST_POINTS)
    pixels = np.stack([x, y], 1)[::step].astype(np.float64)
    points = points_cam1[1, y, x][::step]
    return pnp.camera_pose(points, essential.rays_of(pixels, pair.K[1]))


def pose_metrics(
    prediction: PointMaps, T_points: np.ndarray | None, scale: float, pair: StereoPair
) -> dict[str, float]:
    """All pose `METRICS`; NaN where the predictor has no matches at all.

    T_points: T_cam2_cam1 of `pose_from_points`; scale: metres per unit of the prediction
    """
    T_true = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
    nothing = np.full((4, 4), np.nan)
    values = dict.fromkeys(METRICS, np.nan)
    if prediction.T_cam2_cam1 is not None:
        values |= _angles(prediction.T_cam2_cam1, T_true, "rra_deg", "rta_deg", "pose")
    T = nothing if T_points is None else T_points
    values |= _angles(T, T_true, "rra_points_deg", "rta_points_deg", "pose_points")
    values["vcre_px"] = vcre(with_length(T, float(np.linalg.norm(T_true[:3, 3]))), T_true, pair)
    values["vcre_own_px"] = vcre(
        with_length(T, scale * float(np.linalg.norm(T[:3, 3]))), T_true, pair
    )
    if prediction.matches is not None:
        values |= match_metrics(prediction.matches, pair)
    return {name: float(values[name]) for name in METRICS}


def _angles(T: np.ndarray, T_true: np.ndarray, rra: str, rta: str, name: str) -> dict[str, float]:
    rotation, translation = pose_errors(T, T_true)
    worst = max(rotation, translation)
    return {
        rra: rotation,
        rta: translation,
        **{f"{name}_auc{t}": recall_area(worst, t) for t in AUC_DEG},
        f"{name}_failed_pct": 100.0 * np.isinf(worst),
    }


def with_length(T: np.ndarray, length: float) -> np.ndarray:
    """T [4, 4] whose translation has that length."""
    out = T.copy()
    out[:3, 3] *= length / max(np.linalg.norm(T[:3, 3]), 1e-300)
    return out


def vcre(T: np.ndarray, T_true: np.ndarray, pair: StereoPair) -> float:
    """Median distance in view 2 of a cube of points carried by both poses, px; inf without a pose.

    Virtual correspondence reprojection error (Arnold et al., "Map-free Visual Relocalization", ECCV
    2022). The cube stands at the median depth of view 1, half as deep as the middle 90 % of depths.
    """
    if not np.isfinite(T).all():
        return np.inf
    depth = pair.depth_m[0][pair.valid[0]].astype(np.float64)
    middle = np.median(depth)
    half = max(0.5 * np.ptp(np.percentile(depth, [5, 95])), 0.1 * middle)
    edge = np.linspace(-half, half, CUBE)
    cube = np.stack(np.meshgrid(edge, edge, edge), -1).reshape(-1, 3) + [0, 0, middle]
    seen, seen_true = geometry.transform(T, cube), geometry.transform(T_true, cube)
    ahead = seen_true[:, 2] > 0
    seen[:, 2] = np.maximum(seen[:, 2], 1e-6 * middle)  # behind the camera: far out of the frame
    offset = geometry.project(pair.K[1], seen) - geometry.project(pair.K[1], seen_true)
    return float(np.median(np.linalg.norm(offset[ahead], axis=1))) if ahead.any() else np.inf


def match_metrics(matches: np.ndarray, pair: StereoPair) -> dict[str, float]:
    """Errors of matches [N, 4] (x1, y1, x2, y2) against the true flow; without matches infinite."""
    matches = np.asarray(matches, np.float64)
    if not len(matches):
        worst = {"match_error_px": np.inf, "epipolar_error_px": np.inf}
        shares = {f"match_within_{px}px": 0.0 for px in WITHIN_PX}
        return {"match_count": 0.0, "match_within_1pct": 0.0, **shares, **worst}
    uv, seen = flow.carry(pair, matches[:, :2])
    error = np.linalg.norm(matches[:, 2:] - uv, axis=1)
    limit = 0.01 * pair.valid.shape[2]
    return {
        "match_count": float(len(matches)),
        "match_error_px": float(np.median(error[seen])) if seen.any() else np.inf,
        "match_within_1pct": 100 * float((seen & (error < limit)).mean()),
        **{f"match_within_{px}px": 100 * float((seen & (error < px)).mean()) for px in WITHIN_PX},
        "epipolar_error_px": float(np.median(epipolar_distance(matches, pair))),
    }


def epipolar_distance(matches: np.ndarray, pair: StereoPair) -> np.ndarray:
    """Distance in view 2 from the true epipolar line of the pixel of view 1: px [N]."""
    T = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
    x, y, z = T[:3, 3]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    F = np.linalg.inv(pair.K[1]).T @ cross @ T[:3, :3] @ np.linalg.inv(pair.K[0])
    ones = np.ones((len(matches), 1))
    lines = np.concatenate([matches[:, :2], ones], 1) @ F.T
    distance = np.abs((np.concatenate([matches[:, 2:], ones], 1) * lines).sum(1))
    return distance / np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-300)
