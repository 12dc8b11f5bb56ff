"""Pairs -> arrays for the network; the order of samples is a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lunar_distill_jax import geometry
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


def sample_indices(seed: int, step: int, batch: int, count: int) -> np.ndarray:
    """Which samples step `step` sees: int [batch]; each epoch is a fresh permutation of `count`."""
    at = step * batch + np.arange(batch)
    permuted = {
        e: np.random.default_rng([seed, 7, e]).permutation(count) for e in np.unique(at // count)
    }
    return np.array([permuted[i // count][i % count] for i in at])


def matches(pair: StereoPair, points_cam1: np.ndarray, rng: np.random.Generator, count: int):
    """Random pixels of view 1 and where their points appear in view 2.

    -> pixels1, pixels2: int32 [count, 2] (x, y), rounded; valid: bool [count], false where the
    point is outside view 2 or its depth there differs by more than 2 % (something else hides it)
    """
    height, width = pair.valid.shape[1:]
    pixels1 = rng.integers([width, height], size=(count, 2)).astype(np.int32)
    x, y = pixels1.T
    T_cam2_cam1 = geometry.inverse(geometry.relative_pose(pair.T_world_cam))
    points_cam2 = geometry.transform(T_cam2_cam1, points_cam1[0, y, x])
    z = points_cam2[:, 2]
    in_front = pair.valid[0, y, x] & (z > 0)
    uv = geometry.project(pair.K[1], np.where(in_front[:, None], points_cam2, [0, 0, 1]))
    pixels2 = np.rint(uv).astype(np.int64)
    inside = in_front & (pixels2 >= 0).all(1) & (pixels2 < [width, height]).all(1)
    pixels2 = np.where(inside[:, None], pixels2, rng.integers([width, height], size=(count, 2)))
    seen = pair.depth_m[1, pixels2[:, 1], pixels2[:, 0]]
    valid = inside & (np.abs(seen - z) < 0.02 * np.abs(z))
    return pixels1, pixels2.astype(np.int32), valid


def make_batch(
    pairs: Sequence[StereoPair],
    rngs: Sequence[np.random.Generator],
    *,
    augmented: bool,
    matching: int,
) -> dict[str, np.ndarray]:
    """-> {"image1", "image2": float32 [B, H, W, 3], "valid1", "valid2": bool [B, H, W], "points1",
    "points2": float32 [B, H, W, 3] ground truth in camera 1, km}, and where `matching` > 0
    "pixels1", "pixels2": int32 [B, matching, 2] (x, y), "pixels_valid": bool [B, matching]
    """
    if augmented:
        pairs = [augment(p, rng) for p, rng in zip(pairs, rngs, strict=True)]
    points = [geometry.pointmaps_cam1(p) for p in pairs]
    image1, image2 = stack_images(pairs)
    valid = np.stack([p.valid for p in pairs])
    batch = {
        "image1": image1,
        "image2": image2,
        "valid1": valid[:, 0],
        "valid2": valid[:, 1],
        "points1": np.stack([x[0] for x in points]).astype(np.float32) / 1000,
        "points2": np.stack([x[1] for x in points]).astype(np.float32) / 1000,
    }
    if matching:
        found = [
            matches(p, x, rng, matching) for p, x, rng in zip(pairs, points, rngs, strict=True)
        ]
        for key, values in zip(
            ("pixels1", "pixels2", "pixels_valid"), zip(*found, strict=True), strict=True
        ):
            batch[key] = np.stack(values)
    return batch


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
