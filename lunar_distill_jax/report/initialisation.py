"""The page of an initialisation: what a student took over, and how well it fits."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lunar_distill_jax import atomic
from lunar_distill_jax.report.page import assemble

WIDTH, HEIGHT = 760, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 128, 14, 44
LEADS = {
    "random": "Nothing was taken over.",
    "heads_only": "Only what keeps its shape in the heads was copied.",
    "paper": "Of each matrix the top-left corner of its truncated SVD was kept, as the paper's "
    "public code does it.",
    "paper_fixed": "Of each matrix the top-left corner of its truncated SVD was kept, with "
    "queries, keys and values apart and heads whole.",
    "structured": "The decoder was brought into one basis of the residual stream, from the "
    "teacher's weights alone.",
    "calibrated": "The decoder was brought into one basis of the residual stream, and its parts "
    "were fitted in closed form to what the teacher does on pairs of images.",
}


def write_initialisation(
    path: str | os.PathLike, report: Mapping[str, Any], facts: Mapping[str, str], command: str
) -> None:
    """Writes the page of the report that `init_student` returns.

    Raises:
      InputError: the page cannot be written.
    """
    share = f"{100 * report['share']:.1f} % of the numbers"
    sections = [
        _energy(report.get("energy")),
        _blocks(report.get("blocks")),
        _heads(report.get("heads"), report.get("stitching")),
        _numbers(report["numbers"]),
        _parameters(report["parameters"]),
    ]
    page = assemble(
        f"{report['student']} initialised from {report['teacher']}",
        f"{LEADS[report['method']]} {share} of the student come from the teacher; the rest is its "
        "own.",
        sections,
        facts={
            "Method": report["method"],
            "Seconds": f"{report['seconds']:.1f}",
            "Peak memory": f"{report['peak_rss_gb']:.2f} GB",
            **_calibration(report.get("calibration")),
            **facts,
        },
        command=command,
    )
    atomic.write_text(path, page)


def _calibration(calibration: Mapping[str, Any] | None) -> dict[str, str]:
    if not calibration:
        return {}
    size = " x ".join(str(side) for side in calibration["size"])
    spent = ", ".join(f"{stage} {s:.1f} s" for stage, s in calibration["seconds"].items())
    held = f"{calibration['activations_mb']:,.0f} MB {calibration['activations_on']}"
    return {
        "Calibration": f"{calibration['pairs']} pairs of {size} px",
        "Spent on": spent,
        "Activations": held.replace("MB ", "MB in " if held.endswith("memory") else "MB on "),
    }


def _energy(energy: Mapping[str, Any] | None) -> str:
    if not energy:
        return ""
    widths = np.array(energy["widths"], float)
    shares = {name: np.array(values) for name, values in energy["norms"].items()}
    s, d = energy["student_width"], energy["teacher_width"]
    kept = {name: float(np.interp(s, widths, values)) for name, values in shares.items()}
    rows = [
        [name, f"{100 * value:.2f}"] for name, value in sorted(kept.items(), key=lambda kv: kv[1])
    ]
    least = rows[0]
    return (
        "<section><h2>What the width keeps</h2>"
        f'<figure><div class="scroll">{_chart(widths, shares, s)}</div><figcaption>Share of the '
        "energy of normalised tokens that a student of each width would keep in the common basis: "
        "every norm of the decoder (faint, view 1 and view 2 in two colours) and their mean. The "
        f"mark is this student, {s} of {d} channels; at the norm that loses most it keeps "
        f"{least[1]} % ({html.escape(least[0])}).</figcaption></figure>"
        f"<details><summary>By norm</summary>{_table(['Norm', 'kept, %'], rows)}</details>"
        "</section>"
    )


def _chart(widths: np.ndarray, shares: Mapping[str, np.ndarray], student: int) -> str:
    """An inline SVG in the style of the loss curves: both axes from 0."""

    def place(x, y):
        u = LEFT + x / widths[-1] * (WIDTH - LEFT - RIGHT)
        return u, HEIGHT - BOTTOM - y * (HEIGHT - BOTTOM - TOP)

    def line(kind: str, values: np.ndarray) -> str:
        u, v = place(widths, values)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(u, v, strict=True))
        return f'<polyline class="{kind}" points="{points}"/>'

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Retained energy against width">'
    ]
    for y in (0, 0.25, 0.5, 0.75, 1):
        u, v = place(0, y)
        parts.append(
            f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{v:.1f}" y2="{v:.1f}"/>'
            f'<text x="{LEFT - 8}" y="{v + 4:.1f}" text-anchor="end">{100 * y:g} %</text>'
        )
    for x in np.linspace(0, widths[-1], 5):
        u, v = place(x, 0)
        parts.append(
            f'<line class="axis" x1="{u:.1f}" x2="{u:.1f}" y1="{v:.1f}" y2="{v + 4:.1f}"/>'
            f'<text x="{u:.1f}" y="{v + 18:.1f}" text-anchor="middle">{x:g}</text>'
        )
    parts += [
        line(f"raw s{1 if name.startswith('view1') else 2}", values)
        for name, values in shares.items()
    ]
    mean = np.mean(list(shares.values()), axis=0)
    parts.append(line("line s0", mean))
    at = float(np.interp(student, widths, mean))
    u, v = place(student, at)
    bottom, middle = HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<line class="axis" x1="{u:.1f}" x2="{u:.1f}" y1="{TOP}" y2="{bottom}" '
        f'stroke-dasharray="3 3"/><circle class="mark" cx="{u:.1f}" cy="{v:.1f}" r="4"/>'
        f'<text class="name s0" x="{WIDTH - RIGHT + 8}" y="{v + 4:.1f}">mean '
        f"<tspan>{100 * at:.1f} %</tspan></text>"
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">width of the student</text>'
        "</svg>"
    )
    return "".join(parts)


def _blocks(blocks) -> str:
    if not isinstance(blocks, Mapping):
        return ""
    rows = []
    for name, block in blocks.items():
        taught = ", ".join(str(b) for b in block["teacher_blocks"]) or "none"
        row = [name.replace("_", " "), taught]
        for part in ("attn", "cross_attn", "mlp"):
            row.append(_r2(block.get(part)))
        row += [_number(block.get("stream_r2")), _condition(block)]
        row += [_groups(block), _units(block.get("mlp"))]
        rows.append(row)
    head = ["Block", "teacher's", "attention", "cross-att.", "MLP", "stream", "condition"]
    head += ["heads", "units"]
    return (
        "<section><h2>Blocks</h2>"
        f'<div class="scroll">{_table(head, rows)}</div><p class="note">The teacher\'s blocks that '
        "each of the student's stands for, from 0. R² of what each part adds to the stream, of all "
        "that the stream still lacks there, and of the stream after the block, on pairs that were "
        "held out; without activations the least share of a head's energy that its size keeps. "
        "Condition: the worst number of what was solved, with its ridge. "
        "Heads: queries and keys come from block.head before the bar, values from those behind it."
        "</p></section>"
    )


def _r2(part: Mapping[str, Any] | None) -> str:
    if not part:
        return "–"
    if "r2" in part:
        return _number(part["r2"])
    shares = [head["energy_kept"] for head in part.get("heads", [])]
    return f"{100 * min(shares):.0f} %" if shares else "–"


def _condition(block: Mapping[str, Any]) -> str:
    numbers = [
        part["condition"]
        for kind in ("attn", "cross_attn", "mlp")
        for part in (block.get(kind, {}), *block.get(kind, {}).get("heads", ()))
        if "condition" in part
    ]
    return f"{max(numbers):.1e}" if numbers else "–"


def _groups(block: Mapping[str, Any]) -> str:
    parts = []
    for kind in ("attn", "cross_attn"):
        heads = block.get(kind, {}).get("heads", [])
        texts = [
            f"{head['query_key'][0]}.{head['query_key'][1]}|"
            + ",".join(f"{b}.{h}" for b, h in head["values"])
            for head in heads
        ]
        if texts:
            parts.append(f"{'self' if kind == 'attn' else 'cross'}: {'  '.join(texts)}")
    return "; ".join(parts) or "–"


def _units(part: Mapping[str, Any] | None) -> str:
    if not part or "units" not in part:
        return "–"
    blocks = [b for b, _ in part["units"]]
    return ", ".join(f"{blocks.count(b)}\u00a0of\u00a0block\u00a0{b}" for b in sorted(set(blocks)))


def _heads(heads: Mapping[str, Any] | None, stitching: Mapping[str, Any] | None) -> str:
    found = []
    if stitching:
        found.append(("decoder/embed: student's tokens to the stream", stitching))
    for name, parts in (heads or {}).items():
        found += [(f"{name}/{part}", entry) for part, entry in parts.items()]
    rows = [
        [label, _number(entry["r2"]), f"{entry['ridge']:g}", f"{entry['condition']:.2g}"]
        for label, entry in found
        if isinstance(entry, Mapping) and "r2" in entry
    ]
    if not rows:
        return ""
    return (
        "<section><h2>Stitching and heads</h2>"
        f'<div class="scroll">{_table(["Map", "R²", "ridge", "condition"], rows)}</div>'
        '<p class="note">R² on pairs that were held out, on which the ridge was chosen too; a '
        "ridge of inf means that the first guess, from the weights, was not improved.</p></section>"
    )


def _numbers(counts: Mapping[str, int]) -> str:
    total = max(sum(counts.values()), 1)
    rows = [[how, f"{n:,}", f"{100 * n / total:.1f}"] for how, n in counts.items()]
    return (
        "<section><h2>What became of the parameters</h2>"
        f"{_table(['How', 'numbers', '%'], rows)}</section>"
    )


def _parameters(parameters: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, entry["how"], f"{entry['numbers']:,}", _shortened(entry.get("from", ()))]
        for name, entry in parameters.items()
    ]
    head = ["Parameter", "how", "numbers", "from the teacher's"]
    return (
        f"<details><summary>Every parameter ({len(rows)})</summary>"
        f'<div class="scroll">{_table(head, rows)}</div></details>'
    )


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "\u2212")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in head)
    body = "\n".join(
        "<tr>"
        + f'<th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<table class="results"><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table>'
