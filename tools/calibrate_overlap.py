"""Fits the probability of `reconstruct.overlap` on synthetic pairs, and tells how often it errs.

    python tools/calibrate_overlap.py [--geometries 48] [--seed 300]

Pairs of one geometry overlap; the first view of one and the second of another do not. Prints the
agreement of both kinds, and the logistic curve through them (HALF, STEEP) under a weak prior that
keeps it finite: the kinds are almost separable.
"""

import argparse

import numpy as np

from lunar_distill_jax.data.source import open_pairs
from lunar_distill_jax.progress import Progress
from lunar_distill_jax.reconstruction.overlap import HALF, STEEP, overlap

SIDE = 192  # pixels of the rendered frames
PRIOR = 1e-4  # of the squared steepness


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--geometries", type=int, default=48)
    parser.add_argument("--seed", type=int, default=300)
    args = parser.parse_args()
    _, pairs = open_pairs("synthetic", size=SIDE, geometries=args.geometries, seed=args.seed)
    pairs = list(pairs)
    one, other, kinds = [], [], []
    with Progress(len(pairs), "pairs") as progress:
        for pair, stranger in zip(pairs, pairs[7:] + pairs[:7], strict=True):
            one.append(overlap(*pair.image).agreement)
            kinds.append(pair.trajectory)
            if stranger.geometry != pair.geometry:
                other.append(overlap(pair.image[0], stranger.image[1]).agreement)
            progress.update(1)
    for kind in sorted(set(kinds)):
        values = np.sort([a for a, k in zip(one, kinds, strict=True) if k == kind])
        print(f"{kind:8s} {len(values)} overlapping: {_quantiles(values)}")
    print(f"unrelated {len(other)}: {_quantiles(np.sort(other))}")
    half, steep = fit(np.array([*one, *other]), np.repeat([1.0, 0.0], [len(one), len(other)]))
    print(f"fitted HALF {half:.2f} STEEP {steep:.0f}; in the code {HALF} and {STEEP}")
    missed, wrong = np.mean(np.array(one) < HALF), np.mean(np.array(other) >= HALF)
    print(f"at HALF: {missed:.1%} of overlapping pairs missed, {wrong:.1%} of unrelated accepted")


def _quantiles(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"agreement {low:.2f} to {high:.2f}, median {middle:.2f}"


def fit(agreement: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """(half, steep) of the logistic curve by Newton's method; the classes weigh the same."""
    weight = np.where(label > 0, 0.5 / label.mean(), 0.5 / (1 - label.mean()))
    features = np.stack([agreement, np.ones_like(agreement)], 1)
    beta = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-features @ beta))
        gradient = features.T @ (weight * (label - p)) - PRIOR * np.array([beta[0], 0])
        curvature = (features * (weight * p * (1 - p))[:, None]).T @ features
        beta += np.linalg.solve(curvature + np.diag([PRIOR, 1e-9]), gradient)
    return float(-beta[1] / beta[0]), float(beta[0])


if __name__ == "__main__":
    main()
