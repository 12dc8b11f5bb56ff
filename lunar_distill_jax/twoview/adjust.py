"""Two views brought into agreement: what a network says of each, bent by what their matches say.

A network knows the surface from what ground looks like; its maps are wrong mostly in what varies
slowly over a frame (tilt, bow), and a pose that is read from them goes wrong with them. Parallax
knows just that. So the pose is sought together with a smooth factor on the depths of each view,
whose size has a prior: a bundle adjustment of two views with eleven unknowns.

Points are [..., 3] in the camera of view 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from lunar_distill_jax import geometry
from lunar_distill_jax.twoview.essential import frame_rays, rays_of
from lunar_distill_jax.twoview.pnp import camera_pose

# Prior deviations of log depth at the frame's rim: along x, y, x^2, y^2, x y.
TILT, BOW = 0.03, 0.01
PRIOR = np.array([TILT, TILT, BOW, BOW, BOW])
# The errors of neighbouring matches are alike: all of them are worth so many.
INDEPENDENT = 50
SCALE_PX = 2.0  # error in view 2 of a match that has a quarter of its say (Geman and McClure)
DEPTH_SCALE = 0.05  # the same of log depths of view 2 against those carried over from view 1
# The scales of the first rounds, pixels: errors of a far start are not outliers yet.
FAR_PX = (32.0, 24.0, 16.0, 12.0, 8.0, 6.0, 4.0, 3.0)
ROUNDS = 12
# Where the search for the pose starts: as the points are, and tilted four ways.
START_TILTS = 0.1 * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]]) @ np.eye(2, 5)
GRID = 6  # every so many pixels of view 2 show where the network puts its camera
AGREEING = 0.5  # share of matches from which an adjustment is believed
FEWEST = 8  # matches below which nothing is tried


@dataclasses.dataclass(frozen=True)
class Adjustment:
    """T_cam2_cam1: float64 [4, 4]; points: two of [H, W, 3]; agree: bool [N], matches that fit."""

    T_cam2_cam1: np.ndarray
    points: tuple[np.ndarray, np.ndarray]
    agree: np.ndarray

    @property
    def believable(self) -> bool:
        """Whether most matches say the same: if not, the maps are better left as they are."""
        return bool(self.agree.mean() >= AGREEING)


def slow_maps(rays: np.ndarray) -> np.ndarray:
    """x, y, x^2 - 1/3, y^2 - 1/3 and x y, with x and y in [-1, 1] over a frame: [H, W, 5].

    rays: [H, W, 3] with z = 1
    """
    low, high = rays[0, 0, :2], rays[-1, -1, :2]
    x, y = np.moveaxis((2 * rays[..., :2] - low - high) / (high - low), -1, 0)
    return np.stack([x, y, x * x - 1 / 3, y * y - 1 / 3, x * y], -1)


def adjust(
    points: Sequence[np.ndarray], matches: np.ndarray, K: Sequence[np.ndarray]
) -> Adjustment | None:
    """The pose and both maps that agree best with the matches and with the network's maps.

    Ground that is nearly a plane is explained about as well by another plane and another pose. So
    several starts are tried: where view 2's own points put the camera, and where the matched points
    of view 1 put it, tilted and not. None: fewer than `FEWEST` matches, or fewer that agree with a
    pose, or points that fit no camera.

    Args:
      points: [H, W, 3] of each view
      matches: [N, 4] whole pixels (x1, y1, x2, y2); many may be wrong
      K: [3, 3] of each view
    """
    one, two = (np.asarray(p, np.float64) for p in points)
    if len(matches) < FEWEST or not (np.isfinite(one).all() and np.isfinite(two).all()):
        return None
    x1, y1, x2, y2 = np.rint(matches).astype(int).T
    seen, pixels2 = one[y1, x1], np.asarray(matches[:, 2:], np.float64)
    rays = [frame_rays(p.shape[:2], k) for p, k in zip((one, two), K, strict=True)]
    maps = [slow_maps(r) for r in rays]
    y, x = (g.ravel() for g in np.mgrid[: two.shape[0] : GRID, : two.shape[1] : GRID])
    placed = camera_pose(two[y, x], rays[1][y, x])
    if placed is None:
        return None
    matched = seen, maps[0][y1, x1], pixels2, K[1]
    tried = [_pose_and_bend(placed, START_TILTS[0], *matched, far=FAR_PX)]
    for tilt in START_TILTS:
        T = camera_pose(seen * np.exp(matched[1] @ tilt)[:, None], rays_of(pixels2, K[1]))
        tried += [] if T is None else [_pose_and_bend(T, tilt, *matched)]
    T, bend, weights, cost = min(tried, key=lambda found: found[3])
    agree = weights > 0.25
    if not np.isfinite(cost) or agree.sum() < FEWEST:
        return None
    one = one * np.exp(maps[0] @ bend)[..., None]
    still, pixels = np.zeros((len(x), 5)), np.stack([x, y], -1)
    placed, *_ = _pose_and_bend(placed, still[0], two[y, x], still, pixels, K[1], FAR_PX)
    depth = geometry.transform(placed, two)[..., 2]
    depth = np.maximum(depth, 1e-3 * np.median(depth))
    carried = geometry.transform(T, one[y1, x1])[:, 2]
    depth = _bent_depth(depth, maps[1], (y2, x2), carried, weights)
    two = geometry.transform(geometry.inverse(T), rays[1] * depth[..., None])
    return Adjustment(T, (one, two), agree)


def _pose_and_bend(
    T: np.ndarray,
    bend: np.ndarray,
    points: np.ndarray,
    maps: np.ndarray,
    pixels: np.ndarray,
    K: np.ndarray,
    far: Sequence[float] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Gauss-Newton from T and a bend [5] -> the better ones, each match's say in 0 to 1 [N], cost.

    points: [N, 3]; maps: [N, 5] of their rays; pixels: [N, 2] of view 2
    """
    unit = np.median(np.linalg.norm(points, axis=1))
    points = points / unit
    R, t = T[:3, :3], T[:3, 3] / unit
    for scale in (*far, *[SCALE_PX] * ROUNDS):
        turned = (points * np.exp(maps @ bend)[:, None]) @ R.T
        moved = turned + t
        z = np.maximum(moved[:, 2:], 1e-3)
        error = moved[:, :2] / z @ K[:2, :2].T + K[:2, 2] - pixels
        square = (error**2).sum(1)
        weights = (scale**2 / (square + scale**2)) ** 2
        say = weights * (SCALE_PX / scale) ** 2 * INDEPENDENT / max(INDEPENDENT, weights.sum())
        # d pixel / d point of camera 2, then of that by rotation, shift and bend.
        flat = np.broadcast_to(np.eye(2), (len(z), 2, 2))
        by_point = np.concatenate([flat, -(moved[:, :2] / z)[..., None]], -1) / z[..., None]
        by_point = K[:2, :2] @ by_point  # [N, 2, 3]
        by_turn = -by_point @ _cross(turned)
        by_bend = by_point @ turned[..., None] * maps[:, None]
        J = np.concatenate([by_turn, by_point, by_bend], -1).reshape(-1, 11)
        weighted = J.T * np.repeat(say, 2)
        H, g = weighted @ J, weighted @ error.ravel()
        H[6:, 6:] += np.diag(1 / PRIOR**2)
        g[6:] += bend / PRIOR**2
        step = -np.linalg.solve(H + 1e-9 * np.diag(np.diag(H)), g)
        R = Rotation.from_rotvec(step[:3]).as_matrix() @ R
        t, bend = t + step[3:6], bend + step[6:]
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = R, t * unit
    misfit = (SCALE_PX**2 * square / (square + SCALE_PX**2)).sum()
    cost = misfit * INDEPENDENT / max(INDEPENDENT, len(points)) + (bend**2 / PRIOR**2).sum()
    return out, bend, weights, float(cost) if np.isfinite(out).all() else np.inf


def _cross(v: np.ndarray) -> np.ndarray:
    """[N, 3] -> [N, 3, 3], the matrices of the products v x."""
    x, y, z = v.T
    o = np.zeros_like(x)
    return np.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(-1, 3, 3)


def _bent_depth(
    depth: np.ndarray,
    maps: np.ndarray,
    at: tuple[np.ndarray, np.ndarray],
    carried: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """depth [H, W] times a factor and a bend, so that it is `carried` [N] at the rows and columns.

    maps: [H, W, 5]; weights: [N] of the carried depths, which may be wrong
    """
    design = np.concatenate([np.ones((*depth.shape, 1)), maps], -1)
    A, ratio = design[at], np.log(np.maximum(carried, 1e-12) / depth[at])
    prior = np.diag(np.r_[0.0, 1 / PRIOR**2])
    c = np.r_[np.median(ratio[weights > 0.25]), np.zeros(5)]
    for _ in range(ROUNDS):
        say = weights * (DEPTH_SCALE**2 / ((ratio - A @ c) ** 2 + DEPTH_SCALE**2)) ** 2
        say *= INDEPENDENT / max(INDEPENDENT, say.sum()) / DEPTH_SCALE**2
        c = np.linalg.solve(A.T @ (say[:, None] * A) + prior, A.T @ (say * ratio))
    return depth * np.exp(design @ c)
