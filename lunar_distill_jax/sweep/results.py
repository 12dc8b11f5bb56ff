"""A sweep in numbers: one row a trial, means over seeds, what nothing else beats."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from lunar_distill_jax import atomic, measure
from lunar_distill_jax.evaluation.metrics import METRICS
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.progress import Progress
from lunar_distill_jax.runs.start import network_config
from lunar_distill_jax.sweep.trials import Spec

LATENCY = "latency.json"
FAILED = {"failure": "it has no result"}


def write_csv(
    path: str | os.PathLike, specs: Sequence[Spec], results: Mapping[str, Mapping[str, Any]]
) -> None:
    """One row for each trial that has a result, in the order of the sweep.

    Columns: trial, what any trial changes, parameters, macs, latency_ms (if measured), loss,
    skipped, then SET/METRIC.
    """
    good = [s for s in specs if s.name in results and "failure" not in results[s.name]]
    changed = list(dict.fromkeys(key for s in specs for key in s.changes))
    sets = list(dict.fromkeys(name for s in good for name in results[s.name]["sets"]))
    timed = any("latency_ms" in results[s.name] for s in good)
    costs = ["parameters", "macs", *(["latency_ms"] if timed else []), "loss", "skipped"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *changed, *costs, *(f"{n}/{m}" for n in sets for m in METRICS)])
    for spec in good:
        result = results[spec.name]
        row: list[Any] = [spec.name, *(spec.changes.get(key, "") for key in changed)]
        row += [_text(result.get(cost)) for cost in costs]
        row += [_text(result["sets"].get(n, {}).get(m)) for n in sets for m in METRICS]
        writer.writerow(row)
    atomic.write_text(path, text.getvalue())


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def add_latency(
    workdir: pathlib.Path, specs: Sequence[Spec], results: Mapping[str, dict[str, Any]]
) -> None:
    """Adds "latency_ms" of a forward pass over one pair on this machine; each network, with the
    decoder that its trial has, is measured once.
    """
    path = workdir / LATENCY
    known = json.loads(path.read_text()) if path.is_file() else {}
    good = {s.name: results[s.name] for s in specs if "failure" not in results.get(s.name, FAILED)}
    networks = {s.name: network_config(s.config, s.config.student) for s in specs if s.name in good}
    keys = {name: _key(networks[name], good[name]["frame"]) for name in good}
    needed = {key: name for name, key in keys.items() if key not in known}
    with Progress(len(needed), "latency") as progress:
        for key, name in needed.items():
            height, width = (int(side) for side in good[name]["frame"].split("x"))
            measured = measure.measure_apart(networks[name], [(height, width)])
            known[key] = measured[good[name]["frame"]]["seconds"] * 1e3
            progress.update(1)
    if needed:
        atomic.write_text(path, json.dumps(known, indent=2) + "\n")
    for name, result in good.items():
        result["latency_ms"] = known[keys[name]]


def _key(network: StereoConfig, frame: str) -> str:
    """Equal for equal architectures, and still to be read."""
    text = json.dumps(network.to_dict(), sort_keys=True)
    return f"{network.name} {hashlib.sha256(text.encode()).hexdigest()[:12]} {frame}"


def over_seeds(
    specs: Sequence[Spec], results: Mapping[str, Mapping[str, Any]], name: str, metric: str
) -> list[dict[str, Any]]:
    """Trials that differ in their seed only, together: {"label", "student", "mean", "interval",
    "seeds"}; the interval is Student's of the mean, 95 %, None for one seed.
    """
    groups: dict[str, list[Spec]] = {}
    for spec in specs:
        rest = {k: v for k, v in spec.changes.items() if k != "seed"}
        groups.setdefault(json.dumps(rest, default=str), []).append(spec)
    out = []
    for key, group in groups.items():
        found = [results[s.name] for s in group if s.name in results]
        found = [r for r in found if "failure" not in r and metric in r["sets"].get(name, {})]
        values = np.array([r["sets"][name][metric] for r in found], float)
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        mean, interval = float(values.mean()), None
        if len(values) > 1:
            error = float(values.std(ddof=1)) / math.sqrt(len(values))
            reach = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error
            interval = (mean - reach, mean + reach)
        costs = {k: found[0][k] for k in ("parameters", "macs", "latency_ms") if k in found[0]}
        label = ", ".join(_word(k, v) for k, v in json.loads(key).items()) or found[0]["student"]
        out.append(
            {
                "label": label,
                "student": found[0]["student"],
                "mean": mean,
                "interval": interval,
                "seeds": len(values),
                **costs,
            }
        )
    return out


def _word(key: str, value: Any) -> str:
    return str(value) if isinstance(value, str) else f"{key} {value}"


def front(rows: Sequence[Mapping[str, Any]], cost: str, sign: int) -> set[int]:
    """Which rows no other beats in both the cost (lower) and the mean (`sign` +1: higher)."""
    out = set()
    for i, a in enumerate(rows):
        beaten = any(
            b[cost] <= a[cost]
            and sign * b["mean"] >= sign * a["mean"]
            and (b[cost] < a[cost] or sign * b["mean"] > sign * a["mean"])
            for b in rows
        )
        if not beaten:
            out.add(i)
    return out
