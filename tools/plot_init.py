r"""Tables and figures of docs/initialisation.md from the log of `tools/study_init.py`.

    .venv/bin/python tools/plot_init.py runs/init_study/study.jsonl --out docs

Prints the tables as Markdown and writes initialisation-curves.png; with --report FILE.report.json
of a calibrated student also initialisation-energy.png.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METHODS = ("random", "heads_only", "paper", "paper_fixed", "structured", "calibrated")
COLOURS = ("#9a9a9a", "#c8a04a", "#b5442f", "#e08b6d", "#4d8fb8", "#1f3b63")  # in their order
STEPS = (0, 50, 100, 200, 300, 500, 1000)  # shown where they were reached
RESAMPLES = 2000
WHERE = {"synthetic": "unseen synthetic pairs", "real": "real frames"}


class Study:
    """The log's rows on one set of pairs."""

    def __init__(self, rows: Sequence[dict], where: str):
        self.head = rows[0]
        self.geometry = {
            pair: name for pair, name in self.head["geometries"].items() if pair.startswith(where)
        }
        self.names = sorted(set(self.geometry.values()))
        self._rows = [r for r in rows if "method" in r]
        self.methods = [m for m in METHODS if any(r["method"] == m for r in self._rows)]

    def means(self, row: dict, metric: str) -> np.ndarray:
        """Of each geometry: the suns of one are no independent evidence."""
        values = row[metric]
        return np.array(
            [np.mean([values[p] for p, g in self.geometry.items() if g == n]) for n in self.names]
        )

    def curve(self, method: str, metric: str) -> dict[int, dict[int, np.ndarray]]:
        """{step: {seed: [geometries]}}"""
        found: dict[int, dict[int, np.ndarray]] = {}
        for r in sorted(self._rows, key=lambda r: (r["step"], r["seed"])):
            if r["method"] == method:
                found.setdefault(r["step"], {})[r["seed"]] = self.means(r, metric)
        return found

    def draws(self, seeds: int) -> tuple[np.ndarray, np.ndarray]:
        """Resampled seeds and geometries: how often each is drawn, [RESAMPLES, ...]."""
        rng = np.random.default_rng(0)
        n = len(self.names)
        return (
            rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds,
            rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n,
        )

    def interval(self, values: np.ndarray) -> tuple[float, float, float]:
        """Mean of [seeds, geometries], and its 95 % bootstrap interval over both."""
        a, b = self.draws(len(values))
        low, high = np.percentile(np.einsum("rs,sg,rg->r", a, values, b), [2.5, 97.5])
        return float(values.mean()), float(low), float(high)

    def steps_to(
        self, method: str, stays: bool, metric: str = "to_teacher"
    ) -> tuple[float, float, float, float]:
        """-> (first step with `paper`'s last error or less, its 95 % interval, share of resamples
        that get there), the same resamples for both; inf where it is not reached.

        stays: the step from which on it never was above it again
        """
        ours, paper = self.curve(method, metric), self.curve("paper", metric)
        last = max(paper)
        seeds = [k for k in paper[last] if all(k in found for found in ours.values())]
        a, b = self.draws(len(seeds))
        a, b = (np.concatenate([np.full((1, x.shape[1]), 1 / x.shape[1]), x]) for x in (a, b))
        steps, lines = np.array(sorted(ours)), {}
        for step in steps:
            lines[step] = np.stack([ours[step][k] for k in seeds])
        target = np.stack([paper[last][k] for k in seeds])
        goal = np.einsum("rs,sg,rg->r", a, target, b)
        line = np.stack([np.einsum("rs,sg,rg->r", a, lines[s], b) for s in steps], 1)
        cross = crossing_for_good if stays else crossing
        found = np.array([cross(steps, y, g) for y, g in zip(line, goal, strict=True)])
        low, high = np.sort(found[1:])[[int(0.025 * RESAMPLES), int(0.975 * RESAMPLES) - 1]]
        return float(found[0]), float(low), float(high), float(np.isfinite(found[1:]).mean())


def crossing(steps: np.ndarray, line: np.ndarray, goal: float) -> float:
    """Where a curve first falls to the goal, straight between its points."""
    below = np.flatnonzero(line <= goal)
    if not len(below):
        return np.inf
    i = below[0]
    if i == 0:
        return float(steps[0])
    share = (line[i - 1] - goal) / (line[i - 1] - line[i])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def crossing_for_good(steps: np.ndarray, line: np.ndarray, goal: float) -> float:
    """Where a curve last falls to the goal."""
    above = np.flatnonzero(line > goal)
    last = above[-1] if len(above) else 0
    return crossing(steps[last:], line[last:], goal)


def error_table(study: Study, metric: str, digits: int) -> list[str]:
    shown = [s for s in STEPS if any(s in study.curve(m, metric) for m in study.methods)]
    out = [f"| method | seeds | {' | '.join(f'{s} steps' for s in shown)} |"]
    out.append("|---|---:|" + "---:|" * len(shown))
    for method in study.methods:
        curve = study.curve(method, metric)
        cells = []
        for step in shown:
            if step in curve:
                found = np.stack(list(curve[step].values()))
                mean, low, high = study.interval(found)
                few = "" if len(found) == len(curve[0]) else f" ({len(found)} seed)"
                cells.append(f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]{few}")
            else:
                cells.append("–")
        out.append(f"| `{method}` | {len(curve[0])} | {' | '.join(cells)} |")
    if metric in study.head["teacher"]:
        teacher = study.means(study.head["teacher"], metric).mean()
        out.append(f"| the teacher | | {teacher:.{digits}f} |" + " |" * (len(shown) - 1))
    return out


def reach_table(studies: dict[str, Study]) -> list[str]:
    heads = [f"{WHERE[w]}, {what}" for w in studies for what in ("first", "and stays")]
    out = ["| method | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for method in next(iter(studies.values())).methods:
        cells = []
        for study in studies.values():
            for stays in (False, True):
                at, low, high, share = study.steps_to(method, stays)
                ends = [f"{x:.0f}" if np.isfinite(x) else "never" for x in (at, low, high)]
                cells.append(f"{ends[0]} [{ends[1]}, {ends[2]}]; {100 * share:.0f} %")
        out.append(f"| `{method}` | {' | '.join(cells)} |")
    return out


def draw_curves(studies: dict[str, Study], path: pathlib.Path) -> None:
    figure, axes = plt.subplots(1, len(studies), figsize=(9.6, 3.9), sharey=True, squeeze=False)
    for axis, (where, study) in zip(axes[0], studies.items(), strict=True):
        for method, colour in zip(METHODS, COLOURS, strict=True):
            if method not in study.methods:
                continue
            curve = study.curve(method, "to_teacher")
            for seed in curve[0]:
                x = [step for step in curve if seed in curve[step]]
                y = [curve[step][seed].mean() for step in x]
                name = method if seed == min(curve[0]) else None
                axis.plot(x, y, color=colour, lw=1.6, alpha=0.85, label=name)
        axis.set(title=f"{WHERE[where]} ({len(study.names)} geometries)", xlabel="training steps")
        axis.set_yscale("log")
        axis.set_yticks([1, 1.5, 2, 3, 5, 10, 20], ["1", "1.5", "2", "3", "5", "10", "20"])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("distance from the teacher, %")
    lines, names = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="lower center", ncol=len(names), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=130)


def draw_energy(report: dict, path: pathlib.Path) -> None:
    energy = report["energy"]
    widths, s = np.array(energy["widths"]), energy["student_width"]
    figure, axis = plt.subplots(figsize=(6.2, 3.6))
    lost = {n: 100 * np.maximum(1 - np.array(v), 1e-6) for n, v in energy["norms"].items()}
    for name, values in lost.items():
        axis.plot(widths, values, lw=0.8, alpha=0.6, color=COLOURS[2 if "view1" in name else 4])
    mean = np.mean(list(lost.values()), axis=0)
    axis.plot(widths, mean, lw=2.4, color=COLOURS[5])
    at = float(np.interp(s, widths, mean))
    axis.axvline(s, color="black", lw=0.8, ls=":")
    axis.annotate(
        f"this student: {at:.2g} % lost", (s, at), (8, 8), textcoords="offset points", fontsize=9
    )
    for colour, label in ((2, "norms of view 1"), (4, "norms of view 2"), (5, "mean")):
        axis.plot([], [], color=COLOURS[colour], label=label)
    axis.set(yscale="log", ylim=(0.02, 100), xlim=(0, widths[-1] - 1))
    axis.set(xlabel="width of the student", ylabel="energy of unit tokens lost, %")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=pathlib.Path, nargs="+", help="of one study, by seeds")
    parser.add_argument("--report", type=pathlib.Path, help="of a calibrated student")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs"))
    args = parser.parse_args()
    rows = [json.loads(line) for log in args.log for line in log.read_text().splitlines()]
    sets = [w for w in WHERE if any(p.startswith(w) for p in rows[0]["geometries"])]
    studies = {w: Study(rows, w) for w in sets}
    print(json.dumps(rows[0]["parameters"]), json.dumps(rows[0]["settings"]))
    for where, study in studies.items():
        for metric, digits in (("to_teacher", 2), ("point_error_pct", 2), ("relief_corr", 3)):
            print(f"\n### {metric}, {WHERE[where]}, {len(study.names)} geometries\n")
            print("\n".join(error_table(study, metric, digits)))
    print("\n### steps to reach paper's last error\n")
    print("\n".join(reach_table(studies)))
    args.out.mkdir(parents=True, exist_ok=True)
    draw_curves(studies, args.out / "initialisation-curves.png")
    if args.report:
        draw_energy(json.loads(args.report.read_text()), args.out / "initialisation-energy.png")


if __name__ == "__main__":
    main()
