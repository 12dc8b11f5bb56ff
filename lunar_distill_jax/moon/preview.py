"""A contact sheet of stereo pairs: both photographs, depth and slope."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.types import StereoPair

INK, PAPER = "#1b1b1f", "#ffffff"
CAPTIONS = ("view 1", "view 2", "z-depth of view 1", "slope of view 1")


def slope_deg(pair: StereoPair, view: int) -> np.ndarray:
    """Slope of the ground against the local vertical, degrees [H, W]; nan where not valid."""
    points = geometry.backproject(pair.depth_m[view], pair.K[view])
    points[~pair.valid[view]] = np.nan
    points = geometry.transform(pair.T_world_cam[view], points)  # [H, W, 3]
    down, right = np.gradient(points, axis=(0, 1))
    normal = np.cross(down, right)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    up = points / np.linalg.norm(points, axis=-1, keepdims=True)
    return np.rad2deg(np.arccos(np.clip(np.abs((normal * up).sum(-1)), 0.0, 1.0)))


def describe(pair: StereoPair) -> str:
    """Baseline, depth and their ratio in a few words."""
    baseline = np.linalg.norm(pair.T_world_cam[1, :3, 3] - pair.T_world_cam[0, :3, 3])
    depth = np.median(pair.depth_m[0][pair.valid[0]])
    return (
        f"baseline {baseline / 1e3:.2f} km, depth {depth / 1e3:.1f} km, B/Z {baseline / depth:.2f}"
    )


def save_contact_sheet(pairs: Sequence[StereoPair], path: str | os.PathLike) -> None:
    """Draws one row a pair: view 1, view 2, z-depth and slope of view 1."""
    from matplotlib.figure import Figure  # only here: half a second to import

    rows = len(pairs)
    figure = Figure(figsize=(13.0, 3.2 * rows), facecolor=PAPER, layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False)
    for row, pair in zip(axes, pairs, strict=True):
        depth_km = np.where(pair.valid[0], pair.depth_m[0] / 1e3, np.nan)
        slope = slope_deg(pair, 0)
        low, high = np.nanpercentile(depth_km, [0.5, 99.5])
        row[0].imshow(pair.image[0])
        row[1].imshow(pair.image[1])
        shown = row[2].imshow(depth_km, cmap="viridis_r", vmin=low, vmax=high)
        figure.colorbar(shown, ax=row[2], fraction=0.046, pad=0.02, label="km")
        shown = row[3].imshow(slope, cmap="magma", vmin=0, vmax=35)
        figure.colorbar(shown, ax=row[3], fraction=0.046, pad=0.02, label="degrees")
        row[0].set_title(pair.name, loc="left", fontsize=10, fontweight="bold", color=INK)
        row[2].set_title(describe(pair), loc="left", fontsize=8.5, color=INK)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        for axis, caption in zip(row, CAPTIONS, strict=True):
            axis.set_xlabel(caption, fontsize=8.5, color=INK)
    # No software version in the file, so that equal pairs give equal bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})
