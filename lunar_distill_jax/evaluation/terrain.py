"""What a lander asks: heights, slopes, roughness and hazards on a local terrain model.

Truth and prediction are rasterised to one grid in one local frame; the truth is de-quantised first.
A prediction's empty cells take the nearest height, so that all models answer for the same cells.
The ground truth as it is stored, scored as a prediction, gives the noise floor of every number.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.evaluation.catalogue import Metric
from lunar_distill_jax.evaluation.metrics import GroundTruth
from lunar_distill_jax.twoview import dem
from lunar_distill_jax.types import StereoPair

CELL_GSD = 2.0  # ground samples along the edge of a cell
HAZARD_DEG = (5, 10, 15, 20)
FALSE_ALARM = 0.05  # of the safe cells, at which misses are counted
FEWEST = 20  # cells that must be safe, and unsafe, for a rate of either

METRICS = {
    "height_rmse_m": Metric(
        "Height RMSE", "m", -1, ".0f", "terrain", "after removing the mean difference"
    ),
    "height_rmse_tilt_m": Metric(
        "Height RMSE, untilted", "m", -1, ".0f", "terrain", "after removing a plane"
    ),
    "slope_mae_deg": Metric("Slope error", "degrees", -1, ".2f", "terrain", "mean absolute"),
    "slope_bias_deg": Metric(
        "Slope bias", "degrees", 0, "+.2f", "terrain", "predicted minus true, mean", detail=True
    ),
    "roughness_mae_m": Metric(
        "Roughness error", "m", -1, ".1f", "terrain", "mean absolute, of sd about the plane"
    ),
    "dem_coverage_pct": Metric(
        "Cells covered", "%", +1, ".1f", "terrain", "true cells that have predicted points"
    ),
    **{
        f"hazard_{t}_{key}_pct": Metric(
            f"{word} at {t}°", unit, -1, ".1f", "hazard", about, detail=key != "miss"
        )
        for t in HAZARD_DEG
        for key, word, unit, about in (
            ("miss", "Missed", "% of unsafe", "unsafe cells called safe, at 5 % false alarms"),
            ("miss_nominal", "Missed, nominal", "% of unsafe", "called safe at the same limit"),
            ("false_alarm", "False alarms, nominal", "% of safe", "at the same limit"),
        )
    },
}


@dataclasses.dataclass(frozen=True)
class Terrain:
    """The reference of one pair: [rows, columns] each, NaN where not known.

    height_m, slope_deg, roughness_m: of the de-quantised truth
    """

    frame: dem.LocalFrame
    grid: dem.Grid
    height_m: np.ndarray
    slope_deg: np.ndarray
    roughness_m: np.ndarray

    @property
    def baseline_m(self) -> float:
        """Edge of the window that slopes are taken over."""
        return dem.WINDOW * self.grid.cell_m


def reference(pair: StereoPair, truth: GroundTruth, gsd_m: np.ndarray) -> Terrain:
    """Rasterises the true points of both views. gsd_m: [2, H, W], metres a pixel covers."""
    smooth = [
        geometry.backproject(dem.dequantise(z, valid), K)
        for z, valid, K in zip(pair.depth_m, pair.valid, pair.K, strict=True)
    ]
    smooth[1] = geometry.transform(geometry.relative_pose(pair.T_world_cam), smooth[1])
    points = np.stack(smooth)[truth.valid]
    frame = dem.local_frame(points, pair.T_world_cam[0])
    local = frame(points)
    grid = dem.Grid.over(local[:, :2], CELL_GSD * float(np.median(gsd_m[truth.valid])))
    height = dem.rasterise(local, grid)
    fit = dem.windows(height, grid.cell_m)
    return Terrain(frame, grid, height, fit.slope_deg, fit.roughness_m)


def model(points_cam1: np.ndarray, terrain: Terrain) -> tuple[np.ndarray, dem.Windows, float]:
    """A prediction on the cells of the reference: heights, windows, fraction of cells it covers.

    points_cam1: [N, 3], metres
    """
    height = dem.rasterise(terrain.frame(points_cam1), terrain.grid)
    known = np.isfinite(terrain.height_m)
    covered = float(np.isfinite(height[known]).mean())
    height = np.where(known, dem.fill(height), np.nan)
    return height, dem.windows(height, terrain.grid.cell_m), covered


def terrain_metrics(points_cam1: np.ndarray, terrain: Terrain) -> dict[str, float]:
    """All `METRICS` of points [N, 3] in camera 1, metres; rates are NaN with too few cells."""
    height, fit, covered = model(points_cam1, terrain)
    values = dict.fromkeys(METRICS, np.nan) | {"dem_coverage_pct": 100 * covered}
    if covered:
        known = np.isfinite(terrain.height_m)
        difference = (height - terrain.height_m)[known]
        both = np.isfinite(terrain.slope_deg) & np.isfinite(fit.slope_deg)
        values["height_rmse_m"] = difference.std()
        values["height_rmse_tilt_m"] = _untilted(difference, np.argwhere(known)).std()
        if both.any():
            slope, true_slope = fit.slope_deg[both], terrain.slope_deg[both]
            values["slope_mae_deg"] = np.abs(slope - true_slope).mean()
            values["slope_bias_deg"] = (slope - true_slope).mean()
            rough = np.abs(fit.roughness_m - terrain.roughness_m)[both]
            values["roughness_mae_m"] = rough.mean()
            values |= hazard_rates(slope, true_slope)
    return {name: float(values[name]) for name in METRICS}


def _untilted(difference: np.ndarray, cells: np.ndarray) -> np.ndarray:
    A = np.concatenate([cells - cells.mean(0), np.ones((len(cells), 1))], 1)
    return difference - A @ np.linalg.lstsq(A, difference, rcond=None)[0]


def hazard_rates(slope: np.ndarray, true_slope: np.ndarray) -> dict[str, float]:
    """Misses and false alarms in %, both [N] in degrees; NaN below `FEWEST` cells of a class."""
    values = {}
    for t in HAZARD_DEG:
        unsafe = true_slope >= t
        names = [f"hazard_{t}_{key}_pct" for key in ("miss", "miss_nominal", "false_alarm")]
        rates = [np.nan] * 3
        if min(unsafe.sum(), (~unsafe).sum()) >= FEWEST:
            limit = np.quantile(slope[~unsafe], 1 - FALSE_ALARM)
            rates = [
                100 * (slope[unsafe] <= limit).mean(),
                100 * (slope[unsafe] < t).mean(),
                100 * (slope[~unsafe] >= t).mean(),
            ]
        values |= dict(zip(names, map(float, rates), strict=True))
    return values
