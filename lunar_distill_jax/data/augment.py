"""Augmentations of a `StereoPair`: image, depth, intrinsics and pose move together, exactly."""

from __future__ import annotations

import dataclasses

import numpy as np

from lunar_distill_jax.types import StereoPair


def swap_views(pair: StereoPair) -> StereoPair:
    """View 2 becomes view 1."""
    return dataclasses.replace(
        pair,
        **{k: getattr(pair, k)[::-1] for k in ("image", "depth_m", "valid", "K", "T_world_cam")},
    )


def rotate_view(pair: StereoPair, view: int, quarters: int) -> StereoPair:
    """Turns the camera of one view about its optical axis: the picture turns counter-clockwise.

    The frame must be square, so that both views keep one size.
    """
    image, depth, valid, K, T = (
        np.copy(a) for a in (pair.image, pair.depth_m, pair.valid, pair.K, pair.T_world_cam)
    )
    width = image.shape[2]
    for _ in range(quarters % 4):
        for a in (image, depth, valid):
            a[view] = np.rot90(a[view])
        # Pixel (u, v) goes to (v, W - 1 - u), so camera coordinates (x, y, z) go to (y, -x, z).
        fx, fy, cx, cy = K[view][[0, 1, 0, 1], [0, 1, 2, 2]]
        K[view] = [[fy, 0, cy], [0, fx, width - 1 - cx], [0, 0, 1]]
        T[view, :3, :3] = T[view, :3, :3] @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    return dataclasses.replace(pair, image=image, depth_m=depth, valid=valid, K=K, T_world_cam=T)


def mirror(pair: StereoPair) -> StereoPair:
    """Left and right trade places in both pictures; the world is mirrored in its x with them."""
    K = pair.K.copy()
    K[:, 0, 2] = pair.image.shape[2] - 1 - K[:, 0, 2]
    flip = np.diag([-1.0, 1, 1, 1])
    return dataclasses.replace(
        pair,
        image=pair.image[:, :, ::-1],
        depth_m=pair.depth_m[:, :, ::-1],
        valid=pair.valid[:, :, ::-1],
        K=K,
        T_world_cam=flip @ pair.T_world_cam @ flip,
    )


def jitter(pair: StereoPair, rng: np.random.Generator, strength: float) -> StereoPair:
    """Brightness and contrast of each view on its own, factors in 1 +- `strength`."""
    image = pair.image.astype(np.float32)
    mean = image.mean((1, 2, 3), keepdims=True)
    contrast, brightness = 1 + strength * rng.uniform(-1, 1, (2, 2, 1, 1, 1)).astype(np.float32)
    image = (mean + contrast * (image - mean)) * brightness
    # Rounded: cutting off would darken every frame by half a grey level.
    return dataclasses.replace(pair, image=np.rint(np.clip(image, 0, 255)).astype(np.uint8))


def augment(pair: StereoPair, rng: np.random.Generator) -> StereoPair:
    """Random swap, mirror, quarter turns and jitter of a square pair, as its trajectory allows.

    What a trajectory fixes stays fixed, or a network unlearns it: camera 2 of a nadir pair lies to
    the left (so a mirrored pair is also swapped), the horizon of an oblique pair is up. The views
    of a dynamic pair, which may have any roll, turn each on its own.
    """
    swap, flip, turn1, turn2 = rng.integers([2, 2, 4, 4])
    if pair.trajectory == "nadir":
        swap = flip
    if swap:
        pair = swap_views(pair)
    if flip:
        pair = mirror(pair)
    if pair.trajectory == "dynamic":
        pair = rotate_view(rotate_view(pair, 0, turn1), 1, turn2)
    return jitter(pair, rng, 0.25)
