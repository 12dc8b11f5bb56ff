"""Resizing, cutting and turning the views of a pair; image, depth, K and pose move together."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from lunar_distill_jax import geometry
from lunar_distill_jax.data import frames
from lunar_distill_jax.data.correspondences import seen_at
from lunar_distill_jax.data.frames import Frame
from lunar_distill_jax.data.reprojection import sample_depth
from lunar_distill_jax.types import StereoPair

WINDOWS = 4  # of each view, from which a homography crop chooses the best pair


def views_of(pair: StereoPair) -> list[Frame]:
    return [
        Frame(pair.image[v], pair.depth_m[v], pair.valid[v], pair.K[v], pair.T_world_cam[v])
        for v in (0, 1)
    ]


def with_views(pair: StereoPair, views: list[Frame]) -> StereoPair:
    return frames.make_pair(pair.name, pair.geometry, pair.trajectory, views)


def covering_size(old: tuple[int, int], new: tuple[int, int], zoom: float = 1.0) -> tuple[int, int]:
    """The size (height, width) to which `old` is resampled so that it covers `new`, times zoom."""
    scale = zoom * max(new[0] / old[0], new[1] / old[1])
    return max(round(old[0] * scale), new[0]), max(round(old[1] * scale), new[1])


def cut(view: Frame, top: int, left: int, size: tuple[int, int]) -> Frame:
    """The window `size` (height, width) of a frame."""
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    K = view.K.copy()
    K[:2, 2] -= left, top
    image, depth, valid = (a[rows, columns] for a in (view.image, view.depth_m, view.valid))
    return Frame(image, depth, valid, K, view.T_world_cam)


def centre_crop(pair: StereoPair, size: tuple[int, int]) -> StereoPair:
    """Resampled so that it covers `size` (height, width), then cut in the middle."""
    views = []
    for view in views_of(pair):
        new = covering_size(view.valid.shape, size)
        if new != view.valid.shape:
            view = frames.resize_frame(view, new)
        views.append(cut(view, (new[0] - size[0]) // 2, (new[1] - size[1]) // 2, size))
    return with_views(pair, views)


def turn_camera(view: Frame, top: float, left: float, size: tuple[int, int]) -> Frame:
    """What a camera turned to the middle of a window would have seen: a homography of the frame.

    The new camera has its principal point in the middle of its `size` (height, width), square
    pixels and no skew; its focal length is the largest with which all that it sees lies inside the
    window, so nothing is seen that the frame does not show. The image is bicubic, depth is bilinear
    in 1 / depth and turned: exact on planes.

    Raises:
      ValueError: K is not known.
    """
    if not np.isfinite(view.K).all():
        raise ValueError("a camera that is not known cannot be turned")
    height, width = size
    middle = np.array([left + (width - 1) / 2, top + (height - 1) / 2, 1.0])
    axis = np.linalg.inv(view.K) @ middle
    # The smallest turn that brings the optical axis to the middle of the window.
    R = _turn_to(axis / np.linalg.norm(axis))  # old camera <- new camera
    corners = np.array([[x, y, 1] for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)])
    low, high = np.array([left, top]) - 0.5, np.array([left + width, top + height]) - 0.5

    def camera(focal):
        return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])

    def fits(focal):
        seen = geometry.project(view.K @ R @ np.linalg.inv(camera(focal)), corners)
        return ((seen >= low) & (seen <= high)).all()

    wide, narrow = (factor * math.sqrt(view.K[0, 0] * view.K[1, 1]) for factor in (0.2, 5.0))
    for _ in range(40):
        focal = math.sqrt(wide * narrow)
        wide, narrow = (wide, focal) if fits(focal) else (focal, narrow)
    K = camera(narrow)
    H = view.K @ R @ np.linalg.inv(K)  # pixel of the new frame -> of the old one
    v, u = np.mgrid[:height, :width].reshape(2, -1).astype(np.float64)
    x, y, w = (row[0] * u + row[1] * v + row[2] for row in H)
    # No extrapolation: depth is not known beyond the middles of the border pixels.
    depth, known, spread = sample_depth(view.depth_m, view.valid, np.stack([x / w, y / w], 1))
    known &= spread <= frames.images.DEPTH_JUMP - 1
    # H = K_old R K^-1, so w is the z of the new ray in the old camera.
    turned = depth / w
    T = view.T_world_cam.copy()
    T[:3, :3] = T[:3, :3] @ R
    shape = (height, width)
    return Frame(
        _warp(view.image, H, size),
        np.where(known, turned, 0).astype(np.float32).reshape(shape),
        known.reshape(shape),
        K,
        T,
    )


def _turn_to(axis: np.ndarray) -> np.ndarray:
    """The rotation [3, 3] of least angle that maps (0, 0, 1) to the unit vector `axis`."""
    x, y, z = axis
    cross = np.array([[0, 0, x], [0, 0, y], [-x, -y, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + z)


def _warp(image: np.ndarray, H: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """image [H, W, 3] at H @ (u, v, 1) of every new pixel; bicubic."""
    # Pillow counts from the corner of the first pixel, we from its centre.
    corner = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    H = corner @ H @ np.linalg.inv(corner)
    H = H / H[2, 2]
    picture = Image.fromarray(image).transform(
        (size[1], size[0]),
        Image.Transform.PERSPECTIVE,
        H.ravel()[:8].tolist(),
        Image.Resampling.BICUBIC,
    )
    return np.asarray(picture)


def homography_crop(
    pair: StereoPair, size: tuple[int, int], rng: np.random.Generator
) -> StereoPair:
    """Two windows of the views that share much ground, each as a camera turned to it sees it.

    As MASt3R's `aug_crop`: each view is resampled to cover `size` times a zoom of its own, up to
    1 + max(0.1, 1 - R / S) (S the frame's short side, R that of `size`); of 4 x 4 random windows
    the two that hold most correspondences are kept. Without depth or cameras it is a plain random
    window.
    """
    zoomed, corners = [], []
    for view in views_of(pair):
        S, R = min(view.valid.shape), min(size)
        most = max(0.1, (S - R) / R)
        zoom = math.exp(rng.uniform(0, math.log1p(most)))
        new = covering_size(view.valid.shape, size, zoom)
        zoomed.append(frames.resize_frame(view, new))
        room = [new[0] - size[0] + 1, new[1] - size[1] + 1]
        corners.append(rng.integers(0, room, (WINDOWS, 2)))
    chosen = corners[0][0], corners[1][0]
    known = np.isfinite(pair.K).all() and np.isfinite(pair.T_world_cam).all()
    if known and pair.valid.any((1, 2)).all():
        chosen = _best_windows(pair, [view.valid.shape for view in zoomed], corners, size)
    views = []
    for view, (top, left) in zip(zoomed, chosen, strict=True):
        turned = np.isfinite(view.K).all()
        views.append(turn_camera(view, top, left, size) if turned else cut(view, top, left, size))
    return with_views(pair, views)


def _best_windows(pair, shapes, corners, size):
    """The corner (top, left) in each view, of those given, that share most visible ground.

    shapes: what the views were resampled to; corners: [n, 2] of windows in these
    """
    v, u = np.nonzero(pair.valid[0])
    some = slice(None, None, max(1, len(v) // 4096))
    pixels = np.stack([u[some], v[some]], 1)
    uv, visible, _ = seen_at(pair, 0, 1, pixels)

    def held(points, shape, corner):
        scale = np.array(shape) / pair.valid.shape[1:]
        offset = (points[:, ::-1] + 0.5) * scale - 0.5 - corner
        return ((offset >= 0) & (offset <= np.array(size) - 1)).all(1)

    first, second = (
        [held(points[visible], shape, c) for c in view]
        for points, shape, view in zip((pixels, uv), shapes, corners, strict=True)
    )
    counts = np.array([[(a & b).sum() for b in second] for a in first])
    i, j = np.unravel_index(counts.argmax(), counts.shape)
    return corners[0][i], corners[1][j]
