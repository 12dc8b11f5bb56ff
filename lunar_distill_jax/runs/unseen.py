"""Named sets of pairs beside a training run: their metrics, and pictures of their first pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lunar_distill_jax import api
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.evaluation import hosts, run
from lunar_distill_jax.evaluation.catalogue import Metric
from lunar_distill_jax.evaluation.metrics import METRICS
from lunar_distill_jax.evaluation.network import predictor
from lunar_distill_jax.report import figures, maps
from lunar_distill_jax.types import StereoPair

SIDE = 256  # pixels of a picture


def metric_of(name: str) -> Metric:
    """Raises InputError for a metric that cannot choose the best."""
    known = [key for key, metric in METRICS.items() if metric.better]
    if name not in known:
        raise InputError(f"config.best_by is {name!r}: choose from {', '.join(known)}.")
    return METRICS[name]


class SetEvaluator:
    """networks by folder -> {set: {folder: metrics}}; the same pairs and seed at every call."""

    def __init__(self, sets: Mapping[str, Sequence[StereoPair]], seed: int = 0):
        self._sets, self._seed = sets, seed

    def __call__(self, networks: Mapping[str, api.Stereo]) -> dict[str, dict[str, dict]]:
        out: dict[str, dict[str, dict]] = {}
        predictors = {folder: predictor(network) for folder, network in networks.items()}
        for name, pairs in self._sets.items():
            own = hosts.own_share(pairs)
            found = run.evaluate(predictors, own, seed=self._seed).summary
            out[name] = {
                folder: {k: v for k, v in values.items() if k in METRICS}
                for folder, values in found.items()
            }
        return out


def draw_pictures(pair: StereoPair, teacher: api.Stereo | None) -> Callable:
    """networks by folder -> {folder: {name: PNG of the first view}}: depths and errors, one scale.

    Names: "truth_depth", "teacher_depth", "teacher_error", "student_depth", "student_error".
    """
    of_teacher = None if teacher is None else predictor(teacher, 1)([pair])[0]

    def draw(networks: Mapping[str, api.Stereo]) -> dict[str, dict[str, bytes]]:
        out = {}
        for folder, network in networks.items():
            shown = {} if of_teacher is None else {"teacher": of_teacher}
            shown["student"] = predictor(network, 1)([pair])[0]
            small, shown = maps.thin(pair, shown, SIDE)
            truth, surfaces = maps.surfaces(small, shown)
            depth = figures.depth_scale(truth.depth_m[0])
            error = figures.error_scale([s.error_pct[0] for s in surfaces.values()])
            out[folder] = {"truth_depth": figures.paint(truth.depth_m[0], depth)}
            for name, surface in surfaces.items():
                out[folder][f"{name}_depth"] = figures.paint(surface.depth_m[0], depth)
                out[folder][f"{name}_error"] = figures.paint(surface.error_pct[0], error)
        return out

    return draw
