"""Small charts as inline SVG, coloured by the page's style sheet; shapes tell what colours do."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np

from lunar_distill_jax.report.curves import Axis

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 46
ROW = 26  # pixels of a line of `intervals`
GLYPH = 6.6  # pixels of a letter of a name at the left of `intervals`, at least
SHAPES = (  # drawn about (0, 0)
    '<circle r="3.6"/>',
    '<rect x="-3.2" y="-3.2" width="6.4" height="6.4"/>',
    '<path d="M0-4.4 4.2 3.2H-4.2Z"/>',
    '<path d="M0-4.8 4.2 0 0 4.8-4.2 0Z"/>',
    '<path d="M-4.4-1.2H-1.2V-4.4H1.2V-1.2H4.4V1.2H1.2V4.4H-1.2V1.2H-4.4Z"/>',
)


def style(index: int) -> str:
    """The colour class of a series; the ink itself is left for what is no series."""
    return f"s{1 + index % 5}"


def shape(index: int) -> str:
    """The mark of a series; with its colour it is unlike that of the 24 others."""
    return SHAPES[(index + index // 5) % len(SHAPES)]


def tick_text(value: float) -> str:
    """A number beside an axis, with a real minus."""
    return f"{value:g}".replace("-", "−")


def scatter(
    series: Mapping[str, Sequence[tuple[float, float, str]]],
    x_label: str,
    y_label: str,
    *,
    log_y: bool = True,
) -> str:
    """Points (x, y, title) by series, each with a shape and a colour of its own; "" without any."""
    known = {
        name: [p for p in points if np.isfinite(p[:2]).all() and (p[1] > 0 or not log_y)]
        for name, points in series.items()
    }
    everything = [p for points in known.values() for p in points]
    if not everything:
        return ""
    x, y = np.array([p[:2] for p in everything], float).T
    axes = _axes(x, y, log_y)
    parts = [*_frame(axes, x_label, y_label)]
    for i, points in enumerate(known.values()):
        for px, py, title in points:
            u, v = float(axes[0](px)), float(axes[1](py))
            parts.append(_mark(i, u, v, title))
    names = [name if points else "" for name, points in known.items()]
    return _svg(parts, WIDTH, HEIGHT, f"{y_label} against {x_label}") + legend(names)


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    *,
    dashed: tuple[str, np.ndarray, np.ndarray] | None = None,
) -> str:
    """Curves (x, y) by name, both axes linear and y from zero; "" without any.

    dashed: a curve (name, x, y) to judge the others by, in ink
    """
    curves = {name: (np.asarray(x), np.asarray(y)) for name, (x, y) in series.items() if len(x)}
    if not curves:
        return ""
    x, y = (np.concatenate([curve[i] for curve in curves.values()]) for i in (0, 1))
    axes = _axes(x, np.append(y, 0.0), False)
    parts = [*_frame(axes, x_label, y_label)]
    for i, (name, (cx, cy)) in enumerate(curves.items()):
        points = " ".join(f"{u:.1f},{v:.1f}" for u, v in zip(axes[0](cx), axes[1](cy), strict=True))
        parts.append(f'<polyline class="line {style(i)}" points="{points}"/>')
        parts += [
            _mark(i, float(axes[0](cx[j])), float(axes[1](cy[j])), name)
            for j in range(0, len(cx), 5)
        ]
    key = legend(list(curves))
    if dashed is not None:
        name, cx, cy = dashed
        points = " ".join(f"{u:.1f},{v:.1f}" for u, v in zip(axes[0](cx), axes[1](cy), strict=True))
        parts.append(f'<polyline class="line s0" points="{points}" stroke-dasharray="5 4"/>')
        key = legend(list(curves), name)
    return _svg(parts, WIDTH, HEIGHT, f"{y_label} against {x_label}") + key


def intervals(
    rows: Sequence[tuple[str, float, tuple[float, float] | None, str]],
    x_label: str,
    *,
    zero: bool = True,
    log: bool = False,
) -> str:
    """One line a row (name, centre, interval or None, text at its right); "" without any.

    zero: draw and include the line of no difference
    """
    rows = [row for row in rows if np.isfinite(row[1])]
    if not rows:
        return ""
    ends = [
        e for _, c, i, _ in rows for e in (c, *(i or ())) if np.isfinite(e) and (e > 0 or not log)
    ]
    width, height = 760, 2 * TOP + ROW * len(rows) + BOTTOM - 8
    values = np.array([*ends, *([0.0] if zero else [])])
    left = max(120.0, 24 + GLYPH * max(len(name) for name, *_ in rows))
    margin = 0.0 if log else 0.03 * np.ptp(values)
    axis = Axis(values.min() - margin, values.max() + margin, left, width - 110, log=log)
    base = TOP + ROW * len(rows)
    parts = []
    for tick in axis.ticks():
        u = float(axis(tick))
        parts.append(f'<line class="rule" x1="{u:.1f}" x2="{u:.1f}" y1="{TOP}" y2="{base}"/>')
        parts.append(
            f'<text x="{u:.1f}" y="{base + 17}" text-anchor="middle">{tick_text(tick)}</text>'
        )
    if zero:
        u = float(axis(0.0))
        parts.append(f'<line class="axis" x1="{u:.1f}" x2="{u:.1f}" y1="{TOP}" y2="{base}"/>')
    for i, (name, centre, interval, text) in enumerate(rows):
        v = TOP + ROW * (i + 0.5)
        parts.append(
            f'<text x="{left - 12:.1f}" y="{v + 4:.1f}" text-anchor="end">'
            f"{html.escape(name)}</text>"
        )
        if interval is not None and np.isfinite(interval).all():
            a, b = (float(axis(e)) for e in interval)
            parts.append(
                f'<line class="reach" x1="{a:.1f}" x2="{b:.1f}" y1="{v:.1f}" y2="{v:.1f}"/>'
            )
        parts.append(_mark(0, float(axis(centre)), v, f"{name}: {text}"))
        parts.append(
            f'<text class="value" x="{width - 100}" y="{v + 4:.1f}">{html.escape(text)}</text>'
        )
    parts.append(
        f'<text x="{(left + width - 110) / 2:.1f}" y="{base + 36}" text-anchor="middle">'
        f"{html.escape(x_label)}</text>"
    )
    return _svg(parts, width, height, x_label)


def legend(names: Sequence[str], dashed: str = "") -> str:
    """Shapes and colours of the series, in words; nothing where there is one only.

    names: "" for a series that is not drawn
    """
    if len(names) < 2 and not dashed:
        return ""
    items = "".join(
        f'<span><svg class="chart key" viewBox="-6 -6 12 12" aria-hidden="true">'
        f'<g class="mark {style(i)}">{shape(i)}</g></svg>{html.escape(name)}</span>'
        for i, name in enumerate(names)
        if name
    )
    if dashed:
        items += (
            '<span><svg class="chart key" viewBox="-6 -6 12 12" aria-hidden="true">'
            '<path class="dash" d="M-6 0H-1M2 0H6"/></svg>'
            f"{html.escape(dashed)}</span>"
        )
    return f'<p class="keys">{items}</p>'


def _mark(index: int, u: float, v: float, title: str) -> str:
    return (
        f'<g class="mark {style(index)}" transform="translate({u:.1f} {v:.1f})">'
        f"{shape(index)}<title>{html.escape(title)}</title></g>"
    )


def _axes(x: np.ndarray, y: np.ndarray, log_y: bool) -> tuple[Axis, Axis]:
    reach = max(float(np.ptp(x)), 1e-12)
    return (
        Axis(x.min() - 0.03 * reach, x.max() + 0.03 * reach, LEFT, WIDTH - RIGHT, log=False),
        Axis(y.min(), y.max(), HEIGHT - BOTTOM, TOP, log=log_y),
    )


def _frame(axes: tuple[Axis, Axis], x_label: str, y_label: str) -> list[str]:
    parts, base = [], HEIGHT - BOTTOM
    for tick in axes[1].ticks():
        v = float(axes[1](tick))
        parts.append(
            f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{v:.1f}" y2="{v:.1f}"/>'
        )
        parts.append(
            f'<text x="{LEFT - 8}" y="{v + 4:.1f}" text-anchor="end">{tick_text(tick)}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for tick in axes[0].ticks():
        u = float(axes[0](tick))
        parts.append(f'<line class="axis" x1="{u:.1f}" x2="{u:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(
            f'<text x="{u:.1f}" y="{base + 18}" text-anchor="middle">{tick_text(tick)}</text>'
        )
    middle, centre = (LEFT + WIDTH - RIGHT) / 2, (TOP + base) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    parts.append(
        f'<text transform="translate(12 {centre}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_label)}</text>"
    )
    return parts


def _svg(parts: Sequence[str], width: int, height: int, label: str) -> str:
    body = "\n".join(parts)
    return (
        f'<svg class="chart small" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(label)}" style="max-width:{width}px">\n{body}\n</svg>'
    )
