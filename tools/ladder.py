"""Ranks predictions that get worse step by step, on real frames, by both protocols.

    python tools/ladder.py DIR [--size 512]

DIR: a folder in StereoLunar's format. The predictions are the true depths: de-quantised, blurred,
with white noise, and replaced by the plane through them. Prints a table for docs/evaluation.md,
medians over geometries; what the public code would say is of view 1, without alignment.
"""

import argparse

import numpy as np
from scipy import ndimage

from lunar_distill_jax import geometry
from lunar_distill_jax.data.source import open_folder
from lunar_distill_jax.evaluation import ours
from lunar_distill_jax.evaluation.paper import classic, relief
from lunar_distill_jax.progress import Progress
from lunar_distill_jax.twoview import dem
from lunar_distill_jax.types import PointMaps, StereoPair

OURS = ("point_error_gsd", "height_rmse_m", "slope_mae_deg", "hazard_10_miss_nominal_pct",
        "relief_corr")  # fmt: skip
PAPER = ("chamfer_gsd", "ssim", "slope_mae", "slope_corr", "slope_ssim", "agree_10")
NOISE = 0.001  # of the depth


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--size", type=int, default=512)
    args = parser.parse_args()
    pairs = {pair.geometry: pair for pair in open_folder(args.data, size=args.size)}.values()
    rows: dict[str, list[dict]] = {}
    with Progress(len(pairs), "geometries") as progress:
        for pair in pairs:
            truth = ours.prepare(pair)
            for name, depths in ladder(pair, truth).items():
                values = ours.score(prediction(pair, depths), truth)[0]
                values |= public(pair, depths[0])
                rows.setdefault(name, []).append(values)
            progress.update(1)
    print(f"| {len(pairs)} geometries | {' | '.join((*OURS, *PAPER))} |")
    print("|---" * (1 + len(OURS) + len(PAPER)) + "|")
    for name, found in rows.items():
        middle = [np.median([values[key] for values in found]) for key in (*OURS, *PAPER)]
        print(f"| {name} | {' | '.join(f'{value:.3g}' for value in middle)} |")


def ladder(pair: StereoPair, truth: ours.Truth) -> dict[str, np.ndarray]:
    """Depths [2, H, W] by name, the best first."""
    known = pair.valid
    depths = np.where(known, pair.depth_m, truth.surface.plane)
    smooth = np.stack([dem.dequantise(z, valid) for z, valid in zip(depths, known, strict=True)])
    rows = {"stored": depths, "de-quantised": smooth}
    for sigma in (2, 8, 24):
        rows[f"blur {sigma} px"] = np.stack(
            [ndimage.gaussian_filter(z, sigma, mode="nearest") for z in smooth]
        )
    noise = np.random.default_rng(0).standard_normal(smooth.shape)
    rows["noise 0.1 %"] = smooth * (1 + NOISE * noise)
    rows["plane"] = truth.surface.plane
    return rows


def prediction(pair: StereoPair, depths: np.ndarray) -> PointMaps:
    """Point maps of depths in each own camera, by the true pose."""
    own = [geometry.backproject(z, K) for z, K in zip(depths, pair.K, strict=True)]
    own[1] = geometry.transform(geometry.relative_pose(pair.T_world_cam), own[1])
    return PointMaps(np.stack(own), np.ones(pair.valid.shape))


def public(pair: StereoPair, depth: np.ndarray) -> dict[str, float]:
    """The public code's metrics of view 1's depth, as `PAPER` names them."""
    cut = depth.shape[0] // 8
    true, valid = pair.depth_m[0, cut:-cut].astype(np.float64), pair.valid[0, cut:-cut]
    depth = depth[cut:-cut]
    clouds = [geometry.backproject(z, pair.K[0])[valid] for z in (depth, true)]
    near = classic.nearest_neighbours(clouds[0], clouds[1])["chamfer"]
    return {
        "chamfer_gsd": near / (np.median(true[valid]) / pair.K[0, 0, 0]),
        **classic.depth_errors(depth, true, valid),
        **relief.slope_errors(depth, true, relief.eroded(valid)),
        **relief.relief_errors(depth, true, relief.eroded(valid)),
    }


if __name__ == "__main__":
    main()
