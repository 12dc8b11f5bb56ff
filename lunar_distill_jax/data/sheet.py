"""A sheet of augmented pairs with their correspondences drawn, for people to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from lunar_distill_jax.data.correspondences import Correspondences
from lunar_distill_jax.types import StereoPair

INK, QUIET = "#1b1b1f", "#6b6b75"
SHOWN = 24  # matches of each pair that are drawn; they are numbered by their colour
COLUMNS = 2  # pairs side by side


def _spread(points: np.ndarray, count: int) -> np.ndarray:
    """Indices of up to `count` points that lie far from each other (farthest point sampling)."""
    if not len(points):
        return np.zeros(0, int)
    chosen = [0]
    distance = np.full(len(points), np.inf)
    while len(chosen) < min(count, len(points)):
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return np.array(chosen)


def save_sheet(
    rows: Sequence[tuple[StereoPair, Correspondences | None]], path: str | os.PathLike
) -> None:
    """Draws two pairs a row: view 1 and view 2 with matches as dots of one colour, joined by a thin
    line, and pixels without a partner as crosses. What has no depth is tinted red."""
    import matplotlib
    from matplotlib.figure import Figure  # only here: half a second to import

    lines = -(-len(rows) // COLUMNS)
    figure = Figure(figsize=(6.6 * COLUMNS, 3.55 * lines), facecolor="white", layout="constrained")
    axes = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (pair, found) in zip(axes, rows, strict=False):
        width = pair.image.shape[2]
        gap = max(2, width // 40)
        canvas = np.full((pair.image.shape[1], 2 * width + gap, 3), 255, np.uint8)
        for view, left in ((0, 0), (1, width + gap)):
            image = pair.image[view].copy()
            unknown = ~pair.valid[view]
            image[unknown] = (0.6 * image[unknown] + 0.4 * np.array([200, 30, 30])).astype(np.uint8)
            canvas[:, left : left + width] = image
        axis.imshow(canvas, interpolation="nearest")
        title = f"{pair.name}"
        if found is not None:
            title += _draw(axis, found, width + gap, matplotlib.colormaps["turbo"])
        axis.set_title(title, loc="left", fontsize=7.5, color=INK)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw(axis, found: Correspondences, offset: int, colours) -> str:
    ok = np.flatnonzero(found.valid)
    ok = ok[_spread(found.pixels1[ok].astype(float), SHOWN)]
    for place, i in enumerate(ok):
        (x1, y1), (x2, y2) = found.pixels1[i], found.pixels2[i]
        colour = colours(0.05 + 0.9 * place / max(len(ok) - 1, 1))
        axis.plot([x1, x2 + offset], [y1, y2], color=colour, linewidth=0.5, alpha=0.7)
        axis.plot(
            [x1, x2 + offset],
            [y1, y2],
            "o",
            color=colour,
            markersize=3.6,
            markeredgecolor="white",
            markeredgewidth=0.4,
        )
    alone = np.flatnonzero(~found.valid)
    for pixels, shift in ((found.pixels1, 0), (found.pixels2, offset)):
        some = pixels[alone[_spread(pixels[alone].astype(float), SHOWN // 2)]]
        axis.plot(some[:, 0] + shift, some[:, 1], "x", color="white", markersize=3.2, alpha=0.9)
    return f"   {found.valid.sum()} matches, {(~found.valid).sum()} without partner"
