"""Which pixels of two views show the same ground, from depth and pose; and which show none."""

from __future__ import annotations

import dataclasses

import numpy as np

from lunar_distill_jax.data.reprojection import carry, sample_depth
from lunar_distill_jax.types import StereoPair

MAX_ROUNDING_PX = 0.6  # a match is a pair of whole pixels, this close to the true one
# There and back again: further off, something else is seen there. HALF depth costs up to 0.1.
MAX_RETURN_PX = 0.1
# Neighbours further apart in depth than this many pixel footprints lie on two surfaces. Ground that
# is seen at 75 degrees from its normal spans 4 to 5; more grazing ground is not matched.
MAX_SPREAD_PX = 5.0
CHUNK = 16384  # pixels that are looked at together
HIDDEN_PX = 2.0  # this many footprints behind all that is seen there: certainly hidden


def seen_at(
    pair: StereoPair, a: int, b: int, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How view b sees the ground of valid pixels [N, 2] (x, y) of view a.

    -> where it falls, float64 [N, 2], nan behind the camera; whether it is seen there [N]; whether
    it certainly is not [N]: it falls outside the frame, or is hidden
    """
    height, width = pair.valid.shape[1:]
    z = pair.depth_m[a][pixels[:, 1], pixels[:, 0]].astype(np.float64)
    uv, z = carry(pair, a, b, pixels, z)
    depth, known, spread = sample_depth(pair.depth_m[b], pair.valid[b], uv)
    footprint = 1.0 / pair.K[b, 0, 0]  # of a pixel at unit depth
    smooth = known & (spread <= MAX_SPREAD_PX * footprint)
    back, back_z = carry(
        pair, b, a, np.where(smooth[:, None], uv, 0.0), np.where(smooth, depth, 1.0)
    )
    with np.errstate(invalid="ignore"):
        returns = (back_z > 0) & (np.linalg.norm(back - pixels, axis=1) <= MAX_RETURN_PX)
        outside = (z <= 0) | (uv < -1.5).any(1) | (uv > [width + 0.5, height + 0.5]).any(1)
    farthest = depth * (1.0 + spread)  # at least: `depth` lies between the neighbours
    hidden = known & (z > farthest * (1.0 + HIDDEN_PX * footprint))
    return uv, smooth & returns, outside | hidden


def match(pair: StereoPair, pixels1: np.ndarray) -> tuple[np.ndarray, ...]:
    """Partners of valid pixels [N, 2] of view 1.

    A pixel and its partner are each other's nearest whole pixel, and see the same ground.

    -> partners int [N, 2], 0 where there is none; their exact places float64 [N, 2]; whether there
    is a partner [N]; whether there certainly is none [N]
    """
    exact, visible, away = seen_at(pair, 0, 1, pixels1)
    whole = np.rint(np.where(visible[:, None], exact, 0)).astype(int)
    visible &= (np.hypot(*(exact - whole).T) <= MAX_ROUNDING_PX) & pair.valid[1][
        tuple(whole.T[::-1])
    ]
    back, seen, _ = seen_at(pair, 1, 0, whole[visible])
    matched = visible.copy()
    matched[visible] = seen & (np.rint(back) == pixels1[visible]).all(1)
    return np.where(matched[:, None], whole, 0), exact, matched, away


@dataclasses.dataclass(frozen=True)
class Correspondences:
    """Rows of pixels (x, y) for a matching loss.

    pixels1, pixels2: int32 [N, 2]; in a valid row they show the same ground
    valid:            bool [N]; rows that are not valid are negatives: no listed pixel of the other
                      view shows the ground of either
    exact2:           float64 [N, 2] where the ground of pixels1 truly falls in view 2; nan where
                      not valid
    """

    pixels1: np.ndarray
    pixels2: np.ndarray
    valid: np.ndarray
    exact2: np.ndarray


def draw(
    pair: StereoPair, rng: np.random.Generator, count: int, *, negatives: float = 0.5
) -> Correspondences:
    """Draws `count` rows, a share `negatives` of them without a partner.

    Of N rows up to int(N (1 - negatives)) are matches, drawn without replacement. Negatives are
    pixels whose ground the other view certainly does not show; where there are too few (a view may
    lie wholly inside the other) there are more matches, and where these end too, rows repeat.
    Without depth or overlap no row is valid.
    """
    positive = int(count * (1 - negatives))
    rows, exact, lonely1 = _search(pair, rng, count, positive)
    lonely2 = _lonely(pair, rng, count - min(positive, len(rows)))
    negative = min(count - min(positive, len(rows)), len(lonely1), len(lonely2))
    positive = min(count - negative, len(rows))
    rows = np.concatenate([rows[:positive], np.stack([lonely1[:negative], lonely2[:negative]], 1)])
    exact = np.concatenate([exact[:positive], np.full((negative, 2), np.nan)])
    valid = np.arange(len(rows)) < positive
    if not len(rows):
        height, width = pair.valid.shape[1:]
        rows = rng.integers([width, height], size=(count, 2, 2))
        exact, valid = np.full((count, 2), np.nan), np.zeros(count, bool)
    again = np.arange(count) % len(rows)
    pixels = rows[again].astype(np.int32)
    return Correspondences(pixels[:, 0], pixels[:, 1], valid[again], exact[again])


def _shuffled(valid: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The valid pixels (x, y) [N, 2] of a view in random order."""
    at = rng.permutation(np.flatnonzero(valid))
    return np.stack([at % valid.shape[1], at // valid.shape[1]], 1)


def _search(pair, rng, count, positive):
    """Up to `count` matches [n, 2 views, 2], where they truly fall [n, 2], and pixels of view 1
    without a partner [m, 2]: pixels are looked at in random order until there are `positive` of the
    first and the rest of the last, or none is left."""
    rows, exact, lonely = [], [], []
    pixels = _shuffled(pair.valid[0], rng)
    for start in range(0, len(pixels), CHUNK):
        some = pixels[start : start + CHUNK]
        partners, places, matched, away = match(pair, some)
        rows.append(np.stack([some[matched], partners[matched]], 1))
        exact.append(places[matched])
        lonely.append(some[away])
        found, alone = sum(map(len, rows)), sum(map(len, lonely))
        if found >= positive and alone >= count - positive:
            break
    rows.append(np.zeros((0, 2, 2), int))
    exact.append(np.zeros((0, 2)))
    lonely.append(np.zeros((0, 2), int))
    return np.concatenate(rows)[:count], np.concatenate(exact)[:count], np.concatenate(lonely)


def _lonely(pair, rng, count):
    """Up to `count` pixels of view 2 without a partner, or a few more."""
    lonely = [np.zeros((0, 2), int)]
    pixels = _shuffled(pair.valid[1], rng)
    for start in range(0, len(pixels), CHUNK):
        some = pixels[start : start + CHUNK]
        lonely.append(some[seen_at(pair, 1, 0, some)[2]])
        if sum(map(len, lonely)) >= count:
            break
    return np.concatenate(lonely)
