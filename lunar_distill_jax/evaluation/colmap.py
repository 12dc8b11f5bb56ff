"""COLMAP: its SIFT, matcher and calibrated two-view geometry (pycolmap, the `colmap` extra).

Schoenberger and Frahm, "Structure-from-Motion Revisited" (CVPR 2016). K is given; no bundle
adjustment. The inliers are triangulated and interpolated as those of `sift_baseline` are.
"""

from __future__ import annotations

import importlib.util
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.evaluation import classical
from lunar_distill_jax.types import PointMaps, StereoPair

WORKER = pathlib.Path(__file__).with_name("colmap_worker.py")
SECONDS = 600  # that one pair may take


def has_colmap() -> bool:
    return importlib.util.find_spec("pycolmap") is not None


def colmap_baseline(native: classical.Native):
    """Predictor: COLMAP's sparse points, interpolated over each view. native: as `sift_baseline`.

    Raises:
      InputError: pycolmap is not installed, here and now.
    """
    if not has_colmap():
        raise InputError(
            "The COLMAP baseline needs pycolmap, which is not installed: run "
            '`pip install "lunar-distill-jax[colmap]"`, or leave the baseline out.'
        )

    def predict(pairs: Sequence[StereoPair]) -> list[PointMaps]:
        stored = [native(pair) for pair in pairs]
        return [
            classical.sparse(pair, full, *two_view(full))
            for pair, full in zip(pairs, stored, strict=True)
        ]

    return predict


def two_view(full: StereoPair) -> tuple[classical.TwoView | None, np.ndarray]:
    """The pose COLMAP finds, or None, and all its matches [N, 4] at integer pixel centres."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "images").mkdir()
        for view, image in enumerate(full.image):
            Image.fromarray(image).save(folder / "images" / f"{view}.png", compress_level=1)
        K = full.K
        centre = K[:, :2, 2] + 0.5  # COLMAP's pixel (0, 0) begins at the corner of the frame
        np.save(folder / "cameras.npy", np.stack([K[:, 0, 0], K[:, 1, 1], *centre.T], 1))
        run = subprocess.run(
            [sys.executable, str(WORKER), name], capture_output=True, text=True, timeout=SECONDS
        )
        if run.returncode:
            raise RuntimeError(f"COLMAP failed on {full.name}: {run.stderr.strip()[-2000:]}")
        with np.load(folder / "result.npz") as result:
            matches, T, inliers = (result[k] for k in ("matches", "T_cam2_cam1", "inliers"))
    matches = matches - 0.5
    if not np.isfinite(T).all() or inliers.sum() < classical.FEWEST_INLIERS:
        return None, matches
    T[:3, 3] /= max(np.linalg.norm(T[:3, 3]), 1e-300)
    return classical.TwoView(full, matches, inliers, T), matches
