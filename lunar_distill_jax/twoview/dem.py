"""From point maps to a local terrain model: a grid of heights, their slope and roughness.

Heights are along the local vertical (radial in a Moon-centred world), above the sphere through the
middle of the scene. Slopes are those of planes fitted to a window of cells, in metres per metre: no
pixel size is assumed.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from lunar_distill_jax import geometry

# A point this far from the origin of its world is in Moon-centred coordinates (radius 1 737 400 m);
# nearer, the world is a local one and the plane of the terrain gives the vertical.
MOON_CENTRED_M = 1.0e6
WINDOW = 5  # cells along the edge of the window that slopes and roughness are taken over
MOST_CELLS = 512  # along an edge: a stray point must not ask for gigabytes
SMOOTHING_PX = 1.5  # of `dequantise`
TRUSTED = 0.8  # share of a pixel's surroundings that rounding must explain, for smoothing to begin


@dataclasses.dataclass(frozen=True)
class LocalFrame:
    """T_local_cam1 [4, 4]: x along the rows of view 1, y, z up, in metres from the scene's middle.

    radius_m: of the sphere that heights are above; infinite in a world that is not Moon-centred
    """

    T_local_cam1: np.ndarray
    radius_m: float

    def __call__(self, points_cam1: np.ndarray) -> np.ndarray:
        """Points [..., 3] in camera 1 -> (x, y, height) [..., 3]."""
        out = geometry.transform(self.T_local_cam1, points_cam1)
        out[..., 2] += (out[..., :2] ** 2).sum(-1) / (2 * self.radius_m)
        return out


def local_frame(points_cam1: np.ndarray, T_world_cam1: np.ndarray) -> LocalFrame:
    """The frame at the median of points [N, 3]; in a local world up is across their plane."""
    centre = np.median(points_cam1, axis=0)
    world = geometry.transform(T_world_cam1, centre)
    radius = np.linalg.norm(world)
    if radius > MOON_CENTRED_M:
        up = T_world_cam1[:3, :3].T @ (world / radius)
    else:
        radius = np.inf
        up = np.linalg.eigh(np.cov((points_cam1 - points_cam1.mean(0)).T))[1][:, 0]
        up = up if up @ centre < 0 else -up
    along = np.eye(3)[0 if abs(up[0]) < 0.9 else 1]  # terrain seen edge-on: along the columns
    x = along - (along @ up) * up
    x /= np.linalg.norm(x)
    T = np.eye(4)
    T[:3, :3] = np.stack([x, np.cross(up, x), up])
    T[:3, 3] = -T[:3, :3] @ centre
    return LocalFrame(T, float(radius))


@dataclasses.dataclass(frozen=True)
class Grid:
    """Square cells: cell (i, j) is at y0 + i * cell_m, x0 + j * cell_m, its lower corner."""

    x0: float
    y0: float
    cell_m: float
    rows: int
    columns: int

    @classmethod
    def over(cls, xy: np.ndarray, cell_m: float) -> Grid:
        """Around all but the outermost of points [N, 2]."""
        low, high = np.percentile(xy, [0.5, 99.5], axis=0)
        cell_m = max(cell_m, float((high - low).max()) / MOST_CELLS)
        columns, rows = np.maximum(np.ceil((high - low) / cell_m).astype(int), 1)
        return cls(float(low[0]), float(low[1]), float(cell_m), int(rows), int(columns))


def rasterise(points: np.ndarray, grid: Grid) -> np.ndarray:
    """Median height of the points [N, 3] in each cell: [rows, columns], NaN in empty ones."""
    column = np.floor((points[:, 0] - grid.x0) / grid.cell_m)
    row = np.floor((points[:, 1] - grid.y0) / grid.cell_m)
    inside = (column >= 0) & (column < grid.columns) & (row >= 0) & (row < grid.rows)
    cell = (row[inside] * grid.columns + column[inside]).astype(np.int64)
    height = points[inside, 2]
    order = np.lexsort((height, cell))
    cell, height = cell[order], height[order]
    cells, first, count = np.unique(cell, return_index=True, return_counts=True)
    out = np.full(grid.rows * grid.columns, np.nan)
    out[cells] = (height[first + (count - 1) // 2] + height[first + count // 2]) / 2
    return out.reshape(grid.rows, grid.columns)


def fill(dem: np.ndarray) -> np.ndarray:
    """Every empty cell gets the height of the nearest known one."""
    empty = ~np.isfinite(dem)
    if empty.all() or not empty.any():
        return dem
    nearest = ndimage.distance_transform_edt(empty, return_distances=False, return_indices=True)
    return dem[tuple(nearest)]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Of the plane fitted to the window about each cell; NaN where too little of it is known.

    slope_deg:   [rows, columns]  angle of the plane to the horizontal
    roughness_m: [rows, columns]  standard deviation of the heights about the plane
    """

    slope_deg: np.ndarray
    roughness_m: np.ndarray


def windows(dem: np.ndarray, cell_m: float, window: int = WINDOW) -> Windows:
    """Fits a plane to the known cells of each window: at least half, and its middle."""
    known = np.isfinite(dem)
    half = window // 2
    offset = np.arange(-half, half + 1) * cell_m
    x, y = np.meshgrid(offset, offset)
    mean = np.mean(dem[known]) if known.any() else 0.0  # keeps squares small
    z = np.where(known, dem - mean, 0.0)

    def sums(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return ndimage.correlate(values, kernel, mode="constant")

    ones, mask = np.ones_like(x), known.astype(np.float64)
    n, nx, ny = (sums(mask, k) for k in (ones, x, y))
    nxx, nxy, nyy = (sums(mask, k) for k in (x * x, x * y, y * y))
    z0, zx, zy = (sums(z, k) for k in (ones, x, y))
    zz = sums(z * z, ones)
    A = np.stack([nxx, nxy, nx, nxy, nyy, ny, nx, ny, n], -1).reshape(*dem.shape, 3, 3)
    b = np.stack([zx, zy, z0], -1)
    enough = known & (n >= (window * window + 1) // 2)
    A = np.where(enough[..., None, None], A, np.eye(3))
    # Cells along one line fix no plane; they have as many unknowns as the determinant has zeros.
    scale = np.array([cell_m, cell_m, 1.0])
    enough &= np.abs(np.linalg.det(A / scale / scale[:, None])) > 1e-6
    A = np.where(enough[..., None, None], A, np.eye(3))
    plane = np.linalg.solve(A, b[..., None])[..., 0]
    left = np.maximum(zz - (plane * b).sum(-1), 0.0) / np.maximum(n, 1)
    slope = np.degrees(np.arctan(np.hypot(plane[..., 0], plane[..., 1])))
    return Windows(np.where(enough, slope, np.nan), np.where(enough, np.sqrt(left), np.nan))


def half_step(depth_m: np.ndarray) -> np.ndarray:
    """The largest rounding error of a depth stored as HALF (float16): [...], metres."""
    exponent = np.floor(np.log2(np.maximum(depth_m, 1.0)))
    return 0.5 * np.exp2(exponent - 10)


def dequantise(depth_m: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Depth [H, W] without the terraces that storing it as HALF made; 0 where not valid.

    StereoLunar's depths have steps of 16 m at 30 km, which would pass for slopes. Smoothed by a
    Gaussian and corrected once by what that took away ("twicing", Tukey 1977), which leaves
    quadratic ground as it is. Only where nearly all surroundings then stay within the rounding
    error: elsewhere the ground is rougher than the steps, and smoothing would lose more than they.
    """
    stored = fill(np.where(valid, depth_m, np.nan).astype(np.float64))
    step = half_step(stored)

    def smooth(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, SMOOTHING_PX, mode="nearest")

    once = smooth(stored)
    change = 2 * once - smooth(once) - stored
    explained = smooth((np.abs(change) <= step).astype(np.float64))
    trust = np.clip((explained - TRUSTED) / (1 - TRUSTED), 0, 1)
    return np.where(valid, stored + trust * np.clip(change, -step, step), 0.0)
