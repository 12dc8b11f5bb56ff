"""What a lander would see of a prediction: heights, slopes and hazards on the terrain model."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping

import numpy as np

from lunar_distill_jax.evaluation import ours, terrain
from lunar_distill_jax.evaluation.metrics import aligned
from lunar_distill_jax.report import figures, pairs, tables
from lunar_distill_jax.types import PointMaps

HAZARD_DEG = 10.0  # the threshold that is drawn
CLASSES = (  # value, name, colour: dark and bright tell apart what hue does not
    (0, "safe, called safe", "#dfe7ee"),
    (1, "unsafe, called unsafe", "#6699cc"),
    (2, "false alarm", "#eecc66"),
    (3, "missed", "#994455"),
)


@dataclasses.dataclass(frozen=True)
class Ground:
    """One surface on the cells of the reference: [rows, columns], NaN where not known."""

    height_m: np.ndarray
    slope_deg: np.ndarray


def true_ground(truth: ours.Truth) -> Ground:
    return Ground(truth.terrain.height_m, truth.terrain.slope_deg)


def predicted_ground(prediction: PointMaps, truth: ours.Truth) -> Ground:
    """The prediction at the scale of the truth; its mean height is the truth's."""
    fitted = aligned(prediction, truth.surface)
    points = fitted.scale * fitted.points[truth.surface.valid]
    height, fit, _ = terrain.model(points, truth.terrain)
    return Ground(height - np.nanmean(height - truth.terrain.height_m), fit.slope_deg)


def hazard_classes(predicted: Ground, true: Ground, limit_deg: float = HAZARD_DEG) -> np.ndarray:
    """Index into `CLASSES` of each cell, NaN where a slope is not known."""
    known = np.isfinite(predicted.slope_deg) & np.isfinite(true.slope_deg)
    unsafe, called = true.slope_deg >= limit_deg, predicted.slope_deg >= limit_deg
    index = np.where(unsafe, np.where(called, 1, 3), np.where(called, 2, 0))
    return np.where(known, index, np.nan)


def section(truth: ours.Truth, predictions: Mapping[str, PointMaps]) -> str:
    """HTML: columns are the truth and the models, rows are height, slope and hazards."""
    true = true_ground(truth)
    columns = {"ground_truth": true} | {
        name: predicted_ground(p, truth)
        for name, p in predictions.items()
        if np.isfinite(p.points_cam1).any()
    }
    height = figures.relief_scale(true.height_m)
    slope = figures.slope_scale(true.slope_deg)
    cells = ['<div class="corner"></div>']
    cells += [
        f'<div class="head"><h3>{html.escape(tables.model_name(n))}</h3></div>' for n in columns
    ]
    for label, note, values, scale in (
        ("Height", "above the sphere through the middle", lambda g: g.height_m, height),
        ("Slope", _window(truth), lambda g: g.slope_deg, slope),
    ):
        cells.append(_label(label, note, _bar(scale)))
        cells += [
            _cell(figures.paint(values(g)[::-1], scale), f"{label}, {n}")
            for n, g in columns.items()
        ]
    cells.append(_label("Hazards", f"slopes of {HAZARD_DEG:g}° and more are unsafe", _classes()))
    cells.append('<div class="cell none"></div>')
    cells += [
        _cell(classes_png(hazard_classes(g, true)[::-1]), f"Hazards, {n}")
        for n, g in columns.items()
        if n != "ground_truth"
    ]
    return f'<div class="maps ground" style="--columns:{len(columns)}">{"".join(cells)}</div>'


def classes_png(index: np.ndarray) -> bytes:
    """A palette PNG of class indices [rows, columns]; transparent where NaN."""
    known = np.isfinite(index)
    colours = np.zeros((figures.LEVELS, 3), np.uint8)
    for value, _, colour in CLASSES:
        colours[value] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    filled = np.where(known, index, figures.LEVELS).astype(np.uint8)
    return figures.palette_png(filled, colours, {"Title": "hazard classes"})


def _window(truth: ours.Truth) -> str:
    return f"of planes over {truth.terrain.baseline_m / 1000:.1f} km"


def _label(name: str, note: str, extra: str) -> str:
    return f'<div class="rowlabel"><h4>{name}</h4><p>{html.escape(note)}</p>{extra}</div>'


def _cell(png: bytes, alt: str) -> str:
    return f'<div class="cell"><img src="{figures.data_uri(png)}" alt="{html.escape(alt)}"></div>'


def _bar(scale: figures.Scale) -> str:
    ends = "".join(f"<span>{pairs.tick_text(t)}</span>" for t in scale.ticks)
    bar = figures.data_uri(figures.colour_bar(scale.cmap))
    unit = html.escape(scale.unit)
    picture = f'<img src="{bar}" alt="">'
    return f'<div class="bar">{picture}<div>{ends}</div><span class="unit">{unit}</span></div>'


def _classes() -> str:
    return "".join(
        f'<p class="class"><i style="background:{colour}"></i>{html.escape(name)}</p>'
        for _, name, colour in CLASSES
    )
