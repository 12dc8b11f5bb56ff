"""Which losses there are and how each is computed; how much each counts is the config's table."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import Any

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.losses.matching import MatchingSettings
from lunar_distill_jax.losses.points import PointSettings

TERMS = (
    *("points", "confidence", "gradient", "relief", "sobel"),
    *("features", "hooks", "relational"),
    *("matching", "descriptors"),
    *("tokens", "attention", "covisibility"),
)
# Terms that ask where the other view shows a token's ground, as the true geometry has it.
OF_THE_FLOW = ("tokens", "attention", "covisibility")
# Terms that imitate what only a teacher has.
OF_A_TEACHER = ("confidence", "features", "hooks", "relational", "descriptors")


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The settings of all terms; a term with weight 0 is not computed.

    points:      of "points", and what "gradient", "relief" and "sobel" compare
    matching:    of "matching"
    feature_kind, margin: of "features": "cosine_margin" or "mixed"
    across:      weight of the coordinates x and y against z in "sobel"
    relational_temperature, relational_tokens: of "relational"; so many tokens a view are drawn
    descriptor_temperature: of "descriptors"
    least_sure:  share of each sample's pixels, those the teacher is least sure of, that no loss
                 sees; 0: none
    least_confidence: the same by an absolute confidence (>= 1); 0: none
    """

    points: PointSettings = PointSettings()
    matching: MatchingSettings = MatchingSettings()
    feature_kind: str = "cosine_margin"
    margin: float = 0.9
    across: float = 0.1
    relational_temperature: float = 0.1
    relational_tokens: int = 512
    descriptor_temperature: float = 0.05
    least_sure: float = 0.0
    least_confidence: float = 0.0

    def __post_init__(self):
        if self.feature_kind not in ("cosine_margin", "mixed"):
            raise InputError(
                f"feature_kind is {self.feature_kind!r}: choose cosine_margin or mixed."
            )
        if not 0 <= self.least_sure < 1:
            raise InputError(f"least_sure is {self.least_sure}: give a share, 0 or more, below 1.")
        if 0 < self.least_confidence <= 1:
            raise InputError(
                f"least_confidence is {self.least_confidence:g}, which leaves every pixel in: "
                "confidences are 1 or more. Give a larger one, or a share by least_sure."
            )


def loss_settings(values: Mapping[str, Any]) -> LossSettings:
    """The settings from a table of those that are not the default, "points" and "matching" nested.

    Raises:
      InputError: an unknown key, or a value that is none of its choices.
    """
    parts = {"points": PointSettings, "matching": MatchingSettings}
    built = {k: _build(parts[k], v, f" of {k}") if k in parts else v for k, v in values.items()}
    return _build(LossSettings, built, "")


def check_terms(values: Collection[str]) -> None:
    """Raises InputError for a term that there is not."""
    unknown = sorted(set(values) - set(TERMS))
    if unknown:
        raise InputError(f"Unknown loss {', '.join(unknown)}: choose from {', '.join(TERMS)}.")


def loss_weights(values: Mapping[str, float], *, has_teacher: bool) -> dict[str, float]:
    """{term: weight} of the terms that are on.

    Raises:
      InputError: an unknown term, none that is on, or one that needs a teacher where there is none.
    """
    check_terms(values)
    weights = {term: float(values[term]) for term in TERMS if values.get(term)}
    if not weights:
        raise InputError(f"No loss is on: give one of {', '.join(TERMS)} a weight that is not 0.")
    for term in OF_A_TEACHER:
        if term in weights and not has_teacher:
            raise InputError(
                f"loss.{term} is {weights[term]:g} but there is no teacher to imitate: set it to 0."
            )
    return weights


def _build(cls, values: Mapping[str, Any], where: str):
    known = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}."
            raise InputError(f"The loss settings{where} have no key {key}: {hint}")
    return cls(**values)
