"""How much of the residual stream a student of any width could keep."""

from __future__ import annotations

from typing import Any

import numpy as np

from lunar_distill_jax.init import basis
from lunar_distill_jax.init.decoder import Decoder

POINTS = 33  # widths that are told


def energy_report(made: Decoder) -> dict[str, Any]:
    """The share of unit tokens' energy in the basis, by width and norm.

    -> {"student_width", "teacher_width", "widths": [n], "norms": {"view1/block0/norm1": [n]}}

    A student of width s keeps s - 1 directions of what norms see, and the mean beside.
    """
    s, d = made.E.shape
    widths = np.unique(np.append(np.linspace(1, d, POINTS).round().astype(int), min(s, d)))
    depth = max(i for _, i, norm in made.moments.norms if norm == "norm")
    norms = {}
    for (view, i, norm), z in sorted(made.moments.norms.items()):
        if norm != "norm_y":  # the other view's norm1
            name = f"view{view}/norm" if i == depth else f"view{view}/block{i}/{norm}"
            shares = basis.retained(z.second, made.directions)
            norms[name] = [round(float(share), 6) for share in shares[widths - 1]]
    return {
        "student_width": int(s),
        "teacher_width": int(d),
        "widths": widths.tolist(),
        "norms": norms,
    }
