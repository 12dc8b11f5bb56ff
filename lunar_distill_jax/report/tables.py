"""The results tables: models as rows, metrics as columns, over all pairs and by trajectory."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

from lunar_distill_jax.evaluation import efficiency, ours
from lunar_distill_jax.evaluation.catalogue import Metric
from lunar_distill_jax.evaluation.paper import protocol as paper

# They have seen the ground truth of the very pair they are scored on.
ORACLES = {"baseline_plane", "noise_floor"}
ORACLE_TAG = ' <span class="tag">oracle</span>'

MODEL_NAMES = {
    "ground_truth": "Ground truth",
    "teacher": "Teacher",
    "teacher_adjusted": "Teacher, adjusted",
    "student_before": "Student before",
    "student_after": "Student after",
    "student_after_adjusted": "Student, adjusted",
    "student_paper": "Student, paper's start",
    "baseline_mean": "Mean point map",
    "baseline_plane": "Fitted plane",
    "baseline_sift": "SIFT, five-point",
    "baseline_sgm": "SIFT, semi-global",
    "baseline_colmap": "COLMAP two-view",
    "noise_floor": "Noise floor",
    "model": "Model",
}


METRICS = {**ours.METRICS, **paper.METRICS, **efficiency.METRICS, **ours.METRICS}
HEADLINES = ("point_error_pct", "relief_corr", "abs_rel")  # split by trajectory, shown with pairs


def model_name(key: str) -> str:
    """A key of metrics.json in words (not escaped)."""
    return MODEL_NAMES.get(key, key.replace("_", " "))


def metric_of(key: str) -> Metric:
    """How to show `key`; a metric we do not know is shown under its own name."""
    return METRICS.get(key, Metric(key.replace("_", " ")))


def number(value: float | None, metric: Metric) -> str:
    """A value in the metric's form; a dash where there is none, ∞ for a failure; a real minus."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return format(value, metric.form).replace("-", "−")


def columns(rows: Iterable[Mapping[str, float]]) -> list[str]:
    """All metric keys, those we know first and in our order."""
    seen = dict.fromkeys(key for row in rows for key in row)
    return [k for k in METRICS if k in seen] + [k for k in seen if k not in METRICS]


def headlines(rows: Iterable[Mapping[str, float]]) -> list[str]:
    """The few keys to show where space is short: ours if there are any, else all."""
    keys = columns(rows)
    return [k for k in HEADLINES if k in keys] or keys


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
    intervals: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    detail: bool = False,
    only: Sequence[str] | None = None,
) -> str:
    """Models by the main metrics or by the details, over all pairs; "" if there are none of them.

    Arguments as in `page.write_report`. only: these metrics, in this order, and no others
    """
    keys = [k for k in columns(metrics.values()) if metric_of(k).detail == detail]
    if only is not None:
        seen = columns(metrics.values())
        keys = [k for k in only if k in seen]
    if not keys:
        return ""
    head = "".join(_heading(metric_of(key)) for key in keys)
    best = {key: best_models(metrics, key) for key in keys}
    rows = []
    for name, row in metrics.items():
        cells = (
            cell(row.get(key), key, name in best[key], intervals.get(name, {}).get(key))
            for key in keys
        )
        rows.append(_row(name, cells))
    return _table(f'<tr><th scope="col">Model</th>{head}</tr>', rows)


def trajectory_table(by_trajectory: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Models by the headline metrics, each split by trajectory; "" if there are none."""
    rows_of = [row for group in by_trajectory.values() for row in group.values()]
    keys = headlines(rows_of)
    if not keys:
        return ""
    best = {(k, t): best_models(group, k) for k in keys for t, group in by_trajectory.items()}
    span = len(by_trajectory)
    top = "".join(_heading(metric_of(k), span) for k in keys)
    names = "".join(
        f'<th scope="col"{_first(i)}>{html.escape(t)}</th>'
        for _ in keys
        for i, t in enumerate(by_trajectory)
    )
    rows = []
    for name in dict.fromkeys(name for group in by_trajectory.values() for name in group):
        cells = (
            cell(group.get(name, {}).get(k), k, name in best[k, t], None, _first(i))
            for k in keys
            for i, (t, group) in enumerate(by_trajectory.items())
        )
        rows.append(_row(name, cells))
    return _table(
        f'<tr><th scope="col" rowspan="2">Model</th>{top}</tr><tr class="sub">{names}</tr>', rows
    )


def _table(head: str, rows: list[str]) -> str:
    body = "\n".join(rows)
    return f'<table class="results"><thead>{head}</thead><tbody>\n{body}\n</tbody></table>'


def _first(i: int) -> str:
    """Marks the first column of a group, which stands a little apart."""
    return ' class="first"' if i == 0 else ""


def _heading(metric: Metric, span: int = 1) -> str:
    arrow = {-1: "↓", 0: "", 1: "↑"}[metric.better]
    note = {-1: "lower is better", 0: "", 1: "higher is better"}[metric.better]
    unit = html.escape(" ".join(filter(None, [metric.unit, arrow])))
    group = f' colspan="{span}" class="group"' if span > 1 else ""
    return (
        f'<th scope="col"{group} title="{note}">{html.escape(metric.name)}'
        f'<span class="unit">{unit or "&nbsp;"}</span></th>'
    )


def _row(name: str, cells: Iterable[str]) -> str:
    kind, tag = (' class="oracle"', ORACLE_TAG) if name in ORACLES else ("", "")
    return (
        f"<tr{kind}>"
        f'<th scope="row" title="{html.escape(name)}">{html.escape(model_name(name))}{tag}</th>'
        f"{''.join(cells)}</tr>"
    )


def cell(
    value: float | None,
    key: str,
    best: bool,
    interval: tuple[float, float] | None,
    attributes: str = "",
) -> str:
    """<td> of a value of metric `key`; its interval, if any, below it."""
    metric = metric_of(key)
    text = number(value, metric)
    if best:
        text = f"<strong>{text}</strong>"
    if interval is not None:
        ends = " to ".join(number(end, metric) for end in interval)
        text += f'<span class="interval">{ends}</span>'
    return f"<td{attributes}>{text}</td>"
