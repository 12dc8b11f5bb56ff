"""WORKDIR/run.html: what a run has done so far; it loads itself again while the run goes on."""

from __future__ import annotations

import html
import os
import pathlib
import re
import time
from collections.abc import Mapping, Sequence

import jax

from lunar_distill_jax import api, atomic
from lunar_distill_jax.evaluation.metrics import METRICS
from lunar_distill_jax.models.accounting import part_of
from lunar_distill_jax.report import charts, curves, figures, page
from lunar_distill_jax.train.plan import Plan
from lunar_distill_jax.train.watching import EVALUATIONS, read_history

FILE, OVERVIEW = "run.html", "parameters.txt"
SECONDS = 15  # between two versions of the page
SHOWN = 4  # folders with pictures


class RunPage:
    """The page of one run; `refresh` writes it, but not more often than every SECONDS.

    students: {name: first networks}; plans: {name: its plan}, for what is frozen
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        config,
        students: Mapping[str, Sequence[api.Stereo]],
        plans: Mapping[str, Plan] | None,
        command: str,
    ):
        self._workdir, self._config, self._command = pathlib.Path(workdir), config, command
        self._written = 0.0
        self._students, self._plans = students, plans or {}

    def refresh(self, finished: bool) -> None:
        """finished: the run is at its end: written whatever the time."""
        now = time.monotonic()
        if jax.process_index() or (not finished and now - self._written < SECONDS):
            return
        if not self._written:
            atomic.write_text(self._workdir / OVERVIEW, self._overview())
        self._written = now
        folders = sorted({p.parent for p in self._workdir.rglob("metrics.jsonl")})
        sections = [part for folder in folders for part in self._sections(folder, len(folders))]
        text = page.assemble(
            f"Training {self._config.student}",
            self._lead(folders, finished),
            [*sections, self._parameters()],
            facts=self._facts(),
            command=self._command,
        )
        if not finished:
            again = f'<meta http-equiv="refresh" content="{2 * SECONDS}">'
            text = text.replace("<title>", f"{again}\n<title>", 1)
        atomic.write_text(self._workdir / FILE, text)

    def _lead(self, folders: Sequence[pathlib.Path], finished: bool) -> str:
        last = max((row["step"] for f in folders for row in read_history(f)[-1:]), default=0)
        state = "Finished" if finished and last >= self._config.steps else "Running"
        teacher = self._config.teacher or "ground truth"
        return f"{state}: step {last} of {self._config.steps}. Taught by {teacher}."

    def _facts(self) -> dict[str, str]:
        c = self._config
        on = ", ".join(f"{k} {v:g}" for k, v in sorted(c.loss.items()) if v)
        return {
            "Batch": str(c.batch),
            "Peak learning rate": f"{c.optim.lr:g}",
            "Begun by": c.init,
            "Data": str(c.data.source),
            "Losses": on,
            "Devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        }

    def _sections(self, folder: pathlib.Path, folders: int) -> list[str]:
        name = str(folder.relative_to(self._workdir)) if folder != self._workdir else "the run"
        heading = f"<h2>{html.escape(name)}</h2>"
        out = []
        if chart := curves.loss_curves(read_history(folder)):
            out.append(
                f'<section>{heading}<figure><div class="scroll">{chart}</div><figcaption>Loss and '
                "its terms (faint) and their running mean (solid).</figcaption></figure></section>"
            )
        rows = read_history(folder, EVALUATIONS)
        if rows:
            out.append(f"<section><h3>On unseen pairs</h3>{self._evaluations(rows)}</section>")
        if folders <= SHOWN and (shown := _pictures(folder)):
            out.append(f"<section><h3>Pictures</h3>{shown}</section>")
        return out

    def _evaluations(self, rows: Sequence[Mapping]) -> str:
        key = self._config.best_by
        metric = METRICS[key]
        series: dict[str, tuple[list, list]] = {}
        for row in rows:
            if key in row:
                x, y = series.setdefault(f"{row['set']}, {row['weights']}", ([], []))
                x.append(row["step"]), y.append(row[key])
        chart = charts.lines(series, "step", f"{metric.name}, {metric.unit}")
        known = [k for k in METRICS if any(k in row for row in rows) and not METRICS[k].detail]
        last = {(row["set"], row["weights"]): row for row in rows}
        table = _table(
            ["Set", "Weights", "Step", *(METRICS[k].name for k in known)],
            [
                [
                    *key,
                    str(row["step"]),
                    *(f"{row.get(k, float('nan')):{METRICS[k].form}}" for k in known),
                ]
                for key, row in last.items()
            ],
        )
        return f'<figure>{chart}</figure><div class="scroll">{table}</div>'

    def _parameters(self) -> str:
        rows = [
            [name or "student", part, f"{count:,}", f"{trained:,}"]
            for name in self._students
            for part, (count, trained) in self._parts(name).items()
        ]
        table = _table(["Student", "Part", "Parameters", "of them train"], rows)
        return f'<section><h2>Parameters</h2><div class="scroll">{table}</div></section>'

    def _parts(self, name: str) -> dict[str, tuple[int, int]]:
        out: dict[str, tuple[int, int]] = {}
        for path, size, trains in self._named(name):
            count, trained = out.get(part_of(path), (0, 0))
            out[part_of(path)] = (count + size, trained + size * trains)
        return out

    def _named(self, name: str):
        freeze = (
            self._plans[name].optim.freeze if name in self._plans else self._config.optim.freeze
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._students[name][0].params):
            path = jax.tree_util.keystr(path, simple=True, separator="/")
            frozen = any(re.fullmatch(pattern, path) for pattern in (*freeze, "unused/.*"))
            yield path, leaf.size, not frozen

    def _overview(self) -> str:
        """Every parameter of every student: its shape, and whether it trains."""
        lines = []
        for name, networks in self._students.items():
            lines.append(f"# {name or 'student'}: {networks[0].config.name}")
            shapes = dict(
                (jax.tree_util.keystr(p, simple=True, separator="/"), leaf.shape)
                for p, leaf in jax.tree_util.tree_leaves_with_path(networks[0].params)
            )
            for path, size, trains in self._named(name):
                shape = "x".join(map(str, shapes[path]))
                lines.append(f"{path:60s} {shape:>20s} {size:>12,d} {'' if trains else 'frozen'}")
        return "\n".join(line.rstrip() for line in lines) + "\n"


def _pictures(folder: pathlib.Path) -> str:
    """The newest pictures of a folder, side by side."""
    found = sorted(
        (folder / "pictures").glob("step*_*.png"),
        key=lambda p: int(p.stem.partition("_")[0].removeprefix("step")),
    )
    if not found:
        return ""
    step = found[-1].stem.partition("_")[0]
    shown = [p for p in found if p.stem.partition("_")[0] == step]
    order = ["truth_depth", "teacher_depth", "student_depth", "teacher_error", "student_error"]
    names = {p.stem.partition("_")[2]: p for p in shown}
    figures_ = "".join(
        f'<figure class="small" style="display:inline-block;margin:0 12px 12px 0">'
        f'<img src="{figures.data_uri(names[n].read_bytes())}" alt="{n.replace("_", " ")}" '
        f'width="180" style="image-rendering:pixelated"><figcaption>{n.replace("_", " ")}'
        "</figcaption></figure>"
        for n in order
        if n in names
    )
    return (
        f"<p>After {step.replace('step', 'step ')}; depths share one scale, errors another.</p>"
        f"{figures_}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in head)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f'<table class="results"><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table>'
