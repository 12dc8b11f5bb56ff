"""Pose metrics of the public code."""

from __future__ import annotations

import numpy as np

POSE_AUC_DEG = (5, 10, 20)
VCRE_PX = (50, 100, 200)


def auc(errors: np.ndarray, limit: float, bins: int) -> float:
    """Area under recall(x) for x up to `limit` at `bins` + 1 points, in %, two decimals."""
    x = np.linspace(0, limit, bins + 1)
    recall = (np.asarray(errors)[None] <= x[:, None]).mean(1)
    return round(float(np.trapezoid(recall, x) / limit * 100), 2)


def pose_auc(errors_deg: np.ndarray) -> dict[str, float]:
    """AUC@5, 10, 20 degrees of max(RRA, RTA) over pairs; failures are infinite."""
    return {f"auc_{t}": auc(errors_deg, t, 10 * t) for t in POSE_AUC_DEG}


def vcre_rates(errors_px: np.ndarray) -> dict[str, float]:
    """Share of pairs below, and AUC at, each threshold of VCRE."""
    errors = np.asarray(errors_px)
    out = {f"vcre_prec_{t}": float(100 * (errors < t).mean()) for t in VCRE_PX}
    return out | {f"vcre_auc_{t}": auc(errors, t, max(2 * t, 100)) for t in VCRE_PX}
