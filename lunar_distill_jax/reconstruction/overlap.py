"""Do two photographs show the same ground? Answered from the pictures, not by the network.

A network draws a surface for any two pictures. So they are registered first: the similarity (turn,
zoom, shift) with the best normalised cross-correlation of locally flattened brightness, then small
patches of view 1 are looked for near where it puts them, and the patches that agree with one affine
map are counted. Pictures of different ground agree on a few patches by chance; docs/reconstruct.md
has how many, and from which pairs `HALF` and `STEEP` were fitted.
"""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy import fft as scipy_fft
from scipy import ndimage

SIDE = 160  # pixels of the long side that both pictures are compared at
ANGLES_DEG = range(0, 360, 10)
ZOOMS = (0.7, 0.85, 1.0, 1.18, 1.4)
LEAST_SHARED = 0.3  # of the smaller picture, for a shift to be considered
PATCH, STRIDE, REACH = 24, 12, 14  # pixels
SIMILAR = 0.5  # correlation of a patch that was found
AGREE_PX = 2.0  # from the affine map
SHEAR = 0.35  # largest change of a displacement per pixel: more is no view of the same ground
TRIALS = 300  # of RANSAC
FEWEST = 12  # patches below which nothing can be said
# Probability of overlap = 1 / (1 + exp(-STEEP (agreement - HALF))), by tools/calibrate_overlap.py.
HALF, STEEP = 0.28, 17.0


@dataclasses.dataclass(frozen=True)
class Overlap:
    """How well two photographs can be laid over one another.

    agreement:   fraction of view 1's patches that one affine map carries onto view 2
    probability: of overlap, from the agreement
    patches:     how many were looked for
    pixels1, pixels2: [N, 2] (x, y) of the agreeing patches, pixels of the pictures as given
    scores:      [N] their correlations
    """

    agreement: float
    probability: float
    patches: int
    pixels1: np.ndarray
    pixels2: np.ndarray
    scores: np.ndarray


def overlap(image1: np.ndarray, image2: np.ndarray) -> Overlap:
    """Registers two pictures, uint8 [H, W, 3], each its own size; about two seconds."""
    (grey1, scale1), (grey2, scale2) = _grey(image1), _grey(image2)
    matrix, offset = _similarity(_flatten(grey1), _flatten(grey2))
    found, patches = _patches(grey1, grey2, matrix, offset)
    agreeing = _agreeing(found)
    agreement = len(agreeing) / patches if patches >= FEWEST else 0.0
    at1 = agreeing[:, :2]
    at2 = (at1 + agreeing[:, 2:4])[:, ::-1] @ matrix.T + offset
    return Overlap(
        agreement,
        float(1 / (1 + np.exp(-STEEP * (agreement - HALF)))),
        patches,
        (at1 + 0.5) / scale1 - 0.5,
        (at2[:, ::-1] + 0.5) / scale2 - 0.5,
        agreeing[:, 4],
    )


def _grey(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Brightness at `SIDE` pixels, float64 [h, w], and how much smaller it is."""
    scale = SIDE / max(image.shape[:2])
    size = [max(round(side * scale), PATCH) for side in image.shape[1::-1]]
    grey = Image.fromarray(image).convert("L").resize(size, Image.Resampling.BOX)
    return np.asarray(grey, np.float64), scale


def _flatten(grey: np.ndarray) -> np.ndarray:
    """Without the slow changes of brightness, and with the same contrast everywhere."""
    detail = grey - ndimage.gaussian_filter(grey, 8)
    return detail / (np.sqrt(ndimage.gaussian_filter(detail**2, 12)) + 2)


def _similarity(flat1: np.ndarray, flat2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(matrix [2, 2], offset [2]): pixel (row, column) of view 1 -> matrix @ it + offset in view 2.

    The correlation is normalised over the shared pixels and weighted by the root of their number:
    a small shared part reaches a high correlation by chance.
    """
    sums = (a + b for a, b in zip(flat1.shape, flat2.shape, strict=True))
    shape = tuple(scipy_fft.next_fast_len(side, real=True) for side in sums)
    fft, back = partial(scipy_fft.rfft2, s=shape), partial(scipy_fft.irfft2, s=shape)
    flat2 = flat2.astype(np.float32)  # half the time of float64, and the peak is the same
    soft = np.sqrt(np.outer(*(np.hanning(side) for side in flat1.shape)))
    ours = (flat1 * soft).astype(np.float32)
    spectrum, energy, ones = fft(ours), fft(ours**2), fft(np.ones_like(ours))
    fewest = LEAST_SHARED * min(flat1.size, flat2.size)
    middle = (np.array(flat2.shape) - 1) / 2
    best = (-np.inf, np.eye(2), np.zeros(2))
    for degrees, zoom in itertools.product(ANGLES_DEG, ZOOMS):
        c, s = np.cos(np.radians(degrees)) / zoom, np.sin(np.radians(degrees)) / zoom
        matrix = np.array([[c, -s], [s, c]])
        offset = middle - matrix @ middle
        # scipy's stubs know no offset but one number
        turned = ndimage.affine_transform(flat2, matrix, offset, order=1)  # pyright: ignore
        whole = np.ones_like(flat2)
        inside = ndimage.affine_transform(whole, matrix, offset, order=0)  # pyright: ignore
        mask = fft(inside).conj()
        number = back(ones * mask)
        norm = back(energy * mask) * back(ones * fft(turned**2).conj())
        score = back(spectrum * fft(turned).conj()) / np.sqrt(np.maximum(norm, 1e-9))
        score = np.where(number > fewest, score * np.sqrt(np.maximum(number, 0)), -np.inf)
        peak = np.unravel_index(np.argmax(score), shape)
        if score[peak] > best[0]:
            # turned(p) = view2(matrix p + offset) lies over view1(p + shift)
            shift = np.where(np.array(peak) < flat1.shape, peak, np.array(peak) - shape)
            best = (score[peak], matrix, offset - matrix @ shift)
    return best[1], best[2]


def _patches(grey1, grey2, matrix, offset) -> tuple[np.ndarray, int]:
    """Rows (x, y, dx, dy, score) of patches found within `REACH` of their place; all sought."""
    laid = ndimage.affine_transform(
        grey2, matrix, offset, output_shape=grey1.shape, order=1, cval=np.nan
    )
    half, rows, sought = PATCH // 2, [], 0
    first = half + REACH
    for y in range(first, grey1.shape[0] - first + 1, STRIDE):
        for x in range(first, grey1.shape[1] - first + 1, STRIDE):
            patch = grey1[y - half : y + half, x - half : x + half]
            area = laid[y - first : y + first, x - first : x + first]
            unknown = np.isnan(area)
            if unknown.mean() > 0.3 or patch.std() < 2:
                continue
            sought += 1
            area = np.where(unknown, np.nanmean(area), area)
            windows = sliding_window_view(area, (PATCH, PATCH))
            unit = (patch - patch.mean()) / (patch.std() * patch.size)
            score = np.einsum("abij,ij->ab", windows, unit) / np.maximum(windows.std((2, 3)), 2)
            dy, dx = np.unravel_index(np.argmax(score), score.shape)
            if score[dy, dx] > SIMILAR:
                rows.append((x - 0.5, y - 0.5, dx - REACH, dy - REACH, score[dy, dx]))
    return np.array(rows, np.float64).reshape(-1, 5), sought


def _agreeing(found: np.ndarray) -> np.ndarray:
    """The largest set of patches whose displacements follow one affine map (RANSAC)."""
    if len(found) < 4:
        return found[:0]
    at = np.concatenate([found[:, :2], np.ones((len(found), 1))], 1)
    random = np.random.default_rng(0)
    best = np.zeros(len(found), bool)
    for _ in range(TRIALS):
        three = random.choice(len(found), 3, replace=False)
        if abs(np.linalg.det(at[three])) < 1:
            continue
        affine = np.linalg.solve(at[three], found[three, 2:4])
        if np.abs(affine[:2]).max() > SHEAR:
            continue
        near = np.linalg.norm(at @ affine - found[:, 2:4], axis=1) < AGREE_PX
        if near.sum() > best.sum():
            best = near
    return found[best]
