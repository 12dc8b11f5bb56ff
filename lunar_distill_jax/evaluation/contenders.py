"""Who is compared: networks by the names a user gives them, and the baselines beside them."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

from lunar_distill_jax import api
from lunar_distill_jax.data.source import synthetic_moon
from lunar_distill_jax.data.synthetic import TRAINING_SEEDS, synthetic_pairs
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.evaluation import (
    baselines,
    classical,
    colmap,
    efficiency,
    network,
    rectified,
)
from lunar_distill_jax.evaluation.network import SIDE
from lunar_distill_jax.evaluation.run import Predictor
from lunar_distill_jax.models.zoo import ARCHITECTURES
from lunar_distill_jax.moon.options import STEREOLUNAR
from lunar_distill_jax.twoview import essential

BASELINES = ("mean", "identity", "random", "plane", "sift", "sgm", "colmap")
KNOW_NOTHING = {
    "mean": baselines.mean_baseline,
    "identity": baselines.identity_baseline,
    "random": baselines.random_baseline,
}
MEAN_OF = 90  # rendered geometries
ADJUSTED = "_adjusted"  # in the name of a network whose maps are bent (`network.predictors`)
UNTRAINED = "(untrained)"  # in the name of an architecture that was given no weights


def networks(sources: Sequence[str]) -> dict[str, api.Stereo]:
    """The models by short, different names.

    sources: what `api.load` takes, or the name of an architecture, which gets fresh parameters and
             "(untrained)" in its name

    Raises:
      InputError: a source is no model, or is given twice.
    """
    if len(set(sources)) < len(sources):
        twice = next(s for s in sources if list(sources).count(s) > 1)
        raise InputError(f"The model {twice} is given twice: give each model once.")
    out: dict[str, api.Stereo] = {}
    for source in sources:
        fresh = source in ARCHITECTURES and source not in api.EMBEDDED
        if fresh and not pathlib.Path(source).exists():
            out[f"{source} {UNTRAINED}"] = api.build(source)
            continue
        path = pathlib.Path(source)
        name = path.stem if path.is_file() else path.name or source
        if name in out:  # two files of one name: their folders tell them apart
            name = f"{path.absolute().parent.name}/{name}"
        if name in out or name in RESERVED:
            name = str(source)
        out[name] = api.load(source)
    for name in out:
        if name + ADJUSTED in out:
            raise InputError(
                f"The model {name + ADJUSTED} is called as the adjusted maps of {name} are: rename "
                "its file, or evaluate it alone."
            )
    return out


RESERVED = {"noise_floor", "ground_truth", *(f"baseline_{name}" for name in BASELINES)}


def common_side(models: Mapping[str, api.Stereo]) -> int:
    """Side of the frames that all models see: the first one's training size, if any says."""
    return next((m.training_side for m in models.values() if m.training_side), SIDE)


def predictors(
    programs: Mapping[str, efficiency.Program],
    beside: Sequence[str],
    stored: classical.Native,
    means: baselines.Means | None = None,
    *,
    floor: bool = True,
) -> dict[str, Predictor]:
    """Name -> predictor: networks, each as it says and adjusted, then "baseline_NAME" of each in
    `beside`, "noise_floor".

    programs: the networks, compiled for the evaluated frames
    stored: an evaluated pair -> the same pair as it is stored
    means: for the baselines that know nothing else; without it they are left out

    Raises:
      InputError: a baseline that there is not, or whose library is absent.
    """
    out: dict[str, Predictor] = {}
    for name, program in programs.items():
        own, adjusted = network.predictors(program.stereo, program=program)
        out |= {name: own, name + ADJUSTED: adjusted}
    for name in beside:
        if name in KNOW_NOTHING:
            if means is not None:
                out[f"baseline_{name}"] = KNOW_NOTHING[name](means)
        else:
            out[f"baseline_{name}"] = _baseline(name, stored)
    if floor:
        out["noise_floor"] = baselines.noise_floor
    return out


def available() -> tuple[str, ...]:
    """The baselines whose libraries are installed."""
    there = {
        "mean": True,
        "identity": True,
        "random": True,
        "plane": True,
        "sift": essential.has_opencv(),
        "sgm": essential.has_opencv(),
    }
    there["colmap"] = colmap.has_colmap()
    return tuple(name for name in BASELINES if there[name])


def rendered_means(source: str | os.PathLike, side: int) -> baselines.Means:
    """Of rendered training terrain of the same kind of Moon; of StereoLunar's for a folder."""
    moon = synthetic_moon(source) or STEREOLUNAR
    return baselines.trajectory_means(synthetic_pairs(TRAINING_SEEDS, MEAN_OF, side, moon=moon))


def check(beside: Sequence[str]) -> None:
    """Raises InputError for a baseline that there is not, or whose library is absent."""
    for name in beside:
        if name not in KNOW_NOTHING:
            _baseline(name, lambda pair: pair)


def _baseline(name: str, stored: Callable) -> Predictor:
    if name == "plane":
        return baselines.plane_baseline
    if name == "colmap":
        return colmap.colmap_baseline(stored)
    if name not in BASELINES:
        raise InputError(f"There is no baseline {name!r}: choose from {', '.join(BASELINES)}.")
    essential.opencv()  # says now, and not after minutes, that it is absent
    return classical.sift_baseline(stored) if name == "sift" else rectified.sgm_baseline(stored)
