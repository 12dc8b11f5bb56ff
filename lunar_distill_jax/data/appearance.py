"""How a photograph looks, not what it shows: the augmentations of MASt3R and StereoLunar.

Images are uint8 [H, W, 3]; each view of a pair is drawn on its own. Draws happen in a fixed order,
so an image follows from the generator it is given.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

RADIUS, SIGMA_SPACE = 7, 100.0  # of StereoLunar's bilateral filter, px
# Its sigma of 75 is for the sum over three channels: 25 for one grey channel.
SIGMA_GREY = 25.0
TINT, CONTRASTS = (0.3, 1.0), (0.5, 1.0, 1.5)
TINT_PROBABILITY, BILATERAL_PROBABILITY, CONTRAST_PROBABILITY = 0.3, 0.5, 0.7


def is_grey(image: np.ndarray) -> bool:
    """Whether the three channels are equal."""
    return bool((image == image[..., :1]).all())


def _blend(image: np.ndarray, other, factor: float) -> np.ndarray:
    """other + factor * (image - other), truncated to uint8 as Pillow's enhancers do."""
    return np.clip(other + factor * (image.astype(np.float32) - other), 0, 255).astype(np.uint8)


def luma(image: np.ndarray) -> np.ndarray:
    """Grey levels uint8 [H, W] (ITU-R 601)."""
    return np.asarray(Image.fromarray(image).convert("L"))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """The distance from the mean grey, times `factor`."""
    return _blend(image, np.float32(int(luma(image).mean() + 0.5)), factor)


def color_jitter(
    image: np.ndarray, rng: np.random.Generator, *, strength: float = 0.5, hue: float = 0.1
) -> np.ndarray:
    """Brightness, contrast and saturation by factors in 1 +- `strength`, hue by +- `hue` of a turn,
    in random order. Saturation and hue leave grey images as they are, and are skipped there."""
    brightness, contrasts, saturation = 1 + strength * rng.uniform(-1, 1, 3)
    turn, order = hue * rng.uniform(-1, 1), rng.permutation(4)
    grey = is_grey(image)
    for step in order:
        if step == 0:
            image = _blend(image, np.float32(0), brightness)
        elif step == 1:
            image = contrast(image, contrasts)
        elif step == 2 and not grey:
            image = _blend(image, luma(image)[..., None].astype(np.float32), saturation)
        elif step == 3 and not grey:
            hsv = np.array(Image.fromarray(image).convert("HSV"))
            hsv[..., 0] += np.uint8(round(turn * 255) % 256)  # wraps round
            image = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    return image


def bilateral(grey: np.ndarray) -> np.ndarray:
    """Edge-preserving blur of uint8 [H, W] over a disc of 7 px (Tomasi & Manduchi 1998).

    Weights are exp(-d^2 / (2 100^2) - (difference / 25)^2 / 2); borders are mirrored.
    """
    height, width = grey.shape
    padded = np.pad(grey, RADIUS, mode="reflect")
    similar = np.exp(-0.5 * (np.arange(256, dtype=np.float32) / SIGMA_GREY) ** 2)
    centre = grey.astype(np.int16)
    total = np.zeros((height, width), np.float32)
    weights = np.zeros((height, width), np.float32)
    for dy in range(-RADIUS, RADIUS + 1):
        for dx in range(-RADIUS, RADIUS + 1):
            if dy * dy + dx * dx > RADIUS * RADIUS:
                continue
            near = padded[RADIUS + dy :, RADIUS + dx :][:height, :width]
            w = similar[np.abs(near - centre)]
            w *= np.float32(np.exp(-0.5 * (dy * dy + dx * dx) / SIGMA_SPACE**2))
            weights += w
            w *= near
            total += w
    return np.rint(total / weights).astype(np.uint8)


def lunar(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """StereoLunar's augmentations: bilateral filter (p 0.5), dimming to 0.3..1 ("tint", p 0.3),
    contrast of 0.5, 1 or 1.5 (p 0.7), in this order. They are meant for grey images."""
    chances = rng.uniform(size=3)
    dim, factor = rng.uniform(*TINT), rng.choice(CONTRASTS)
    if chances[0] < BILATERAL_PROBABILITY:
        image = np.repeat(bilateral(luma(image))[..., None], 3, -1)
    if chances[1] < TINT_PROBABILITY:
        image = _blend(image, np.float32(0), dim)
    if chances[2] < CONTRAST_PROBABILITY:
        image = contrast(image, factor)
    return image


def sensor(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A blur of up to `strength` of a 3 x 3 binomial (round the rim), a gamma of up to
    e^(+-strength / 2), noise of up to 0.04 `strength` of the range. Meant for grey images.
    """
    blur, gamma, noise = rng.uniform(0, strength), rng.uniform(-0.5, 0.5) * strength, rng.uniform()
    grey = image[..., 0].astype(np.float32) / 255
    for axis in (0, 1):
        before = np.roll(grey, 1, axis)
        after = np.roll(grey, -1, axis)
        grey = grey + np.float32(0.25 * blur) * (before + after - 2 * grey)
    grey = np.clip(grey, 0, 1) ** np.float32(np.exp(gamma))
    grey = grey + rng.standard_normal(grey.shape, np.float32) * np.float32(0.04 * strength * noise)
    return np.repeat(np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)[..., None], 3, -1)
