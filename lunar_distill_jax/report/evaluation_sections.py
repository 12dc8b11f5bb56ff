"""Parts of the evaluation pages: tables by group, differences, conditions, costs, curves, pairs."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lunar_distill_jax.evaluation import efficiency
from lunar_distill_jax.evaluation.calibration import KEPT
from lunar_distill_jax.evaluation.catalogue import GROUPS
from lunar_distill_jax.evaluation.conditions import BINS, CONDITIONS
from lunar_distill_jax.evaluation.run import Evaluation, compare
from lunar_distill_jax.report import charts, tables

HEADLINES = {  # by protocol
    "ours": ("point_error_pct", "relief_corr", "slope_mae_deg", "hazard_10_miss_pct", "pose_auc10"),
    "paper": ("mae_3d", "chamfer", "depth_ssim", "slope_mae", "rra", "rta"),
}
BROKEN_DOWN = ("point_error_pct", "slope_mae_deg")  # under every condition
AGAINST = {  # columns of pairs.csv that errors are drawn against
    "overlap": "View 1 seen by view 2 (%)",
    "altitude": "Median depth (km)",
    "rotation": "Rotation between the views (°)",
    "baseline": "Baseline / depth",
}


def headlines(evaluation: Evaluation) -> Sequence[str]:
    """The few metrics that stand for all."""
    return HEADLINES.get(evaluation.protocol.name, tuple(evaluation.protocol.metrics)[:5])


def overview(evaluation: Evaluation, links: Mapping[str, str]) -> str:
    """The headline metrics of all models, and links to the models' own pages."""
    keys = headlines(evaluation)
    found = "".join(
        f'<a href="{html.escape(href)}">{html.escape(tables.model_name(name))}</a>'
        for name, href in links.items()
    )
    pages = f'<p class="pages"><span>Pages of one model:</span>{found}</p>' if links else ""
    return (
        f"<section><h2>Results</h2>{_table(evaluation, keys)}"
        f'<p class="note">{_notes(evaluation)}</p>{pages}</section>'
    )


def _notes(evaluation: Evaluation) -> str:
    notes = ["↓ lower is better, ↑ higher is better; the best value of each column is in bold.",
             "Small figures: 95\u00a0% interval over geometries."]  # fmt: skip
    if "noise_floor" in evaluation.summary:
        notes.append(
            "The noise floor is the ground truth as it is stored, scored as a prediction: no "
            "model can be told from a perfect one below it."
        )
    if "baseline_plane" in evaluation.summary:
        notes.append("The fitted plane has seen each pair's own ground truth.")
    failed = {
        name: s["failed_pct"] for name, s in evaluation.summary.items() if s.get("failed_pct")
    }
    for name, share in failed.items():
        notes.append(
            f"{html.escape(tables.model_name(name))} has no answer for {share:.0f} % of the pairs, "
            "and its averages are over the others: compare it by paired differences."
        )
    return " ".join(notes)


def _table(evaluation: Evaluation, keys: Sequence[str]) -> str:
    metrics = {m: {k: s[k] for k in keys} for m, s in evaluation.summary.items()}
    spread = {m: s["interval95"] or {} for m, s in evaluation.summary.items()}
    table = tables.results_table(metrics, spread, only=keys)
    return f'<div class="scroll">{table}</div>'


def groups(evaluation: Evaluation) -> str:
    """All metrics, a table for each group; details folded away."""
    parts = ["<section><h2>All metrics</h2>"]
    catalogue = evaluation.protocol.metrics
    for group, heading in GROUPS.items():
        keys = [k for k, m in catalogue.items() if m.group == group]
        main = [k for k in keys if not catalogue[k].detail]
        more = [k for k in keys if catalogue[k].detail]
        if not keys:
            continue
        parts.append(f"<h3>{html.escape(heading)}</h3>")
        width = 8  # columns that a printed page holds
        for i in range(0, len(main), width):
            parts.append(_table(evaluation, main[i : i + width]))
        if more:
            split = "".join(
                _table(evaluation, more[i : i + width]) for i in range(0, len(more), width)
            )
            parts.append(f"<details><summary>More of these</summary>{split}</details>")
    return "\n".join([*parts, "</section>"])


def differences(evaluation: Evaluation, reference: str) -> str:
    """Each model minus the reference over the pairs that both answer; "" with one model only."""
    others = [m for m in evaluation.summary if m != reference and m not in tables.ORACLES]
    if not others:
        return ""
    parts = []
    for key in headlines(evaluation):
        metric = evaluation.protocol.metrics[key]
        rows = []
        for model in others:
            found = compare(evaluation.rows, model, reference, metrics={key: metric}).get(key)
            if found:
                text = tables.number(found["difference"], metric)
                sign = "+" if found["difference"] > 0 else ""
                name = f"{tables.model_name(model)} ({found['pairs']} pairs)"
                rows.append((name, found["difference"], found["interval95"], sign + text))
        better = {-1: "left is better", 1: "right is better"}.get(metric.better, "")
        label = f"{metric.name}, {metric.unit or 'no unit'}: difference, {better}"
        chart = charts.intervals(rows, label)
        parts.append(f"<figure>{chart}</figure>" if chart else "")
    name = html.escape(tables.model_name(reference))
    return (
        f"<section><h2>Against {name}</h2>{''.join(parts)}"
        '<p class="note">Paired over the pairs that both answer: what makes a pair hard for both '
        "does not widen the interval. An interval that leaves out zero is a difference at 95 %."
        "</p></section>"
    )


def conditions(evaluation: Evaluation) -> str:
    """The metrics of `BROKEN_DOWN` in every bin of every condition; "" without conditions."""
    first = next(iter(evaluation.summary.values()))
    if "by" not in first:
        return ""
    parts = []
    for key in (k for k in BROKEN_DOWN if k in evaluation.protocol.metrics):
        metric = evaluation.protocol.metrics[key]
        head = "".join(
            f'<th scope="col">{html.escape(tables.model_name(m))}</th>' for m in evaluation.summary
        )
        rows = []
        for condition, heading in CONDITIONS.items():
            bins = first["trajectory"] if condition == "trajectory" else first["by"][condition]
            rows.append(
                f'<tr class="heading"><th colspan="{2 + len(evaluation.summary)}" scope="rowgroup">'
                f"{html.escape(heading)}</th></tr>"
            )
            for name, bin_ in _in_order(condition, bins):
                cells = []
                for summary in evaluation.summary.values():
                    own = (
                        summary["trajectory"]
                        if condition == "trajectory"
                        else summary["by"][condition]
                    )
                    spread = (own[name]["interval95"] or {}).get(key)
                    cells.append(tables.cell(own[name][key], key, False, spread))
                count = f"<td>{bin_['pairs']} of {bin_['geometries']}</td>"
                rows.append(
                    f'<tr><th scope="row">{html.escape(name)}</th>{count}{"".join(cells)}</tr>'
                )
        parts.append(
            f"<h3>{html.escape(metric.name)}, {html.escape(metric.unit)}</h3>"
            '<div class="scroll"><table class="results"><thead><tr><th scope="col"></th>'
            f'<th scope="col">Pairs of geometries</th>{head}</tr></thead><tbody>{"".join(rows)}'
            "</tbody></table></div>"
        )
    return f"<section><h2>By condition</h2>{''.join(parts)}</section>"


def _in_order(condition: str, bins: Mapping[str, Mapping]) -> list[tuple[str, Mapping]]:
    """The bins of a condition, low values first."""
    known = list(BINS[condition][1]) if condition in BINS else sorted(bins)
    return [(name, bins[name]) for name in known if name in bins]


def costs(found: Mapping[str, Mapping]) -> str:
    """Efficiency, and which tiers each network fits; "" if nothing was measured."""
    if not found:
        return ""
    numbers = {m: {k: c[k] for k in efficiency.METRICS} for m, c in found.items()}
    keys = list(efficiency.METRICS)
    counted = [k for k in keys if k not in efficiency.MEASURED]
    table = '</div><div class="scroll">'.join(
        tables.results_table(numbers, {}, only=half) for half in (counted, efficiency.MEASURED)
    )
    sizes = sorted({c["size"] for c in found.values()})
    where = sorted({c["device"] for c in found.values()})
    head = "".join(f'<th scope="col">{html.escape(tables.model_name(m))}</th>' for m in found)
    rows = []
    for tier in efficiency.TIERS:
        cells = "".join(f"<td>{_verdict(efficiency.fits(c, tier))}</td>" for c in found.values())
        rows.append(
            f'<tr><th scope="row">{html.escape(tier.name)}<span class="interval">'
            f"{html.escape(tier.example)}</span></th>"
            f"<td>{tier.weights_mb:g}</td><td>{tier.gop:g}</td><td>{tier.ram_mb:g}</td>"
            f"<td>{tier.latency_s:g}</td><td>{tier.power_w:g}</td>{cells}</tr>"
        )
    return (
        f'<section><h2>Cost</h2><div class="scroll">{table}</div>'
        f'<p class="note">One pair at {html.escape(", ".join(sizes))}, float32, on '
        f"{html.escape('; '.join(where))}. Baselines are not in this table.</p>"
        '<h3>Tiers</h3><div class="scroll"><table class="results"><thead><tr>'
        '<th scope="col">Tier</th><th scope="col">Weights<span class="unit">MB int8</span></th>'
        '<th scope="col">Work<span class="unit">GOP a pair</span></th>'
        '<th scope="col">Memory<span class="unit">MB</span></th>'
        '<th scope="col">Latency<span class="unit">s</span></th>'
        f'<th scope="col">Power<span class="unit">W</span></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">The limits are this project\'s own working limits, not a standard. '
        "Weights and work are counted; memory is that of the float32 program here. Latency and "
        "power are not judged: nothing was run on the tiers' hardware.</p></section>"
    )


def _verdict(kept: Mapping[str, bool | None]) -> str:
    over = [name for name, ok in kept.items() if ok is False]
    judged = [name for name, ok in kept.items() if ok is not None]
    return f"✗ {', '.join(over)}" if over else f"✓ {', '.join(judged)}"


def calibration(evaluation: Evaluation, models: Sequence[str]) -> str:
    """Mean sparsification curves; "" if there are none."""
    series = {}
    if len(models) > 1:  # a baseline without an opinion is a flat line
        models = [m for m in models if m not in tables.ORACLES]
    for model in models:
        found = [
            r.curves["sparsification"] for r in evaluation.rows if r.model == model and r.curves
        ]
        if found:
            series[tables.model_name(model)] = (100 * (1 - KEPT), np.mean(found, axis=0))
    best = [r.curves["oracle"] for r in evaluation.rows if r.model == models[0] and r.curves]
    if not series or not best:
        return ""
    name = f"best order, {tables.model_name(models[0])}"
    chart = charts.lines(
        series,
        "least confident pixels removed (%)",
        "mean error of the rest, 1 = all",
        dashed=(name, 100 * (1 - KEPT), np.mean(best, axis=0)),
    )
    return (
        f"<section><h2>Calibration</h2><figure>{chart}<figcaption>What remains should get "
        "better as the least confident pixels leave. A flat curve is a model without an opinion; "
        "the dashed one orders the pixels by their true error.</figcaption></figure></section>"
    )


def scatter(evaluation: Evaluation, model: str) -> str:
    """Point error of every pair against the numbers of its geometry; "" without numbers."""
    rows = [r for r in evaluation.rows if r.model == model and r.numbers]
    if not rows or "point_error_pct" not in evaluation.protocol.metrics:
        return ""
    factor = {"overlap": 100.0, "altitude": 1e-3}
    figures = []
    for key, label in AGAINST.items():
        series: dict[str, list] = {}
        for row in rows:
            x = row.numbers[key] * factor.get(key, 1.0)
            point = (x, row.values["point_error_pct"], row.pair)
            series.setdefault(row.trajectory, []).append(point)
        figures.append(
            f"<figure>{charts.scatter(series, label, 'Point error (% of depth)')}</figure>"
        )
    return f'<section><h2>By geometry</h2><div class="charts">{"".join(figures)}</div></section>'


def worst(evaluation: Evaluation, model: str, count: int = 12) -> str:
    """The pairs of a model, those without an answer and then the largest errors first."""
    rows = worst_first(evaluation, model)
    keys = headlines(evaluation)
    names = [
        "trajectory",
        *(k for k in ("sun", "overlap", "rotation") if rows and k in rows[0].conditions),
    ]
    head = "".join(f'<th scope="col">{html.escape(CONDITIONS.get(n, n))}</th>' for n in names)
    head += "".join(
        f'<th scope="col">{html.escape(evaluation.protocol.metrics[k].name)}<span class="unit">'
        f"{html.escape(evaluation.protocol.metrics[k].unit)}</span></th>"
        for k in keys
    )
    body = []
    for row in rows[:count]:
        words = [row.trajectory if n == "trajectory" else row.conditions[n] for n in names]
        cells = "".join(f"<td>{html.escape(w)}</td>" for w in words)
        cells += "".join(
            f"<td>{tables.number(row.values[k], evaluation.protocol.metrics[k])}</td>" for k in keys
        )
        name = html.escape(row.pair).replace("/", "/<wbr>")
        body.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    who = html.escape(tables.model_name(model))
    shown = f"The {count} worst of {len(rows)}" if len(rows) > count else f"All {len(rows)}"
    return (
        f'<section><h2>Pairs, worst of {who} first</h2><div class="scroll">'
        '<table class="results pairs">'
        f'<thead><tr><th scope="col">Pair</th>{head}</tr></thead><tbody>{"".join(body)}</tbody>'
        f'</table></div><p class="note">{shown}; all are in pairs.csv.</p></section>'
    )


def worst_first(evaluation: Evaluation, model: str) -> list:
    """The rows of a model by falling error; a pair without an answer is the worst."""
    key = next(
        (k for k in ("point_error_pct", "mae_3d") if k in evaluation.protocol.metrics),
        next(iter(evaluation.protocol.metrics)),
    )
    own = [row for row in evaluation.rows if row.model == model]

    def badness(row) -> float:
        value = row.values[key]
        return math.inf if math.isnan(value) else value

    return sorted(own, key=badness, reverse=True)


def worst_of_each(evaluation: Evaluation, model: str, count: int) -> list[str]:
    """Names of pairs to show: the worst of each geometry first, then the others."""
    seen: set[str] = set()
    first, rest = [], []
    for row in worst_first(evaluation, model):
        (rest if row.geometry in seen else first).append(row.pair)
        seen.add(row.geometry)
    return [*first, *rest][:count]


def faults(evaluation: Evaluation) -> str:
    """What is wrong with the metrics of somebody else's protocol; "" for ours."""
    if not evaluation.protocol.faults:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(evaluation.protocol.metrics[k].name)}</th>'
        f'<td class="words">{html.escape(fault)}</td></tr>'
        for k, fault in evaluation.protocol.faults.items()
    )
    return (
        "<section><h2>What is wrong with these numbers</h2><p>They are here to compare with "
        "numbers made by the public code, not to choose a model by; use the protocol "
        '<code>ours</code> for that.</p><div class="scroll"><table class="results"><thead><tr>'
        f'<th scope="col">Metric</th><th scope="col">Fault</th></tr></thead><tbody>{rows}</tbody>'
        "</table></div></section>"
    )


def explained(evaluation: Evaluation, model: str) -> str:
    """Every metric of one model: value, interval, noise floor, what it is."""
    catalogue, own = evaluation.protocol.metrics, evaluation.summary[model]
    floor = evaluation.summary.get("noise_floor") if model != "noise_floor" else None
    parts = []
    for group, heading in GROUPS.items():
        keys = [k for k, m in catalogue.items() if m.group == group]
        if not keys:
            continue
        rows = []
        for key in keys:
            metric = catalogue[key]
            spread = (own["interval95"] or {}).get(key)
            ends = " to ".join(tables.number(e, metric) for e in spread) if spread else "–"
            unit = {-1: " ↓", 0: "", 1: " ↑"}[metric.better]
            what = ", ".join(
                filter(None, [metric.about, "median" if metric.average == "median" else ""])
            )
            least = f"<td>{tables.number(floor[key], metric)}</td>" if floor else ""
            rows.append(
                f'<tr><th scope="row">{html.escape(metric.name)}</th>'
                f"<td>{tables.number(own[key], metric)}</td><td>{ends}</td>{least}"
                f"<td>{html.escape(metric.unit)}{unit}</td>"
                f'<td class="words">{html.escape(what)}</td></tr>'
            )
        least = '<th scope="col">Noise floor</th>' if floor else ""
        parts.append(
            f'<h3>{html.escape(heading)}</h3><div class="scroll"><table class="results one"><thead>'
            f'<tr><th scope="col">Metric</th><th scope="col">Value</th><th scope="col">95 %</th>'
            f'{least}<th scope="col">Unit</th><th scope="col">What it is</th></tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )
    return f"<section><h2>All metrics</h2>{''.join(parts)}</section>"
