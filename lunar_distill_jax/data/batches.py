"""Pairs -> arrays for the network; the order of samples is a pure function of (seed, step)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.data import correspondences
from lunar_distill_jax.data.augment import augment
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.types import StereoPair


def network_image(image: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] -> float32 in [-1, 1]"""
    return image.astype(np.float32) / np.float32(127.5) - 1


def stack_images(pairs: Sequence[StereoPair]) -> tuple[np.ndarray, np.ndarray]:
    """Both views of the pairs: two float32 [B, H, W, 3] in [-1, 1]."""
    images = network_image(np.stack([p.image for p in pairs]))
    return images[:, 0], images[:, 1]


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, 7, epoch]).permutation(count)


def sample_indices(seed: int, step: int, batch: int, count: int) -> np.ndarray:
    """Which samples step `step` sees: int [batch]; each epoch is a fresh permutation of `count`."""
    at = step * batch + np.arange(batch)
    return np.array([_permutation(seed, int(i // count), count)[i % count] for i in at])


def make_sample(
    pair: StereoPair, rng: np.random.Generator | None, *, matching: int, negatives: float = 0.5
) -> dict[str, np.ndarray]:
    """The arrays of one pair, as `make_batch` stacks them; `rng` draws the matches."""
    points = np.nan_to_num(geometry.pointmaps_cam1(pair)).astype(np.float32) / 1000
    T_cam2_cam1 = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
    T_cam2_cam1[:3, 3] /= 1000
    sample = {"T_cam2_cam1": np.nan_to_num(T_cam2_cam1).astype(np.float32)}
    for view in (0, 1):
        sample[f"image{view + 1}"] = network_image(pair.image[view])
        sample[f"valid{view + 1}"] = pair.valid[view]
        sample[f"points{view + 1}"] = points[view]
        sample[f"K{view + 1}"] = np.nan_to_num(pair.K[view]).astype(np.float32)
    if matching:
        assert rng is not None
        found = correspondences.draw(pair, rng, matching, negatives=negatives)
        sample |= {"pixels1": found.pixels1, "pixels2": found.pixels2, "pixels_valid": found.valid}
    return sample


def stack(samples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def make_batch(
    pairs: Sequence[StereoPair],
    rngs: Sequence[np.random.Generator],
    *,
    augmented: bool,
    matching: int,
) -> dict[str, np.ndarray]:
    """-> {"image1", "image2": float32 [B, H, W, 3] in [-1, 1], "valid1", "valid2": bool [B, H, W],
    "points1", "points2": float32 [B, H, W, 3] ground truth in camera 1, km, "T_cam2_cam1": float32
    [B, 4, 4], km, "K1", "K2": float32 [B, 3, 3]}, and where `matching` > 0 "pixels1", "pixels2":
    int32 [B, matching, 2] (x, y), "pixels_valid": bool [B, matching] (`correspondences.draw`)
    """
    if augmented:
        pairs = [augment(p, rng) for p, rng in zip(pairs, rngs, strict=True)]
    return stack(
        [make_sample(p, rng, matching=matching) for p, rng in zip(pairs, rngs, strict=True)]
    )


def check_pairs(pairs: Sequence[StereoPair]) -> None:
    """Raises InputError if there are no pairs, or they differ in size."""
    if not pairs:
        raise InputError("There is no pair to train on: give a folder that holds pairs.")
    sizes = {p.image.shape[1:3] for p in pairs}
    if len(sizes) > 1:
        raise InputError(
            f"The training pairs have different sizes ({sorted(sizes)}): set one with "
            "--config.data.size."
        )


def training_batches(
    pairs: Sequence[StereoPair],
    *,
    seed: int,
    batch: int,
    augmented: bool,
    matching: int,
    start: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from step `start` on; the pairs are of one size."""
    check_pairs(pairs)
    step = start
    while True:
        chosen = sample_indices(seed, step, batch, len(pairs))
        rngs = [np.random.default_rng([seed, 11, step, i]) for i in range(batch)]
        yield make_batch([pairs[i] for i in chosen], rngs, augmented=augmented, matching=matching)
        step += 1
