"""Loss curves as an inline SVG: crisp at any size, coloured by the page's style sheet."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 128, 14, 44
NOT_LOSSES = {"step", "lr", "grad_norm", "skipped", "seconds", "time", "eta", "epoch"}
SERIES = 6  # line styles in style.css: s0 is the total


def loss_curves(history: Sequence[dict[str, float]]) -> str:
    """An <svg> of the loss and its terms against the step; "" when there is nothing to draw.

    history: rows {"step": int, "loss": float, ...terms}. The vertical axis is logarithmic unless a
    value is zero or negative.
    """
    series = _series(history)
    if not series:
        return ""
    values = np.concatenate([y for _, y in series.values()])
    log = bool((values > 0).all())
    steps = np.concatenate([x for x, _ in series.values()])
    x_axis = Axis(steps.min(), steps.max(), LEFT, WIDTH - RIGHT, log=False)
    y_axis = Axis(values.min(), values.max(), HEIGHT - BOTTOM, TOP, log=log)
    label = "Training loss against step" + (", logarithmic" if log else "")
    return "\n".join(
        [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">',
            *_grid(x_axis, y_axis),
            *_lines(series, x_axis, y_axis),
            *_names(series, y_axis),
            "</svg>",
        ]
    )


class Axis:
    """Maps values to SVG coordinates, in pixels; `log` axes show powers of ten."""

    def __init__(self, lo: float, hi: float, start: float, end: float, *, log: bool):
        self.log, self.start, self.end = log, start, end
        self.lo, self.hi = (np.log10([lo, hi])) if log else (float(lo), float(hi))
        margin = 0.04 * (self.hi - self.lo) if log else 0.0
        self.lo, self.hi = self.lo - margin, self.hi + margin
        if self.hi - self.lo < 1e-9:
            self.lo, self.hi = self.lo - 0.5, self.hi + 0.5

    def __call__(self, value):
        value = np.log10(value) if self.log else np.asarray(value, float)
        return self.start + (value - self.lo) / (self.hi - self.lo) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if not self.log:
            return _round_ticks(self.lo, self.hi)
        for steps in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
            decades = range(int(np.floor(self.lo)), int(np.ceil(self.hi)) + 1)
            found = [s * 10.0**d for d in decades for s in steps]
            found = [t for t in found if self.lo <= np.log10(t) <= self.hi]
            if len(found) >= 3:
                return found
        return _round_ticks(10**self.lo, 10**self.hi)


def _round_ticks(lo: float, hi: float, about: int = 5) -> list[float]:
    """Round numbers inside [lo, hi]."""
    raw = (hi - lo) / about
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    # Adding zero makes a negative zero an ordinary one.
    return [float(t) + 0.0 for t in np.arange(np.ceil(lo / step), np.floor(hi / step) + 1) * step]


def _series(history) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Finite (steps, values) of every loss term, the total first."""
    names = dict.fromkeys(k for row in history for k in row if k not in NOT_LOSSES)
    names = sorted(names, key=lambda n: n != "loss")[:SERIES]
    out = {}
    for name in names:
        rows = [(float(r["step"]), float(r[name])) for r in history if name in r and "step" in r]
        xy = np.array([p for p in rows if np.isfinite(p).all()]).reshape(-1, 2)
        if len(xy):
            out[name] = (xy[:, 0], xy[:, 1])
    return out


def _smooth(y: np.ndarray) -> np.ndarray:
    """Centred running mean over about a twentieth of the curve, shorter at its ends."""
    reach = len(y) // 40
    return np.array([np.mean(y[max(0, i - reach) : i + reach + 1]) for i in range(len(y))])


def _thin(x: np.ndarray, y: np.ndarray, points: int = 500):
    keep = np.unique(np.linspace(0, len(x) - 1, points).round().astype(int))
    return x[keep], y[keep]


def _lines(series, x_axis: Axis, y_axis: Axis) -> list[str]:
    """Every term as it was logged, faint, below its running mean."""
    parts = []
    for i, (x, y) in enumerate(series.values()):
        for kind, values in (("raw", y), ("line", _smooth(y))):
            u, w = _thin(x, values)
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x_axis(u), y_axis(w), strict=True))
            parts.append(f'<polyline class="{kind} s{i}" points="{points}"/>')
    return parts


def _names(series, y_axis: Axis) -> list[str]:
    """A name with the last value at the end of each line, moved apart where lines end together."""
    last = {name: float(_smooth(y)[-1]) for name, (_, y) in series.items()}
    order = {name: i for i, name in enumerate(series)}
    falling = sorted(last, key=lambda n: -last[n])
    heights = np.array([float(y_axis(last[name])) for name in falling])
    gap = 15.0 * np.arange(len(falling))
    heights = np.maximum.accumulate(heights - gap) + gap
    heights = np.minimum(heights, HEIGHT - BOTTOM - gap[::-1])
    return [
        f'<text class="name s{order[name]}" x="{WIDTH - RIGHT + 8}" y="{y + 4:.1f}">'
        f"{html.escape(name)} <tspan>{last[name]:.3g}</tspan></text>"
        for name, y in zip(falling, heights, strict=True)
    ]


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    parts = []
    for t in y_axis.ticks():
        y = float(y_axis(t))
        parts.append(
            f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{t:g}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for t in x_axis.ticks():
        x = float(x_axis(t))
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{t:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">step</text>')
    return parts
