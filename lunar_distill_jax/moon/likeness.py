"""How far synthetic frames are from real ones: distances of statistics, and classifiers that try
to tell them apart.

A classifier two-sample test (Lopez-Paz and Oquab 2017) trains on a part of both and is scored on
the rest: an AUC of 0.5 says that it found nothing, 1 that it can tell every frame. Frames of one
ground are never split, or it would learn the ground.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.stats


def distance(real: np.ndarray, made: np.ndarray) -> float:
    """Wasserstein-1 distance of two samples [N], [M] of a number, in standard deviations of the
    real one."""
    spread = max(float(np.std(real)), 1e-9 * abs(float(np.mean(real))), 1e-12)
    return float(scipy.stats.wasserstein_distance(real, made)) / spread


def auc(score: np.ndarray, label: np.ndarray) -> float:
    """Probability that a row of label 1 scores higher than one of label 0 (a tie counts half)."""
    rank = scipy.stats.rankdata(score)
    ones = int(label.sum())
    return float((rank[label == 1].sum() - ones * (ones + 1) / 2) / (ones * (len(label) - ones)))


def _weights(label: np.ndarray) -> np.ndarray:
    """So that both labels count the same, [N] of mean 1."""
    share = label.mean()
    return np.where(label == 1, 0.5 / share, 0.5 / (1 - share))


def logistic_scores(
    train: np.ndarray, label: np.ndarray, test: np.ndarray, ridge: float = 1e-2
) -> np.ndarray:
    """Scores [M] of rows `test` [M, D] by a logistic regression on `train` [N, D].

    Columns are scaled to the training rows; the two labels weigh the same.
    """
    mean, spread = train.mean(0), np.maximum(train.std(0), 1e-9)
    x, sign, weight = (train - mean) / spread, 2.0 * label - 1.0, _weights(label)

    def loss(w):
        margin = sign * (x @ w[:-1] + w[-1])
        slope = -weight * sign / (1 + np.exp(np.clip(margin, -500, 500)))
        gradient = np.append(x.T @ slope / len(x) + 2 * ridge * w[:-1], slope.mean())
        return (weight * np.logaddexp(0, -margin)).mean() + ridge * w[:-1] @ w[:-1], gradient

    found = scipy.optimize.minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return (test - mean) / spread @ found[:-1] + found[-1]


def texture(patches: np.ndarray, *, filters: int = 48, seed: int = 0) -> np.ndarray:
    """What grey patches [N, P, P] look like to random filters -> [N, 3 filters + 2].

    Of each response over the patch: log of its power, skewness and log of its kurtosis; and the
    mean and standard deviation of the patch. Filters are 9 x 9, of all orientations and scales, and
    blind to brightness.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-4:5, -4:5]
    bank = []
    for _ in range(filters):
        angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        sigma, waves = np.exp(rng.uniform(np.log(0.6), np.log(2.5))), rng.uniform(0.05, 0.45)
        wave = np.cos(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + phase)
        kernel = wave * np.exp(-(x**2 + y**2) / (2 * sigma**2))
        kernel -= kernel.mean()
        bank.append(kernel / np.linalg.norm(kernel))
    kernels = jnp.asarray(np.array(bank)[:, None], jnp.float32)
    parts = [patches[i : i + 128] for i in range(0, len(patches), 128)]
    rows = [np.asarray(_moments(jnp.asarray(part, jnp.float32), kernels)) for part in parts]
    return np.concatenate(rows)


@jax.jit
def _moments(patches: jax.Array, kernels: jax.Array) -> jax.Array:
    """[N, P, P] and [F, 1, 9, 9] -> [N, 3 F + 2] (`texture`)."""
    seen = jax.lax.conv(patches[:, None], kernels, (1, 1), "VALID")  # [N, F, P - 8, P - 8]
    power, third, fourth = ((seen**k).mean((2, 3)) + (k == 2) * 1e-3 for k in (2, 3, 4))
    shape = [jnp.log(power), third / power**1.5, jnp.log(jnp.maximum(fourth, 1e-6) / power**2)]
    first = jnp.stack([patches.mean((1, 2)), patches.std((1, 2))], 1)
    return jnp.concatenate([*shape, first], 1)


def two_sample(rows: np.ndarray, real: np.ndarray, fold: Sequence[str]) -> dict[str, float]:
    """AUC of telling real rows from made ones by `logistic_scores`, for each fold held out in turn.

    rows: [N, D] what the classifier sees; real: bool [N]; fold: of each row. A fold must hold
    both kinds, and all frames of each of its grounds.
    """
    label, folds = np.asarray(real).astype(int), np.asarray(fold)
    found = {}
    for name in dict.fromkeys(fold):
        out = folds == name
        found[name] = auc(logistic_scores(rows[~out], label[~out], rows[out]), label[out])
    return found
