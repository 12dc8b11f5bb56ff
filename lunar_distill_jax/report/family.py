"""The family of students beside their teacher: one generated table, and what each is made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lunar_distill_jax.atomic import atomic_file
from lunar_distill_jax.measure import ROUNDS, machine, measure_apart
from lunar_distill_jax.models.accounting import activation_bytes, mac_counts, parameter_counts
from lunar_distill_jax.models.zoo import STUDENTS, architecture

FAMILY = ("mast3r", *STUDENTS)
SMALL, LARGE = (224, 224), (384, 512)  # height, width
COLOURS = {  # by part; Tol's muted scheme, safe for the colour-blind
    "encoder": "#332288",
    "decoder": "#88ccee",
    "dpt": "#117733",
    "catconv": "#44aa99",
    "local_features": "#ddcc77",
    "plane": "#cc6677",
    "unused": "#bbbbbb",
}


def family_rows(
    names: Sequence[str] = FAMILY,
    *,
    measured: bool = True,
    done: Callable[[int], object] = lambda count: None,
) -> list[dict[str, Any]]:
    """One row a network: what `as_markdown` prints, counts by part, and, if measured, times.

    done: called with 1 after each network; a measured one takes up to some minutes
    """
    rows = []
    for name in names:
        config = architecture(name)
        parameters = parameter_counts(config)
        used = sum(n for part, n in parameters.items() if part != "unused")
        row: dict[str, Any] = {
            "name": name,
            "parameters": sum(parameters.values()),
            "parameters_used": used,
            "parameters_by_part": parameters,
            "macs_224": sum(mac_counts(config, *SMALL).values()),
            "macs_by_part": mac_counts(config, *LARGE),
            "activation_bytes": activation_bytes(config, *LARGE)["total"],
        }
        row["macs_512"] = sum(row["macs_by_part"].values())
        if measured:
            row["measured"] = measure_apart(name, (SMALL, LARGE))
        rows.append(row)
        done(1)
    return rows


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table with its caption; times and memory only where they were measured."""
    measured = all("measured" in row for row in rows)
    head = ["", "parameters", "used", "int8 MB", "GMAC 224x224", "GMAC 512x384", "activations MB"]
    if measured:
        head += ["s 224x224", "s 512x384", "peak RSS MB"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        line = [
            row["name"],
            f"{row['parameters']:,}",
            f"{row['parameters_used']:,}",
            f"{row['parameters_used'] / 1e6:.1f}",
            f"{row['macs_224'] / 1e9:.1f}",
            f"{row['macs_512'] / 1e9:.1f}",
            f"{row['activation_bytes'] / 1e6:.0f}",
        ]
        if measured:
            found = row["measured"]
            line += [f"{found['x'.join(map(str, s))]['seconds']:.2f}" for s in (SMALL, LARGE)]
            line.append(f"{found['peak_rss_bytes'] / 1e6:.0f}")
        lines.append(line)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = (
        "Sizes are width x height, of one pair. parameters: as the paper counts them, with those "
        "that only a file in the reference's layout holds; used: those that a computation reads. "
        "int8 MB: the used ones at a byte each. 1 MAC = 2 FLOP. activations: most float32 bytes "
        "alive at once, counted from the program."
    )
    if measured:
        notes += (
            f" Times: median of {ROUNDS} forward passes in float32, in a fresh process each, on "
            f"{machine()}; peak RSS: of that process, with Python, jax and the compiler."
        )
    return f"{table}\n\n{notes}"


def plot(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws parameters and MACs of the students, stacked by part; the teacher is a note. A PNG."""
    from matplotlib.figure import Figure  # no global state, no display

    students = [row for row in rows if row["name"] != "mast3r"]
    names = [row["name"] for row in students]
    figure = Figure(figsize=(11, 0.42 * len(students) + 1.7), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, unit, label in (
        (axes[0], "parameters_by_part", 1e6, "parameters, millions"),
        (axes[1], "macs_by_part", 1e9, "GMAC of a 512 x 384 pair"),
    ):
        ends = np.zeros(len(students))
        for part, colour in COLOURS.items():
            lengths = np.array([row[key].get(part, 0) / unit for row in students])
            if lengths.any():
                axis.barh(names, lengths, left=ends, color=colour, label=part.replace("_", " "))
                ends += lengths
        for y, end in enumerate(ends):
            axis.text(end, y, f" {end:.1f}", va="center", fontsize=9)
        for teacher in (row for row in rows if row["name"] == "mast3r"):
            label += f" (mast3r: {sum(teacher[key].values()) / unit:.1f})"
        axis.set(xlabel=label, xlim=(0, 1.12 * ends.max()))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    axes[0].legend(frameon=False, loc="lower right", fontsize=9)
    with atomic_file(path) as part:
        figure.savefig(part, format="png")
