"""Assembles report.html: one file, no network, everything in it."""

from __future__ import annotations

import dataclasses
import datetime
import html
import importlib.metadata
import importlib.resources
import json
import os
import pathlib
import platform
import string
from collections.abc import Mapping, Sequence

from lunar_distill_jax import atomic
from lunar_distill_jax.report import cloud, curves, figures, pairs, tables
from lunar_distill_jax.types import PointMaps, StereoPair

LONG_FACT = 48  # longer ones are told at the foot of the page, not in the strip at its head
NOTHING: Mapping = {}
# Of the viewer: how distances are called, and the smaller unit that heights are told in.
KILOMETRES = {"name": "km", "small": "m", "ratio": 1000}
NO_UNIT = {"name": "unit", "small": "unit", "ratio": 1}
ALIGNMENT = """\
<p>Every prediction is brought to metres by one number, the median of
|X<sub>true</sub>| / |X<sub>predicted</sub>| over the pixels of both views that have ground truth;
pixels without ground truth are left blank. Depth of view 2 uses the true relative pose. Colours run
over the range of the ground truth; what lies outside is shown in the end colours.</p>"""


@dataclasses.dataclass(frozen=True)
class Shown:
    """One pair on the page.

    predictions: model name -> points up to scale; one scale for each model aligns them
    metrics:     model name -> metrics of this pair
    """

    pair: StereoPair
    predictions: dict[str, PointMaps]
    metrics: dict[str, dict[str, float]]


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    lead: str,
    metrics: Mapping[str, Mapping[str, float]],
    by_trajectory: Mapping[str, Mapping[str, Mapping[str, float]]] = NOTHING,
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] = NOTHING,
    only: Sequence[str] | None = None,
    others: Mapping[str, Mapping[str, Mapping[str, float]]] = NOTHING,
    history: Sequence[Mapping[str, float]] = (),
    shown: Sequence[Shown] = (),
    right: str = "student_after",
    facts: Mapping[str, str] = NOTHING,
    command: str = "",
    pictures_dir: str | os.PathLike | None = None,
) -> None:
    """Writes the page to `path`, whole or not at all. All text is escaped here; give it plain.

    Args:
      path: of the HTML file.
      title: heading of the page.
      lead: one paragraph: what was done, with what, how long it took.
      metrics: model -> metric -> value, over all pairs.
      by_trajectory: trajectory -> model -> metric -> value.
      intervals: model -> metric -> (low, high), 95 %, for the values of `metrics`.
      only: the metrics of the main table, in their order; default: those that are no details.
      others: heading -> metrics, as `metrics`, of other data; a table each.
      history: training rows {"step", "loss", ...terms}; no chart without them.
      shown: pairs to show in pictures and in the viewer.
      right: the model that the viewer opens with, beside the ground truth.
      facts: short label -> text, such as "student" -> "3.1 M parameters"; long ones go to the foot.
      command: the command line that made the page.
      pictures_dir: if given, every map and photograph is also written there as a PNG.

    Raises:
      InputError: `path` or `pictures_dir` cannot be written.
    """
    drawn = [pairs.draw(one.pair, one.predictions, one.metrics) for one in shown]
    sections = [
        pair_viewer(drawn, right),
        _results(metrics, by_trajectory, intervals, only, others),
        _chart(history),
        *(pairs.section(d, i, len(drawn)) for i, d in enumerate(drawn)),
    ]
    page = assemble(title, lead, sections, facts=facts, command=command, note=ALIGNMENT)
    if pictures_dir is not None:
        for i, one in enumerate(drawn, start=1):
            for name, png in one.pictures.items():
                atomic.write_bytes(pathlib.Path(pictures_dir) / f"pair{i}_{name}.png", png)
    atomic.write_text(path, page)


def assemble(
    title: str,
    lead: str,
    sections: Sequence[str],
    *,
    facts: Mapping[str, str] = NOTHING,
    command: str = "",
    note: str = "",
) -> str:
    """The whole page around `sections`, which are HTML as `note` is; all else is plain text."""
    return string.Template(_asset("template.html")).substitute(
        title=html.escape(title),
        lead=html.escape(lead),
        style=_asset("style.css"),
        facts=_facts({k: v for k, v in facts.items() if len(v) <= LONG_FACT}),
        sections="\n".join(filter(None, sections)),
        colophon=_facts({k: v for k, v in facts.items() if len(v) > LONG_FACT}),
        command=f"<pre><code>{html.escape(command)}</code></pre>" if command else "",
        note=note,
        made=_made(),
    )


def _asset(name: str) -> str:
    folder = importlib.resources.files("lunar_distill_jax.report") / "assets"
    return (folder / name).read_text(encoding="utf-8")


def _facts(facts: Mapping[str, str]) -> str:
    if not facts:
        return ""
    items = "".join(
        f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _results(metrics, by_trajectory, intervals, only, others) -> str:
    if not metrics:
        return ""
    notes = ["↓ lower is better, ↑ higher is better; the best value of each column is in bold."]
    if tables.ORACLES & metrics.keys():
        notes.append(
            "The fitted plane is an oracle: it has seen each pair's own ground truth, so it is a "
            "yardstick and not a competitor. Relief is what remains beyond it."
        )
    if intervals:
        notes.append("Small figures: 95\u00a0%\u00a0interval.")
    main = tables.results_table(metrics, intervals, only=only)
    split = tables.trajectory_table(by_trajectory)
    detail = tables.results_table(metrics, intervals, detail=True)
    parts = [
        "<section><h2>Results</h2>",
        f'<div class="scroll">{main}</div><p class="note">{" ".join(notes)}</p>',
        *(
            f"<h3>{html.escape(heading)}</h3>"
            f'<div class="scroll">{tables.results_table(rows, NOTHING, only=only)}</div>'
            for heading, rows in others.items()
        ),
        f'<h3>By trajectory</h3><div class="scroll">{split}</div>' if split else "",
        f'<details><summary>More metrics</summary><div class="scroll">{detail}</div></details>'
        if detail
        else "",
        "</section>",
    ]
    return "\n".join(filter(None, parts))


def _chart(history) -> str:
    chart = curves.loss_curves(history)
    if not chart:
        return ""
    return (
        f'<section><h2>Training</h2><figure><div class="scroll">{chart}</div>'
        "<figcaption>Loss and its terms at each step (faint) and their running mean (solid), "
        "with its last value.</figcaption></figure></section>"
    )


def pair_viewer(drawn: Sequence[pairs.Drawn], right: str) -> str:
    """The section that shows `drawn` in 3D, ground truth at the left; "" without pairs.

    right: the model that stands at its right at first; the last one if there is none of that name
    """
    if not drawn:
        return ""
    first = drawn[0]
    names = list(first.models)
    data = {
        "pairs": [
            {"label": f"{i} · {d.pair.trajectory}", **d.cloud} for i, d in enumerate(drawn, start=1)
        ],
        "models": {k: tables.model_name(k) for d in drawn for k in ["ground_truth", *d.models]},
        "right": right if right in names else (names[-1] if names else ""),
        "reference": "ground_truth",
        "unit": KILOMETRES,
    }
    stills = [("Ground truth", cloud.still(first.small, first.truth))]
    if names:
        right = data["right"]
        stills.append((tables.model_name(right), cloud.still(first.small, first.models[right])))
    return viewer(data, stills)


def viewer(data: Mapping, stills: Sequence[tuple[str, bytes]]) -> str:
    """The section that draws `data` with WebGL; `stills` (name, PNG) are for browsers without."""
    pictures = "".join(
        f'<figure><img src="{figures.data_uri(png)}" alt="{html.escape(name)}, drawn from above">'
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
        for name, png in stills
    )
    maps = {
        kind: {"colours": figures.palette(cmap).ravel().tolist()}
        for kind, cmap in (("relief", "RdBu_r"), ("error", "magma"), ("conf", "cividis"))
    }
    packed = json.dumps({**data, "maps": maps}, separators=(",", ":")).replace("<", "\\u003c")
    return string.Template(_asset("viewer.html")).substitute(
        stills=pictures, data=packed, unpack=_asset("cloud.js"), script=_asset("viewer.js")
    )


def _made() -> str:
    """Date and versions, one line."""
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("lunar-distill-jax", "jax", "numpy")
    ]
    today = datetime.date.today().isoformat()
    return html.escape(" · ".join([*versions, f"Python {platform.python_version()}", today]))
