"""Augmentations of a `StereoPair`: image, depth, intrinsics and pose move together, exactly."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lunar_distill_jax.data.crops import views_of, with_views
from lunar_distill_jax.data.frames import Frame
from lunar_distill_jax.types import StereoPair


def swap_views(pair: StereoPair) -> StereoPair:
    """View 2 becomes view 1."""
    return dataclasses.replace(
        pair,
        **{k: getattr(pair, k)[::-1] for k in ("image", "depth_m", "valid", "K", "T_world_cam")},
    )


def _turn_once(view: Frame) -> Frame:
    """The camera turned about its optical axis; the picture turns counter-clockwise by 90 degrees.

    Pixel (u, v) goes to (v, W - 1 - u), so camera coordinates (x, y, z) go to (y, -x, z). Where K
    has skew that leaves a K which is not triangular: the rest of the turn, K = U Q, goes to the
    pose.
    """
    (fx, skew, cx), (_, fy, cy), _ = view.K
    a, b, c, d = fy, 0.0, -skew, fx  # K for the turned axes, upper left
    norm = math.hypot(c, d)
    K = np.array(
        [
            [(a * d - b * c) / norm, (a * c + b * d) / norm, cy],
            [0, norm, view.valid.shape[1] - 1 - cx],
            [0, 0, 1],
        ]
    )
    Q = np.array([[d, -c, 0], [c, d, 0], [0, 0, norm]]) / norm
    T = view.T_world_cam.copy()
    T[:3, :3] = T[:3, :3] @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]) @ Q.T
    image, depth, valid = (np.rot90(x) for x in (view.image, view.depth_m, view.valid))
    return Frame(image, depth, valid, K, T)


def rotate_views(pair: StereoPair, quarters: tuple[int, int]) -> StereoPair:
    """Turns each camera about its optical axis, the pictures counter-clockwise.

    Frames that are not square must both be turned by an even or both by an odd number of quarters.
    """
    views = views_of(pair)
    for view, count in enumerate(quarters):
        for _ in range(count % 4):
            views[view] = _turn_once(views[view])
    return with_views(pair, views)


def rotate_view(pair: StereoPair, view: int, quarters: int) -> StereoPair:
    """Turns the camera of one view; the frame must be square, so that both keep one size."""
    return rotate_views(pair, (quarters, 0) if view == 0 else (0, quarters))


def roll_deg(pair: StereoPair) -> float:
    """By how much the picture of view 2 is turned against that of view 1, about the optical axis:
    degrees in (-180, 180]."""
    R = pair.T_world_cam[0, :3, :3].T @ pair.T_world_cam[1, :3, :3]
    return math.degrees(math.atan2(R[1, 0] - R[0, 1], R[0, 0] + R[1, 1]))


def least_roll(pair: StereoPair) -> int:
    """Quarter turns of view 2 (`rotate_views`) after which it is rolled by at most 45 degrees."""
    return -round(roll_deg(pair) / 90) % 4


def mirror(pair: StereoPair) -> StereoPair:
    """Left and right trade places in both pictures; the world is mirrored in its x with them."""
    K = pair.K.copy()
    K[:, 0, 2] = pair.image.shape[2] - 1 - K[:, 0, 2]
    K[:, 0, 1] *= -1
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


def turn_and_swap(pair: StereoPair, rng: np.random.Generator) -> StereoPair:
    """Random swap, mirror and quarter turns of a square pair, as its trajectory allows.

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
        pair = rotate_views(pair, (turn1, turn2))
    return pair


def upright(pair: StereoPair) -> StereoPair:
    """A square pair whose view 2 is turned by the quarters that leave the least roll."""
    return rotate_view(pair, 1, least_roll(pair))


def augment(pair: StereoPair, rng: np.random.Generator) -> StereoPair:
    """`turn_and_swap`, made `upright`, and a little jitter of brightness and contrast."""
    return jitter(upright(turn_and_swap(pair, rng)), rng, 0.25)
