"""The results table: models as rows, metrics as columns; all pairs first, then each trajectory."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterable, Mapping

ORACLES = {"baseline_plane"}  # they have seen the ground truth of the very pair they are scored on

MODEL_NAMES = {
    "ground_truth": "Ground truth",
    "teacher": "Teacher",
    "student_before": "Student before",
    "student_after": "Student after",
    "baseline_mean": "Mean point map",
    "baseline_plane": "Fitted plane",
    "model": "Model",
}


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a number is shown. better: -1 lower, +1 higher, 0 neither."""

    name: str
    unit: str = ""
    better: int = 0
    form: str = ".4g"


METRICS = {
    "abs_rel": Metric("Depth AbsRel", "fraction", -1, ".4f"),
    "point_error_pct": Metric("Point error", "% of depth", -1, ".2f"),
    "point_error_sim3_pct": Metric("Point error, Sim(3)", "% of depth", -1, ".2f"),
    "relief_corr": Metric("Relief correlation", "r", +1, ".3f"),
    "relief_corr_detrended": Metric("Relief corr., detrended", "r", +1, ".3f"),
    "conf_mean": Metric("Mean confidence", "", 0, ".2f"),
}


def model_name(key: str) -> str:
    """A key of metrics.json in words (not escaped)."""
    return MODEL_NAMES.get(key, key.replace("_", " "))


def metric_of(key: str) -> Metric:
    """How to show `key`; a metric we do not know is shown under its own name."""
    return METRICS.get(key, Metric(key.replace("_", " ")))


def number(value: float | None, metric: Metric) -> str:
    """A value in the metric's form; a dash where there is none. The minus sign is a real one."""
    if value is None or not math.isfinite(value):
        return "–"
    return format(value, metric.form).replace("-", "−")


def columns(rows: Iterable[Mapping[str, float]]) -> list[str]:
    """All metric keys, those we know first and in our order."""
    seen = dict.fromkeys(key for row in rows for key in row)
    return [k for k in METRICS if k in seen] + [k for k in seen if k not in METRICS]


def best_models(metrics: Mapping[str, Mapping[str, float]], key: str) -> set[str]:
    """The models with the best value of a metric as it is shown, oracles left out."""
    metric = metric_of(key)
    shown = {
        name: float(number(row[key], metric).replace("−", "-"))
        for name, row in metrics.items()
        if name not in ORACLES and math.isfinite(row.get(key, math.nan))
    }
    if not metric.better or len(shown) < 2:
        return set()
    top = max(shown.values(), key=lambda v: v * metric.better)
    return {name for name, value in shown.items() if value == top}


def results_table(
    metrics: Mapping[str, Mapping[str, float]],
    by_trajectory: Mapping[str, Mapping[str, Mapping[str, float]]],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]],
) -> str:
    """An HTML table; arguments as in `page.write_report`."""
    groups = {"All pairs": metrics, **{k.capitalize(): v for k, v in by_trajectory.items()}}
    keys = columns(row for group in groups.values() for row in group.values())
    head = "".join(_heading(metric_of(key)) for key in keys)
    parts = [f'<table class="results"><thead><tr><th scope="col">Model</th>{head}</tr></thead>']
    for title, group in groups.items():
        parts.append("<tbody>")
        if by_trajectory:
            span = len(keys) + 1
            parts.append(
                f'<tr class="group"><th colspan="{span}" scope="rowgroup">'
                f"{html.escape(title)}</th></tr>"
            )
        parts += _rows(group, keys, intervals if group is metrics else {})
        parts.append("</tbody>")
    return "\n".join([*parts, "</table>"])


def _heading(metric: Metric) -> str:
    arrow = {-1: "↓", 0: "", 1: "↑"}[metric.better]
    note = {-1: "lower is better", 0: "", 1: "higher is better"}[metric.better]
    unit = html.escape(" ".join(filter(None, [metric.unit, arrow])))
    return (
        f'<th scope="col" title="{note}">{html.escape(metric.name)}'
        f'<span class="unit">{unit or "&nbsp;"}</span></th>'
    )


def _rows(group, keys: list[str], intervals) -> list[str]:
    best = {key: best_models(group, key) for key in keys}
    parts = []
    for name, row in group.items():
        tag = ' <span class="tag">oracle</span>' if name in ORACLES else ""
        cells = "".join(
            _cell(row.get(key), key, name in best[key], intervals.get(name, {}).get(key))
            for key in keys
        )
        kind = ' class="oracle"' if name in ORACLES else ""
        parts.append(
            f'<tr{kind}><th scope="row" title="{html.escape(name)}">'
            f"{html.escape(model_name(name))}{tag}</th>{cells}</tr>"
        )
    return parts


def _cell(value: float | None, key: str, best: bool, interval: tuple[float, float] | None) -> str:
    metric = metric_of(key)
    text = number(value, metric)
    if best:
        text = f"<strong>{text}</strong>"
    if interval is not None:
        ends = " to ".join(number(end, metric) for end in interval)
        text += f'<span class="interval">{ends}</span>'
    return f"<td>{text}</td>"
