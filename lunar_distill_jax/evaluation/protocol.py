"""What is measured of a prediction: the light core, and the protocols users choose between."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lunar_distill_jax.evaluation import metrics, ours
from lunar_distill_jax.evaluation.catalogue import Metric
from lunar_distill_jax.evaluation.paper import protocol as paper
from lunar_distill_jax.types import PointMaps, StereoPair

Scores = tuple[dict[str, float], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How pairs are scored.

    metrics:    name -> what it is, in the order of tables
    prepare:    what all models of a pair share; raises InputError for an unusable pair
    score:      (prediction, prepared) -> (values of all `metrics`, curves by name)
    conditions: prepared -> {condition: bin} to break results down by
    numbers:    prepared -> {condition: what its bin was chosen by}
    faults:     name of a metric -> what is wrong with it, where the protocol is somebody else's
    """

    name: str
    metrics: Mapping[str, Metric]
    prepare: Callable[[StereoPair], Any]
    score: Callable[[PointMaps, Any], Scores]
    conditions: Callable[[Any], dict[str, str]] = lambda prepared: {}
    numbers: Callable[[Any], dict[str, float]] = lambda prepared: {}
    faults: Mapping[str, str] = dataclasses.field(default_factory=dict)


CORE = Protocol(
    "core",
    metrics.METRICS,
    metrics.ground_truth,
    lambda prediction, truth: (metrics.pair_metrics(prediction, truth), {}),
)
OURS = Protocol(
    "ours",
    ours.METRICS,
    ours.prepare,
    ours.score,
    lambda truth: truth.conditions,
    lambda truth: truth.numbers,
)
PAPER = Protocol("paper", paper.METRICS, paper.prepare, paper.score, faults=paper.FAULTS)
PROTOCOLS = {"ours": OURS, "paper": PAPER}
