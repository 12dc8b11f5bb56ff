"""The section of the page that shows one pair: photographs, maps side by side, numbers."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping

import numpy as np

from lunar_distill_jax.report import cloud, figures, maps, tables
from lunar_distill_jax.types import PointMaps, StereoPair

MAP_SIDE = 176  # pixels; larger frames are thinned to this for maps and clouds, not for photographs

ROWS = {
    "depth": ("Depth", "along the optical axis of its own camera"),
    "relief": ("Relief", "nearer than the plane fitted to the true depth"),
    "slope": ("Slope", "from neighbouring points, against the local vertical"),
    "error": ("Point error", "distance to the true point of the same pixel"),
    "conf": ("Confidence", "the model's own; it has no unit"),
}
TRUE_ROWS = ("depth", "relief", "slope")  # those the ground truth has a picture in


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A pair with all that the page shows of it.

    small:    the pair at the resolution of the maps; `truth` and `models` are of its size
    pictures: "view1_depth_teacher" -> PNG bytes
    scales:   (view index, row) -> the scale that all pictures of that row share
    cloud:    for the viewer, see `cloud.pack_pair`
    """

    pair: StereoPair
    small: StereoPair
    metrics: Mapping[str, Mapping[str, float]]
    truth: maps.Surface
    models: dict[str, maps.Surface]
    pictures: dict[str, bytes]
    scales: dict[tuple[int, str], figures.Scale]
    cloud: dict


def draw(
    pair: StereoPair,
    predictions: Mapping[str, PointMaps],
    metrics: Mapping[str, Mapping[str, float]],
) -> Drawn:
    """Aligns, maps, colours and packs one pair."""
    photographs = {f"view{v + 1}_photo": figures.photograph(pair.image[v]) for v in range(2)}
    small, predictions = maps.thin(pair, dict(predictions), MAP_SIDE)
    truth, models = maps.surfaces(small, predictions)
    scales = {key: scale for v in range(2) for key, scale in _scales(truth, models, v).items()}
    pictures = photographs | _pictures(truth, models, scales)
    packed = cloud.pack_pair(small, truth, models, scales[0, "conf"])
    packed["error"] = list(scales[0, "error"].ticks)
    packed["conf"] = list(scales[0, "conf"].ticks)
    return Drawn(pair, small, metrics, truth, models, pictures, scales, packed)


def _scales(truth: maps.Surface, models: Mapping[str, maps.Surface], view: int) -> dict:
    """Depth, relief and slope follow the truth of the view; error and confidence all the models."""
    return {
        (view, "depth"): figures.depth_scale(truth.depth_m[view]),
        (view, "relief"): figures.relief_scale(truth.relief_m[view]),
        (view, "slope"): figures.slope_scale(truth.slope_deg[view]),
        (view, "error"): figures.error_scale([m.error_pct for m in models.values()]),
        (view, "conf"): figures.confidence_scale([m.conf for m in models.values()]),
    }


def _values(surface: maps.Surface, row: str) -> np.ndarray:
    """The map [2, H, W] that a row of the page shows of a surface."""
    return {
        "depth": surface.depth_m,
        "relief": surface.relief_m,
        "slope": surface.slope_deg,
        "error": surface.error_pct,
        "conf": surface.conf,
    }[row]


def _pictures(truth: maps.Surface, models: Mapping[str, maps.Surface], scales) -> dict[str, bytes]:
    pictures = {}
    for name, surface in {"ground_truth": truth, **models}.items():
        for row in TRUE_ROWS if name == "ground_truth" else ROWS:
            for v in range(2):
                key = f"view{v + 1}_{row}_{name}"
                pictures[key] = figures.paint(_values(surface, row)[v], scales[v, row], key)
    return pictures


def section(drawn: Drawn, index: int, count: int, *, viewer: bool = True) -> str:
    """The HTML of one pair. `index` from 0 names its radio buttons and the viewer's entry.

    viewer: the page has one, so link to it
    """
    names = ["ground_truth", *drawn.models]
    cells = [_corner(index), _head("ground_truth", _truth_numbers(drawn.truth))]
    cells += [_head(name, _model_numbers(drawn.metrics.get(name, {}))) for name in drawn.models]
    for row in ROWS if drawn.models else TRUE_ROWS:
        cells.append(_row_label(drawn, row))
        cells += [_picture_cell(drawn, row, name) for name in names]
    return "\n".join(
        [
            f'<section class="pair"><h2>{html.escape(drawn.pair.trajectory.capitalize())} pair '
            f'<span class="count">{index + 1} of {count}</span></h2>',
            _photographs(drawn, index, viewer),
            f'<input type="radio" class="pick1" name="view{index}" id="view1-{index}" checked>'
            f'<input type="radio" class="pick2" name="view{index}" id="view2-{index}">',
            f'<div class="maps" style="--columns:{len(names)}">',
            *cells,
            "</div></section>",
        ]
    )


def _photographs(drawn: Drawn, index: int, viewer: bool) -> str:
    figures_html = "".join(
        f"<figure>{_img(drawn.pictures[f'view{v}_photo'], f'Photograph of view {v}', 'photo')}"
        f"<figcaption>View {v}</figcaption></figure>"
        for v in (1, 2)
    )
    facts = {"pair": drawn.pair.name, **maps.pair_facts(drawn.pair)}
    items = "".join(
        f"<dt>{html.escape(k.capitalize())}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()
    )
    link = (
        f'<a class="turn" href="#viewer" data-pair="{index}">See it in 3D ↑</a>' if viewer else ""
    )
    return f'<div class="photographs">{figures_html}<div><dl>{items}</dl>{link}</div></div>'


def _corner(index: int) -> str:
    return (
        f'<div class="corner"><label for="view1-{index}">View 1</label>'
        f'<label for="view2-{index}">View 2</label></div>'
    )


def _truth_numbers(truth: maps.Surface) -> dict[str, str]:
    """Over both views: how rough the ground is, to judge the models' numbers by."""
    relief, slope = (m[np.isfinite(m)] for m in (truth.relief_m, truth.slope_deg))
    if not (relief.size and slope.size):
        return {}
    return {
        "Relief, rms": f"{np.sqrt(np.mean(relief**2)):.0f} m",
        "Slope, median": f"{np.median(slope):.1f}°",
    }


def _model_numbers(metrics: Mapping[str, float]) -> dict[str, str]:
    numbers = {}
    for key in tables.headlines([metrics]):
        metric = tables.metric_of(key)
        percent = " %" if metric.unit.startswith("%") else ""
        numbers[metric.name] = tables.number(metrics[key], metric) + percent
    return numbers


def _head(name: str, numbers: Mapping[str, str]) -> str:
    """A column's name and this pair's numbers."""
    rows = "".join(
        f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in numbers.items()
    )
    tag = tables.ORACLE_TAG if name in tables.ORACLES else ""
    body = f"<dl>{rows}</dl>" if rows else ""
    return f'<div class="head"><h3>{html.escape(tables.model_name(name))}{tag}</h3>{body}</div>'


def _row_label(drawn: Drawn, row: str) -> str:
    name, explanation = ROWS[row]
    bars = "".join(_colour_bar(drawn.scales[v, row], f"v{v + 1}") for v in range(2))
    return f'<div class="rowlabel"><h4>{name}</h4><p>{explanation}</p>{bars}</div>'


def _colour_bar(scale: figures.Scale, css_class: str) -> str:
    ends = "".join(f"<span>{tick_text(t)}</span>" for t in scale.ticks)
    words = ", ".join(filter(None, [scale.unit, "log scale" if scale.log else ""]))
    unit = f'<span class="unit">{html.escape(words)}</span>'
    bar = figures.data_uri(figures.colour_bar(scale.cmap))
    return f'<div class="bar {css_class}"><img src="{bar}" alt=""><div>{ends}</div>{unit}</div>'


def tick_text(value: float) -> str:
    """A number beside a colour bar, with a real minus."""
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−")


def _picture_cell(drawn: Drawn, row: str, name: str) -> str:
    if f"view1_{row}_{name}" not in drawn.pictures:
        return '<div class="cell none"></div>'
    label = f"{ROWS[row][0]}, {tables.model_name(name)}"
    views = "".join(
        _img(drawn.pictures[f"view{v}_{row}_{name}"], f"{label}, view {v}", f"v{v}") for v in (1, 2)
    )
    who = html.escape(tables.model_name(name))
    return f'<div class="cell">{views}<span class="who">{who}</span></div>'


def _img(png: bytes, alt: str, css_class: str) -> str:
    return f'<img class="{css_class}" src="{figures.data_uri(png)}" alt="{html.escape(alt)}">'
