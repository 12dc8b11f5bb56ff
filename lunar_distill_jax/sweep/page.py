"""report.html of a sweep: the table, means over seeds, Pareto plots, learning curves, failures."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from typing import Any

from lunar_distill_jax import atomic
from lunar_distill_jax.evaluation.metrics import METRICS
from lunar_distill_jax.report import charts, page
from lunar_distill_jax.sweep.results import front, over_seeds
from lunar_distill_jax.sweep.trials import Spec

COSTS = {
    "parameters": ("parameters, million", 1e6),
    "macs": ("MACs of a pair, billion", 1e9),
    "latency_ms": ("latency of a pair here, ms", 1.0),
}
CURVES = 5  # series that have a colour and a shape of their own


def write_page(
    path: str | os.PathLike,
    config,
    specs: Sequence[Spec],
    results: Mapping[str, Mapping[str, Any]],
    command: str = "",
) -> None:
    """Writes the page for what there is so far."""
    good = {k: r for k, r in results.items() if "failure" not in r}
    failed = {k: r["failure"] for k, r in results.items() if "failure" in r}
    sections = [_failures(failed)]
    for name in dict.fromkeys(n for r in good.values() for n in r["sets"]):
        sections.append(_set_section(name, config.best_by, specs, good))
    sections.append(_trials(specs, good))
    lead = f"{len(good)} of {len(specs)} trials have a result"
    lead += f", {len(failed)} failed." if failed else "."
    atomic.write_text(
        path,
        page.assemble(
            "A sweep of students",
            lead,
            sections,
            facts={
                "Teacher": os.path.basename(config.teacher) or "ground truth",
                "Steps": str(config.steps if not config.epochs else f"{config.epochs:g} epochs"),
                "Batch": str(config.batch),
                "Data": str(config.data.source),
            },
            command=command,
        ),
    )


def _set_section(name: str, metric: str, specs, good) -> str:
    about = METRICS[metric]
    unit = f"{about.name}, {about.unit}" if about.unit else about.name
    rows = over_seeds(specs, good, name, metric)
    rows.sort(key=lambda row: -about.better * row["mean"])
    if not rows:
        return ""
    bars = charts.intervals(
        [(r["label"], r["mean"], r["interval"], f"{r['mean']:{about.form}}") for r in rows],
        unit,
    )
    direction = "Lower" if about.better < 0 else "Higher"
    note = (
        f"<figcaption>{direction} is better. Means over seeds; whiskers are Student's 95 % "
        "interval of the mean, which two seeds leave wide and one seed does not have.</figcaption>"
    )
    parts = [f"<section><h2>On {html.escape(name)}</h2><figure>{bars}{note}</figure>"]
    plots = []
    for cost, (label, scale) in COSTS.items():
        if not all(cost in row for row in rows):
            continue
        best = front(rows, cost, about.better)
        series: dict[str, list] = {}
        for i, row in enumerate(rows):
            kind = "on the front" if i in best else "beaten"
            point = (row[cost] / scale, row["mean"], f"{row['label']}: {row['mean']:.4g}")
            series.setdefault(kind, []).append(point)
        ordered = {k: series[k] for k in ("on the front", "beaten") if k in series}
        names = ", ".join(rows[i]["label"] for i in sorted(best, key=lambda i: rows[i][cost]))
        plots.append(
            f"<figure>{charts.scatter(ordered, label, unit)}<figcaption>On the front, cheapest "
            f"first: {html.escape(names)}.</figcaption></figure>"
        )
    if plots:
        parts.append(f"<h3>Error against cost</h3>{''.join(plots)}")
    curves = _curves(name, metric, rows, specs, good, unit)
    if curves:
        parts.append(f"<h3>While they learned</h3><figure>{curves}</figure>")
    return "".join(parts) + "</section>"


def _curves(name: str, metric: str, rows, specs, good, unit: str) -> str:
    """The mean curves of the best few."""
    series = {}
    for row in rows[:CURVES]:
        of = [good[s.name] for s in specs if s.name in good and _label(s) == row["label"]]
        found = [dict(map(tuple, r["set_curves"].get(name, []))) for r in of]
        steps = sorted(set.intersection(*(set(f) for f in found))) if found else []
        if len(steps) > 1:
            series[row["label"]] = (
                steps,
                [sum(f[s] for f in found) / len(found) for s in steps],
            )
    chart = charts.lines(series, "step", unit)
    if chart and len(rows) > CURVES:
        chart += f"<figcaption>The best {CURVES}, means over seeds.</figcaption>"
    return chart


def _label(spec: Spec) -> str:
    words = [
        str(v) if isinstance(v, str) else f"{k} {v}" for k, v in spec.changes.items() if k != "seed"
    ]
    return ", ".join(words) or spec.config.student


def _trials(specs, good) -> str:
    names = list(dict.fromkeys(n for r in good.values() for n in r["sets"]))
    known = [m for m in METRICS if not METRICS[m].detail]
    head = ["Trial", "Parameters", "MACs", "Loss", "Skipped"]
    head += [
        f"{METRICS[m].name} ({n})" if len(names) > 1 else METRICS[m].name
        for n in names
        for m in known
    ]
    body = []
    for spec in specs:
        if (r := good.get(spec.name)) is None:
            continue
        cells = [f"{r['parameters'] / 1e6:.2f}\u00a0M", f"{r['macs'] / 1e9:.2f}\u00a0G"]
        cells += [f"{r['loss']:.4g}", str(r["skipped"])]
        cells += [
            f"{r['sets'].get(n, {}).get(m, float('nan')):{METRICS[m].form}}"
            for n in names
            for m in known
        ]
        body.append(
            f'<tr><th scope="row">{html.escape(spec.name)}</th>'
            + "".join(f"<td>{html.escape(c)}</td>" for c in cells)
            + "</tr>"
        )
    top = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in head)
    return (
        '<section><h2>All trials</h2><div class="scroll"><table class="results"><thead>'
        f"<tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div></section>"
    )


def _failures(failed: Mapping[str, str]) -> str:
    if not failed:
        return ""
    items = "".join(
        f"<li><strong>{html.escape(k)}</strong>: {html.escape(v)}</li>" for k, v in failed.items()
    )
    return (
        f'<section><h2>Failed</h2><ul>{items}</ul><p class="note">Start the sweep again to try '
        "these alone, each in a program of its own.</p></section>"
    )
