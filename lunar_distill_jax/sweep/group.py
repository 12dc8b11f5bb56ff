"""One group of trials, trained as one program; one that fails does not take the others along."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from lunar_distill_jax import api, atomic
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.accounting import mac_counts, parameter_counts
from lunar_distill_jax.progress import say
from lunar_distill_jax.runs.start import begin, network_config, read_data, watch
from lunar_distill_jax.sweep.planner import Member, members
from lunar_distill_jax.sweep.trials import Spec
from lunar_distill_jax.train.loop import STUDENT, train_together
from lunar_distill_jax.train.options import steps_of
from lunar_distill_jax.train.plan import check_settings
from lunar_distill_jax.train.preempt import Stopped
from lunar_distill_jax.train.watching import EVALUATIONS, METRICS, read_history

POINTS = 60  # of a learning curve, as it is kept in the storage


def run_group(specs: Sequence[Spec], workdir: pathlib.Path, name: str) -> dict[str, dict[str, Any]]:
    """Trains the trials -> {trial: its result}, with "failure" (a sentence) where it has none.

    Goes on from its checkpoints. Writes WORKDIR/groups/NAME and WORKDIR/trials/TRIAL.

    Raises:
      Stopped: SIGTERM came; all is saved.
    """
    folder = workdir / "groups" / name
    try:
        found = _train(specs, folder)
    except Stopped:
        raise
    except Exception as e:  # the trials are the user's; whatever goes wrong is theirs alone
        if len(specs) == 1:
            found = {specs[0].name: {"failure": _sentence(e)}}
        else:
            say(f"The group {name} failed ({_sentence(e)}): its trials are run one by one.")
            found = {}
            for spec in specs:
                found |= run_group([spec], workdir, f"{name}-{spec.name}")
            return found
    for spec in specs:
        target = workdir / "trials" / spec.name
        atomic.make_folder(target)
        made = found[spec.name].pop("folder", None)
        for file in (STUDENT, METRICS, EVALUATIONS):
            if made is not None and (folder / made / file).is_file():
                shutil.copy2(folder / made / file, target / file)
        table = {"changes": dict(spec.changes), **found[spec.name]}
        atomic.write_text(target / "result.json", json.dumps(table, indent=2, default=str) + "\n")
    return found


def _train(specs: Sequence[Spec], folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    config = specs[0].config
    teacher = _teacher(config.teacher)
    pairs = read_data("training pairs", config.data, keep=not config.pipeline.on)
    found: dict[str, dict[str, Any]] = {}
    networks: dict[str, api.Stereo] = {}
    for spec in specs:
        try:
            networks[spec.name] = begin(spec.config, spec.config.student, teacher, pairs)
        except Exception as e:
            found[spec.name] = {"failure": _sentence(e)}
    built = [spec for spec in specs if spec.name in networks]
    if not built:
        return found
    family = members(built)
    students = {m.name: [networks[s.name] for s in m.specs] for m in family}
    if len(family) == 1 and len(built) == 1:
        students = {"": students[family[0].name]}
        family = [Member("", family[0].specs)]
    plans = {}
    for m in family:
        # By the number of pairs, which epochs turn into steps.
        whole = tuple(Spec(s.name, s.changes, steps_of(s.config, len(pairs))) for s in m.specs)
        plans[m.name] = Member(m.name, whole).plan
    config = steps_of(config, len(pairs))
    with config.ignore_type():
        config.student = ", ".join(dict.fromkeys(s.config.student for s in built))
    check_settings(config, has_teacher=teacher is not None)
    watcher = watch(config, folder, teacher, students, plans=plans)
    train_together(
        config, folder, pairs, teacher=teacher, students=students, plans=plans, watcher=watcher
    )
    for m in family:
        for i, spec in enumerate(m.specs):
            at = "/".join(filter(None, (m.name, f"trial{i}" if len(m.specs) > 1 else "")))
            found[spec.name] = {"folder": at, **_result(spec, folder / at)}
    return found


def _result(spec: Spec, folder: pathlib.Path) -> dict[str, Any]:
    rows = read_history(folder)
    evaluations = read_history(folder, EVALUATIONS)
    last: dict[str, dict[str, float]] = {}
    for row in evaluations:  # averaged weights come after raw ones, and count where there are any
        last[row["set"]] = {k: v for k, v in row.items() if k not in ("step", "set", "weights")}
    by = spec.config.best_by
    curves = {
        name: _thin([[r["step"], r[by]] for r in evaluations if r["set"] == name and by in r])
        for name in last
    }
    result = {
        "student": spec.config.student,
        "loss": rows[-1]["loss"],
        "skipped": rows[-1]["skipped"],
        "sets": last,
        "curve": _thin([[row["step"], row["loss"]] for row in rows]),
        "set_curves": curves,
        **_cost(spec),
    }
    if not math.isfinite(rows[-1]["loss"]):
        result["failure"] = (
            f"Its loss is not finite: {rows[-1]['skipped']} of {rows[-1]['step']} updates were "
            "skipped."
        )
    return result


def _cost(spec: Spec) -> dict[str, float | str]:
    """Parameters and MACs of one forward pass over a pair of the size that it was trained at."""
    config = network_config(spec.config, spec.config.student)
    sizes = spec.config.pipeline.sizes[0] if spec.config.pipeline.on else None
    height, width = sizes or (spec.config.data.size or 512,) * 2
    return {
        "parameters": sum(parameter_counts(config).values()),
        "macs": sum(mac_counts(config, height, width).values()),
        "frame": f"{height}x{width}",
    }


_loaded: dict[str, api.Stereo] = {}


def _teacher(source: str) -> api.Stereo | None:
    """Kept between groups: all of a sweep likely have the same."""
    if not source:
        return None
    if source not in _loaded:
        _loaded.clear()
        _loaded[source] = api.load(source)
    return _loaded[source]


def _thin(points: Sequence[Any]) -> list[Any]:
    step = -(-len(points) // POINTS) or 1
    return [*points[:-1:step], *points[-1:]]


def _sentence(error: BaseException) -> str:
    """What failed, in one line."""
    text = " ".join(str(error).split()) or "no message"
    with contextlib.suppress(Exception):
        text = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
    return text[:400]


def missing(specs: Sequence[Spec], results: Mapping[str, Mapping]) -> list[Spec]:
    """Those without a result."""
    return [s for s in specs if s.name not in results or "failure" in results[s.name]]
