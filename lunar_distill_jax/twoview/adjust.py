"""Two views brought into agreement: what a network says of each, bent by what their matches say.

A network knows the surface from what ground looks like; its maps are wrong mostly in what varies
slowly over a frame (tilt, bow), and a pose that is read from them goes wrong with them. Parallax
knows just that. So the pose is sought together with a smooth factor on the depths of each view,
whose size has a prior: a bundle adjustment of two views with eleven unknowns. Where the pictures
look alike their matches are made exact first (`refine`), and parallax then corrects the surface in
detail too.

Points are [..., 3] in the camera of view 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import linalg, ndimage
from scipy.spatial.transform import Rotation

from lunar_distill_jax import geometry
from lunar_distill_jax.twoview.essential import rays_of
from lunar_distill_jax.twoview.pnp import camera_pose
from lunar_distill_jax.twoview.refine import RADIUS, refine

# What is usual of a bend, in log depth at the frame's rim: along x, y, x^2, y^2, x y. A network
# that has seen little may be off by ten times that.
TILT, BOW = 0.03, 0.01
PRIOR = np.array([TILT, TILT, BOW, BOW, BOW])


@dataclasses.dataclass(frozen=True)
class Noise:
    """What is believed of matches and of the depths they belong to.

    pixels:      deviation of a match
    depth:       deviation of a log depth that no tilt or bow explains
    independent: neighbours err alike, so that all matches together are worth so many
    """

    pixels: float
    depth: float
    independent: int


BY_DESCRIPTORS = Noise(1.0, 0.015, 50)
BY_PICTURES = Noise(0.15, 0.01, 300)
ROBUST = 2.0  # deviations at which a match has a quarter of its say (Geman and McClure)
DEPTH_SCALE = 0.05  # the same of log depths of view 2 against those carried over from view 1
# Deviations of the first rounds, pixels: errors of a far start are not outliers yet.
FAR_PX = (32.0, 24.0, 16.0, 12.0, 8.0, 6.0, 4.0, 3.0)
NEAR_PX = (3.0, 1.5, 0.7, 0.3)  # the same from a pose by descriptors
ROUNDS = 12
# Where the search for the pose starts: as the points are, and tilted four ways.
START_TILTS = 0.1 * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]]) @ np.eye(2, 5)
GRID = 6  # every so many pixels of view 2 show where the network puts its camera
# Share of matches from which an adjustment is believed: of a network's, or of those that the
# pictures made exact.
AGREEING = 0.5
FEWEST = 8  # matches below which nothing is tried
REFINED = 600  # matches that are made exact first, spread over all
SPREAD_OUT = 1200  # matches on a grid that are made exact then
ENOUGH = 0.25  # share of these that must look alike in both pictures
SLOPE_PX = 2.0  # deviation over which the local shape of view 1 in view 2 is taken
# What parallax adds to a surface: deviation of log depth, and the width of a feature as a share of
# the frame.
DETAIL, FEATURE = 0.02, 0.08
CARRIED = 0.003  # deviation of log depths that view 1 gives view 2, within a pixel


@dataclasses.dataclass(frozen=True)
class Adjustment:
    """T_cam2_cam1: float64 [4, 4]; points: two of [H, W, 3]; agree: bool [N], matches that fit;
    exact: whether the pictures themselves were laid over each other, and most of their windows say
    the same."""

    T_cam2_cam1: np.ndarray
    points: tuple[np.ndarray, np.ndarray]
    agree: np.ndarray
    exact: bool = False

    @property
    def believable(self) -> bool:
        """Whether most matches, or the pictures, say the same: if not, the maps are better left as
        they are."""
        return self.exact or bool(self.agree.mean() >= AGREEING)


@dataclasses.dataclass(frozen=True)
class _Fit:
    """weights: [N] in 0 to 1, each match's say; depths: log factors [N] that its parallax asks for
    beside the bend [5], and their deviations [N]."""

    T: np.ndarray
    bend: np.ndarray
    weights: np.ndarray
    cost: float
    depths: tuple[np.ndarray, np.ndarray]


def slow_maps(rays: np.ndarray) -> np.ndarray:
    """x, y, x^2 - 1/3, y^2 - 1/3 and x y, with x and y in [-1, 1] over a frame: [H, W, 5].

    rays: [H, W, 3] with z = 1
    """
    low, high = rays[0, 0, :2], rays[-1, -1, :2]
    x, y = np.moveaxis((2 * rays[..., :2] - low - high) / (high - low), -1, 0)
    return np.stack([x, y, x * x - 1 / 3, y * y - 1 / 3, x * y], -1)


def adjust(
    points: Sequence[np.ndarray],
    matches: np.ndarray,
    K: Sequence[np.ndarray],
    images: Sequence[np.ndarray] | None = None,
) -> Adjustment | None:
    """The pose and both maps that agree best with the matches and with the network's maps.

    A pixel's point is put on the ray that it is seen along: a network's points miss theirs by half
    a pixel, which is as much as the parallax of low hills. Ground that is nearly a plane is
    explained about as well by another plane and another pose. So several starts are tried: where
    view 2's own points put the camera, and where the matched points of view 1 put it, tilted and
    not. None: fewer than `FEWEST` matches, or fewer that agree with a pose, or points that fit no
    camera.

    Args:
      points: [H, W, 3] of each view
      matches: [N, 4] whole pixels (x1, y1, x2, y2); many may be wrong
      K: [3, 3] of each view
      images: [H, W, 3] of each view, any range; with them matches are made exact where they look
        alike
    """
    one, two = (np.asarray(p, np.float64) for p in points)
    if len(matches) < FEWEST or not (np.isfinite(one).all() and np.isfinite(two).all()):
        return None
    matches = np.asarray(matches, np.float64)
    rays = [geometry.pixel_rays(k, *p.shape[:2]) for p, k in zip((one, two), K, strict=True)]
    maps = slow_maps(rays[0])
    one = rays[0] * np.maximum(one[..., 2:], 1e-3 * np.median(np.abs(one[..., 2])))
    placed = camera_pose(*(a[::GRID, ::GRID].reshape(-1, 3) for a in (two, rays[1])))
    if placed is None:
        return None

    def matched(matches):
        x, y = np.rint(matches[:, :2]).astype(int).T
        return one[y, x], maps[y, x], matches[:, 2:], K[1]

    fits = _from_all_starts(placed, *matched(matches))
    fit = _best(fits)
    if fit is None:
        return None
    agree, exact = fit.weights > 0.25, False
    # A few right matches are enough to begin with: whether the pictures are alike there shows it.
    if images is not None:
        chosen = matches[np.linspace(0, len(matches) - 1, min(REFINED, len(matches))).astype(int)]
        for again in (False, True):
            landing = _landing(one * np.exp(maps @ fit.bend)[..., None], fit.T, K[1])
            if again:  # wherever the first round sees common ground, not only where matches were
                chosen, fits = _grid_matches(landing, two.shape[:2]), [fit]
            found = _exact_matches(images, landing, chosen)
            if found is None:
                break
            own = matched(found)
            finer = _best([_pose_and_bend(f.T, f.bend, *own, BY_PICTURES, NEAR_PX) for f in fits])
            if finer is None or (finer.weights > 0.25).mean() < AGREEING:
                break
            fit, matches, exact = finer, found, True
    one = one * np.exp(maps @ fit.bend)[..., None]
    if exact:
        one *= _detail(matches[:, :2], *fit.depths, fit.weights, one.shape[:2])[..., None]
    two = _carried_over(one, two, fit, matches, placed, K[1], exact)
    return Adjustment(fit.T, (one, two), agree, exact)


def _from_all_starts(
    placed: np.ndarray, points: np.ndarray, maps: np.ndarray, pixels: np.ndarray, K: np.ndarray
) -> list[_Fit]:
    """Fits to matched points [N, 3] of view 1, their maps [N, 5] and pixels [N, 2] of view 2."""
    matched = points, maps, pixels, K, BY_DESCRIPTORS
    fits = [_pose_and_bend(placed, START_TILTS[0], *matched, FAR_PX)]
    for tilt in START_TILTS:
        T = camera_pose(points * np.exp(maps @ tilt)[:, None], rays_of(pixels, K))
        fits += [] if T is None else [_pose_and_bend(T, tilt, *matched)]
    return fits


def _best(fits: Sequence[_Fit]) -> _Fit | None:
    best = min(fits, key=lambda fit: fit.cost)
    if not np.isfinite(best.cost) or (best.weights > 0.25).sum() < FEWEST:
        return None
    return best


def _pose_and_bend(
    T: np.ndarray,
    bend: np.ndarray,
    points: np.ndarray,
    maps: np.ndarray,
    pixels: np.ndarray,
    K: np.ndarray,
    noise: Noise,
    far: Sequence[float] = (),
) -> _Fit:
    """Gauss-Newton from T and a bend [5].

    An error along the line on which a match moves with its depth counts less than one across it,
    as far as the depth is unsure.

    points: [N, 3]; maps: [N, 5] of their rays; pixels: [N, 2] of view 2
    """
    unit = np.median(np.linalg.norm(points, axis=1))
    points = points / unit
    R, t = T[:3, :3], T[:3, 3] / unit
    flat = np.broadcast_to(np.eye(2), (len(points), 2, 2))
    most = noise.independent
    for deviation in (*far, *[noise.pixels] * ROUNDS):
        turned = (points * np.exp(maps @ bend)[:, None]) @ R.T
        moved = turned + t
        z = np.maximum(moved[:, 2:], 1e-3)
        error = moved[:, :2] / z @ K[:2, :2].T + K[:2, 2] - pixels
        # d pixel / d point of camera 2, then of that by rotation, shift and bend.
        by_point = np.concatenate([flat, -(moved[:, :2] / z)[..., None]], -1) / z[..., None]
        by_point = K[:2, :2] @ by_point  # [N, 2, 3]
        by_depth = by_point @ turned[..., None]  # of log depth, [N, 2, 1]
        J = np.concatenate([-by_point @ _cross(turned), by_point, by_depth * maps[:, None]], -1)
        along = noise.depth * by_depth[..., 0]  # [N, 2]
        length = np.linalg.norm(along, axis=1)[:, None]
        u = np.where(length > 1e-12, along / np.maximum(length, 1e-12), [1.0, 0.0])
        v = u[:, ::-1] * [-1, 1]  # across: there the match alone errs
        least = deviation**2 + length[:, 0] ** 2
        square = ((error * v).sum(1) / deviation) ** 2 + (error * u).sum(1) ** 2 / least
        square /= ROBUST**2
        precision = v[:, :, None] * v[:, None] / deviation**2
        precision += u[:, :, None] * u[:, None] / least[:, None, None]
        weights = 1 / (1 + square) ** 2
        say = weights * most / max(most, weights.sum())
        if not np.isfinite(say).all():  # lost: its cost says so
            break
        weighted = (say[:, None, None] * precision @ J).reshape(-1, 11)
        H, g = weighted.T @ J.reshape(-1, 11), weighted.T @ error.ravel()
        firm = 1 / (PRIOR**2 + bend**2)  # of a prior with long tails: Cauchy's
        H[6:, 6:] += np.diag(firm)
        g[6:] += bend * firm
        step = -np.linalg.solve(H + 1e-9 * np.diag(np.diag(H)), g)
        R = Rotation.from_rotvec(step[:3]).as_matrix() @ R
        t, bend = t + step[3:6], bend + step[6:]
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = R, t * unit
    misfit = ROBUST**2 * (square / (1 + square)).sum()
    cost = misfit * most / max(most, len(points)) + np.log1p(bend**2 / PRIOR**2).sum()
    strength = np.maximum((by_depth[..., 0] ** 2).sum(1), 1e-12)
    depths = -(by_depth[..., 0] * error).sum(1) / strength, noise.pixels / np.sqrt(strength)
    found = np.isfinite(out).all() and np.isfinite(cost)
    return _Fit(out, bend, weights, float(cost) if found else np.inf, depths)


def _cross(v: np.ndarray) -> np.ndarray:
    """[N, 3] -> [N, 3, 3], the matrices of the products v x."""
    x, y, z = v.T
    o = np.zeros_like(x)
    return np.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(-1, 3, 3)


def _landing(points: np.ndarray, T: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Pixels of view 2 [H, W, 2] that points [H, W, 3] of view 1 fall on."""
    moved = geometry.transform(T, points)
    depth = np.maximum(moved[..., 2:], 1e-3 * np.median(np.abs(moved[..., 2])))
    return geometry.project(K, np.concatenate([moved[..., :2], depth], -1))


def _grid_matches(landing: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Matches [N, 4] of a grid of view 1's pixels that land in view 2, about `SPREAD_OUT`."""
    inside = ((landing >= RADIUS) & (landing < np.array(size[::-1]) - RADIUS)).all(-1)
    step = max(1, round((inside.sum() / SPREAD_OUT) ** 0.5))
    grid = np.zeros_like(inside)
    grid[RADIUS:-RADIUS:step, RADIUS:-RADIUS:step] = True
    y, x = np.nonzero(grid & inside)
    return np.concatenate([np.stack([x, y], -1), landing[y, x]], 1)


def _exact_matches(
    images: Sequence[np.ndarray], landing: np.ndarray, matches: np.ndarray
) -> np.ndarray | None:
    """The matches that hold, laid over each other by the pictures; None where these differ."""
    landing = ndimage.gaussian_filter(landing, (SLOPE_PX, SLOPE_PX, 0), mode="nearest")
    x, y = np.rint(matches[:, :2]).astype(int).T
    by_y, by_x = (slope[y, x] for slope in np.gradient(landing, axis=(0, 1)))
    found, holds = refine(images, matches, np.stack([by_x, by_y], -1))
    return found[holds] if holds.sum() >= max(FEWEST, ENOUGH * len(found)) else None


def _detail(
    pixels: np.ndarray,
    ratios: np.ndarray,
    deviations: np.ndarray,
    weights: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """The most likely factor on depths [H, W], given log factors [N] at some pixels [N, 2].

    A Gaussian process whose features are `FEATURE` wide and `DETAIL` deep; weights: [N] in 0 to 1.
    """
    width = FEATURE * max(size)
    of_x, of_y = (
        np.exp(-((np.arange(n)[:, None] - pixels[:, i]) ** 2) / 2 / width**2)
        for i, n in ((0, size[1]), (1, size[0]))
    )
    squares = (pixels**2).sum(1)
    between = squares[:, None] + squares - 2 * pixels @ pixels.T
    between = DETAIL**2 * np.exp(-between / 2 / width**2)
    noise = deviations**2 / np.maximum(weights, 1e-6)
    solved = linalg.cho_solve(linalg.cho_factor(between + np.diag(noise)), ratios)
    return np.exp(DETAIL**2 * (of_y * solved) @ of_x.T)


def _carried_over(
    one: np.ndarray,
    two: np.ndarray,
    fit: _Fit,
    matches: np.ndarray,
    placed: np.ndarray,
    K: np.ndarray,
    exact: bool,
) -> np.ndarray:
    """View 2's points [H, W, 3], its depths made to agree with those of view 1's points that match.

    placed: where view 2's own points put its camera; exact: whether the matches are
    """
    rays = geometry.pixel_rays(K, *two.shape[:2])
    maps = slow_maps(rays)
    some = two[::GRID, ::GRID].reshape(-1, 3)
    pixels = geometry.project(K, rays[::GRID, ::GRID].reshape(-1, 3))
    still = np.zeros((len(some), 5))
    own = _pose_and_bend(placed, still[0], some, still, pixels, K, BY_DESCRIPTORS, FAR_PX)
    depth = geometry.transform(own.T if np.isfinite(own.cost) else placed, two)[..., 2]
    depth = np.maximum(depth, 1e-3 * np.median(np.abs(depth)))
    x1, y1 = np.rint(matches[:, :2]).astype(int).T
    carried = geometry.transform(fit.T, one[y1, x1])[:, 2]
    depth = _bent_depth(depth, maps, matches[:, 2:], carried, fit.weights)
    if exact:
        x2, y2 = np.rint(matches[:, 2:]).astype(int).T
        ratios = np.log(np.maximum(carried, 1e-12) / depth[y2, x2])
        same = np.full(len(ratios), CARRIED)
        weights = fit.weights / (1 + (ratios / DEPTH_SCALE) ** 2) ** 2
        depth = depth * _detail(matches[:, 2:], ratios, same, weights, depth.shape)
    return geometry.transform(geometry.inverse(fit.T), rays * depth[..., None])


def _bent_depth(
    depth: np.ndarray,
    maps: np.ndarray,
    pixels: np.ndarray,
    carried: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """depth [H, W] times a factor and a bend, so that it is `carried` [N] at the pixels [N, 2].

    maps: [H, W, 5]; weights: [N] of the carried depths, which may be wrong
    """
    x, y = np.rint(pixels).astype(int).T
    design = np.concatenate([np.ones((*depth.shape, 1)), maps], -1)
    A, ratio = design[y, x], np.log(np.maximum(carried, 1e-12) / depth[y, x])
    prior = np.diag(np.r_[0.0, 1 / PRIOR**2])
    c = np.r_[np.median(ratio[weights > 0.25]), np.zeros(5)]
    most = BY_DESCRIPTORS.independent
    for _ in range(ROUNDS):
        say = weights * (DEPTH_SCALE**2 / ((ratio - A @ c) ** 2 + DEPTH_SCALE**2)) ** 2
        say *= most / max(most, say.sum()) / DEPTH_SCALE**2
        c = np.linalg.solve(A.T @ (say[:, None] * A) + prior, A.T @ (say * ratio))
    return depth * np.exp(design @ c)
