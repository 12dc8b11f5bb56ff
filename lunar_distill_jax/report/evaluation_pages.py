"""The pages of `lunar-distill evaluate`: one that compares, and one for each model."""

from __future__ import annotations

import dataclasses
import html
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from lunar_distill_jax import atomic
from lunar_distill_jax.evaluation import ours
from lunar_distill_jax.evaluation.run import Evaluation, Predictor
from lunar_distill_jax.report import evaluation_sections as sections
from lunar_distill_jax.report import page, pairs, tables, terrain_maps
from lunar_distill_jax.types import PointMaps, StereoPair

SHOWN = 4  # pairs in pictures on the page that compares
SHOWN_OF_MODEL = 3  # on a model's own page
COLUMNS = 5  # models in pictures side by side


@dataclasses.dataclass(frozen=True)
class Text:
    """What all pages say: plain text.

    title: of the page that compares; data: name of the data set
    facts: short label -> text; command: what made the pages
    """

    title: str
    data: str
    lead: str
    facts: Mapping[str, str]
    command: str


def write_pages(
    folder: str | os.PathLike,
    evaluation: Evaluation,
    predictors: Mapping[str, Predictor],
    read: Callable[[str], StereoPair],
    costs: Mapping[str, Mapping],
    text: Text,
    *,
    progress: Callable[[int], object] = lambda pages_done: None,
) -> None:
    """Writes FOLDER/report.html, FOLDER/models/MODEL.html and FOLDER/pictures/.

    Args:
      predictors: those to show in pictures; the first is what others are compared with
      read: the name of an evaluated pair -> the pair
      costs: model -> `efficiency.cost`
      progress: called with the number of pages done since the last call

    Raises:
      InputError: the pages or the pictures cannot be written.
    """
    folder = pathlib.Path(folder)
    predictors = {name: _remembered(predict) for name, predict in predictors.items()}
    files = _file_names(predictors)
    reference = next(iter(predictors))
    for model, predict in predictors.items():
        shown = [read(name) for name in sections.worst_of_each(evaluation, model, SHOWN_OF_MODEL)]
        body = [
            '<p class="pages"><a href="../report.html">All models</a></p>',
            sections.overview(_only(evaluation, model), {}),
            sections.costs({m: c for m, c in costs.items() if m == model}),
            sections.calibration(evaluation, [model]),
            sections.scatter(evaluation, model),
            sections.worst(evaluation, model),
            *_pictures(evaluation, {model: predict}, shown)[1],
            sections.conditions(_only(evaluation, model)),
            sections.explained(evaluation, model),
            sections.faults(evaluation),
        ]
        name = tables.model_name(model)
        _write(folder / "models" / files[model], body, text, f"{name} on {text.data}")
        progress(1)
    links = {model: f"models/{name}" for model, name in files.items()}
    shown = [read(name) for name in sections.worst_of_each(evaluation, reference, SHOWN)]
    few = dict(list(predictors.items())[:COLUMNS])
    drawn, pictures = _pictures(evaluation, few, shown, viewer=True)
    for i, one in enumerate(drawn, start=1):
        for name, png in one.pictures.items():
            atomic.write_bytes(folder / "pictures" / f"pair{i}_{name}.png", png)
    body = [
        sections.overview(evaluation, links),
        sections.differences(evaluation, reference),
        sections.costs(costs),
        sections.calibration(evaluation, list(predictors)),
        sections.conditions(evaluation),
        sections.worst(evaluation, reference),
        page.pair_viewer(drawn, reference),
        *pictures,
        sections.groups(evaluation),
        sections.faults(evaluation),
    ]
    _write(folder / "report.html", body, text, text.title)
    progress(1)


def _remembered(predict: Predictor) -> Predictor:
    """The same predictor for one pair at a time, asked once for each."""
    known: dict[str, PointMaps] = {}

    def remember(shown: Sequence[StereoPair]) -> list[PointMaps]:
        for pair in shown:
            if pair.name not in known:
                known[pair.name] = predict([pair])[0]
        return [known[pair.name] for pair in shown]

    return remember


def _write(path: pathlib.Path, body: Sequence[str], text: Text, title: str) -> None:
    note = page.ALIGNMENT
    made = page.assemble(title, text.lead, body, facts=text.facts, command=text.command, note=note)
    atomic.write_text(path, made)


def _pictures(
    evaluation: Evaluation,
    predictors: Mapping[str, Predictor],
    shown: Sequence[StereoPair],
    *,
    viewer: bool = False,
) -> tuple[list[pairs.Drawn], list[str]]:
    """The pairs, drawn, and a section for each: maps by view, terrain model, who had no answer."""
    all_drawn, out = [], []
    for i, pair in enumerate(shown):
        answers = {name: predict([pair])[0] for name, predict in predictors.items()}
        known = {n: a for n, a in answers.items() if np.isfinite(a.points_cam1).all()}
        values = {
            r.model: {k: r.values[k] for k in sections.headlines(evaluation)}
            for r in evaluation.rows
            if r.pair == pair.name and r.model in known
        }
        drawn = pairs.draw(pair, known, values)
        parts = [pairs.section(drawn, i, len(shown), viewer=viewer)]
        if known:
            parts.append(terrain_maps.section(ours.prepare(pair), known))
        failed = [tables.model_name(n) for n in answers if n not in known]
        if failed:
            parts.append(f'<p class="note">No answer: {html.escape(", ".join(failed))}.</p>')
        all_drawn.append(drawn)
        out.append("\n".join(parts))
    return all_drawn, out


def _only(evaluation: Evaluation, model: str) -> Evaluation:
    keep = {m: evaluation.summary[m] for m in (model, "noise_floor") if m in evaluation.summary}
    return dataclasses.replace(evaluation, summary=keep)


def _file_names(models: Iterable[str]) -> dict[str, str]:
    """A file name for each model, safe and different."""
    out: dict[str, str] = {}
    for model in models:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model"
        names = (f"{stem}{n}.html" for n in itertools.chain([""], itertools.count(2)))
        out[model] = next(name for name in names if name not in out.values())
    return out
