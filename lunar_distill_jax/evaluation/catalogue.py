"""What a number is: its name on a page, its unit, which way is better, how pairs are summed up."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Metric:
    """One column.

    name:    in words, for pages
    unit:    "" where it has none
    better:  -1 lower, +1 higher, 0 neither
    form:    how to print it
    group:   heading it stands under
    about:   what it is, in a sentence
    average: "mean" over pairs that have a value, or "median" over all, failures counted as infinite
    detail:  kept out of the main table
    """

    name: str
    unit: str = ""
    better: int = 0
    form: str = ".4g"
    group: str = "surface"
    about: str = ""
    average: str = "mean"
    detail: bool = False


GROUPS = {  # in the order of pages
    "surface": "Surface, one scale from the ground truth",
    "scale": "Surface without that scale",
    "similarity": "Surface after a whole similarity",
    "relief": "Relief",
    "consistency": "Agreement of both views",
    "matching": "Matches",
    "pose": "Relative pose",
    "terrain": "Terrain model",
    "hazard": "Landing hazards",
    "confidence": "Confidence",
    "cost": "Cost",
    "paper": "As the public code measures",
}
