r"""How much the synthetic Moon looks and measures like real StereoLunar frames: tables and figures.

    .venv/bin/python tools/compare_moon.py DIR/stereolunar --out compare
    .venv/bin/python tools/compare_moon.py DIR/stereolunar --out compare --geometries 36

Renders each preset (kept in OUT/PRESET), reads real and synthetic frames with one reader, and
writes statistics.json, statistics.md, side_by_side.png (with the real frames) and synthetic.png
(without).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from lunar_distill_jax import moon
from lunar_distill_jax.data import source
from lunar_distill_jax.data.write import overlap, write_stereolunar
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.moon import likeness, statistics
from lunar_distill_jax.progress import Progress
from lunar_distill_jax.types import StereoPair

TRAJECTORIES = ("nadir", "oblique", "dynamic")
PATCH = 64
LEVELS_KM = (24.5, 27.5, 30.5)  # the real sample frames were taken from 16 to 38 km
SCENE_SEED = 300_000  # far from all seeds that anything is trained or tested on


def render(folder: pathlib.Path, preset: str, geometries: int, size: int, seed: int) -> None:
    """Writes `geometries` camera pairs of each trajectory under the three suns, unless they are
    there already."""
    if folder.is_dir():
        return
    kind_of_moon = dataclasses.replace(moon.preset(preset), levels_km=LEVELS_KM)

    def pairs():
        with Progress(3 * geometries, f"render {preset}") as progress:
            for index in range(3 * geometries):
                kind = TRAJECTORIES[index % 3]
                yield from moon.make_lightings(seed + index, kind, size, moon=kind_of_moon)
                progress.update()

    write_stereolunar(pairs(), folder)


def measure(pairs: Sequence[StereoPair], label: str) -> list[dict]:
    """One row a frame: its geometry, trajectory, statistics and texture."""
    rows, terrain = [], {}
    with Progress(len(pairs), label) as progress:
        for pair in pairs:
            if pair.geometry not in terrain:
                flight = statistics.flight_statistics(pair) | {"overlap": overlap(pair)}
                ground = [statistics.height_patch(pair, view) for view in (0, 1)]
                terrain[pair.geometry] = [
                    {"flight": flight, "terrain": statistics.terrain_statistics(*patch)}
                    for patch in ground
                ]
            for view in (0, 1):
                grey = pair.image[view, ..., 0]
                n = grey.shape[0] // (2 * PATCH)  # every other patch of every other row
                patches = grey[: 2 * n * PATCH, : 2 * n * PATCH].reshape(2 * n, PATCH, 2 * n, PATCH)
                patches = patches.swapaxes(1, 2)[::2, ::2].reshape(-1, PATCH, PATCH)
                rows.append(
                    {
                        "geometry": pair.geometry,
                        "trajectory": pair.trajectory,
                        "image": statistics.image_statistics(grey),
                        "texture": likeness.texture(patches),
                        **terrain[pair.geometry][view],
                    }
                )
            progress.update()
    return rows


def column(rows: list[dict], group: str, name: str) -> np.ndarray:
    """The values [N] of one measure: of frames for images, of views for terrain (each counted once,
    not once a sun), of camera pairs for flight."""
    if group == "image":
        return np.array([row["image"][name] for row in rows])
    return np.array(list({id(row[group]): row[group][name] for row in rows}.values()))


def compare(real: list[dict], made: list[dict]) -> list[dict]:
    """A row for each measure: median, 10th and 90th percentile of both, and their distance."""
    table = []
    for group in ("image", "terrain"):
        for name in real[0][group]:
            a, b = column(real, group, name), column(made, group, name)
            band = [np.percentile(values, [50, 10, 90]).tolist() for values in (a, b)]
            table.append(
                {
                    "group": group,
                    "measure": name,
                    "real": band[0],
                    "made": band[1],
                    "distance": likeness.distance(a, b),
                }
            )
    return table


def flights(rows: list[dict]) -> dict[str, dict[str, list[float]]]:
    """{trajectory: {measure: [least, median, most]}}"""
    found = {}
    for kind in TRAJECTORIES:
        some = [row for row in rows if row["trajectory"] == kind]
        if some:
            found[kind] = {
                name: np.percentile(column(some, "flight", name), [0, 50, 100]).tolist()
                for name in some[0]["flight"]
            }
    return found


def tell_apart(real: list[dict], made: list[dict]) -> dict[str, dict[str, float]]:
    """AUCs of both classifiers; each trajectory is held out in turn."""
    rows = real + made
    is_real = np.arange(len(rows)) < len(real)
    kinds = [row["trajectory"] for row in rows]
    values = np.array([list(row["image"].values()) for row in rows])
    counts = [len(row["texture"]) for row in rows]
    textures = np.concatenate([row["texture"] for row in rows])
    return {
        "13 statistics of a frame": likeness.two_sample(values, is_real, kinds),
        f"texture of {PATCH} x {PATCH} pixels": likeness.two_sample(
            textures, np.repeat(is_real, counts), np.repeat(kinds, counts).tolist()
        ),
    }


def control(made: list[dict]) -> list[dict[str, dict[str, float]]]:
    """What `tell_apart` finds where there is nothing to find: one synthetic ground of each
    trajectory plays the real one against the others, each in turn."""
    grounds = {
        kind: list(dict.fromkeys(r["geometry"] for r in made if r["trajectory"] == kind))
        for kind in TRAJECTORIES
    }
    found = []
    for turn in zip(*grounds.values(), strict=True):
        posing = [row for row in made if row["geometry"] in turn]
        found.append(tell_apart(posing, [row for row in made if row["geometry"] not in turn]))
    return found


def text(band: Sequence[float]) -> str:
    middle, low, high = band
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def as_markdown(result: dict) -> str:
    """The tables of docs/moon.md."""
    names = list(result["presets"])
    lines = [
        "| | real | " + " | ".join(f"{name} | d" for name in names) + " |",
        "|---|---|" + "---|---:|" * len(names),
    ]
    for i, row in enumerate(result["presets"][names[0]]["table"]):
        cells = [f"| {row['measure']} | {text(row['real'])} |"]
        for name in names:
            other = result["presets"][name]["table"][i]
            cells.append(f" {text(other['made'])} | {other['distance']:.2f} |")
        lines.append("".join(cells))
    mean = [
        np.mean([row["distance"] for row in result["presets"][name]["table"]]) for name in names
    ]
    lines.append("| **mean distance** | |" + "".join(f" | **{m:.2f}** |" for m in mean))
    lines += ["", "| | trajectory | " + " | ".join(["real", *names]) + " |"]
    lines.append("|---|---|" + "---|" * (1 + len(names)))
    columns = [result["real_flights"], *(result["presets"][name]["flights"] for name in names)]
    for kind in TRAJECTORIES:
        for measure in columns[1].get(kind, {}):
            cells = [
                "{1:.3g} [{0:.3g}, {2:.3g}]".format(*c[kind][measure]) if kind in c else ""
                for c in columns
            ]
            lines.append(f"| {measure} | {kind} | " + " | ".join(cells) + " |")
    lines += ["", "| AUC | classifier sees | " + " | ".join(TRAJECTORIES) + " |"]
    lines.append("|---|---|" + "---:|" * len(TRAJECTORIES))
    for name, tests in result["told_apart"].items():
        for sees, found in tests.items():
            cells = [f"{found[kind]:.2f}" if kind in found else "" for kind in TRAJECTORIES]
            lines.append(f"| real against {name} | {sees} | " + " | ".join(cells) + " |")
    for sees in result["control"][0]:
        cells = []
        for kind in TRAJECTORIES:
            values = [found[sees][kind] for found in result["control"]]
            cells.append(f"{min(values):.2f} to {max(values):.2f}")
        label = f"one ground of {names[0]} against the others"
        lines.append(f"| {label} | {sees} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def save_figure(rows: dict[str, Sequence[StereoPair]], path: pathlib.Path) -> None:
    """A row for each kind of Moon: both views of a pair of each trajectory, under their first
    sun."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0, 2.25 * len(rows)), facecolor="white", layout="constrained")
    grid = figure.subplots(len(rows), 6, squeeze=False)
    for row, (name, pairs) in enumerate(rows.items()):
        axes = grid[row]
        for i, kind in enumerate(TRAJECTORIES):
            pair = next((p for p in pairs if p.trajectory == kind), None)
            for view in (0, 1):
                axis = axes[2 * i + view]
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
                if pair is not None:
                    axis.imshow(pair.image[view])
                if row == 0:
                    axis.set_title(f"{kind}, view {view + 1}", fontsize=9)
        axes[0].set_ylabel(name, fontsize=9)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def save_report(
    out: pathlib.Path, name: str, real: list[dict], made: dict[str, list[dict]]
) -> None:
    """Writes statistics.json and statistics.md, and prints the latter."""
    result = {
        "real": name,
        "real_frames": len(real),
        "made_frames": {name: len(rows) for name, rows in made.items()},
        "real_flights": flights(real),
        "presets": {
            name: {"table": compare(real, rows), "flights": flights(rows)}
            for name, rows in made.items()
        },
        "told_apart": {name: tell_apart(real, rows) for name, rows in made.items()},
        "control": control(next(iter(made.values()))),
    }
    (out / "statistics.json").write_text(json.dumps(result, indent=1))
    (out / "statistics.md").write_text(as_markdown(result))
    print(as_markdown(result))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("real", help="a folder of real StereoLunar frames")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--presets", default="stereolunar,first,physical")
    parser.add_argument(
        "--geometries", type=int, default=12, help="of each trajectory, 3 or more (12)"
    )
    args = parser.parse_args()
    try:
        real_pairs = source.open_folder(args.real)
        size = real_pairs[0].image.shape[1]
        folders = {name: args.out / name for name in args.presets.split(",")}
        for name, folder in folders.items():
            render(folder, name, args.geometries, size, SCENE_SEED)
        made_pairs = {name: source.open_folder(folder) for name, folder in folders.items()}
    except InputError as error:
        print(error, file=sys.stderr)
        return 2

    real = measure(real_pairs, "real")
    made = {name: measure(pairs, name) for name, pairs in made_pairs.items()}
    save_report(args.out, str(args.real), real, made)
    save_figure({"real": real_pairs, **made_pairs}, args.out / "side_by_side.png")
    save_figure(made_pairs, args.out / "synthetic.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
