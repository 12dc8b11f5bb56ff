"""What dinov3.npz holds, for the script that writes it and for the test that reads it."""

import re

import numpy as np
from goldens.recipe import img, recipe_array

# (width, depth, heads, gated, registers), and (widths, depths)
VIT = {
    "vit": (32, 3, 2, False, 4),
    "vit_gated": (48, 2, 3, True, 2),
    "vit_wide": (384, 2, 6, True, 4),  # two blocks of the real S+
}
CONVNEXT = {"convnext": ((8, 16, 24, 32), (1, 1, 2, 1))}
PUBLISHED_VIT = {
    "s": (384, 12, 6, False, 4),
    "s+": (384, 12, 6, True, 4),
    "b": (768, 12, 12, False, 4),
    "l": (1024, 24, 16, False, 4),
    "h+": (1280, 32, 20, True, 4),
}
PUBLISHED_CONVNEXT = {
    "tiny": ((96, 192, 384, 768), (3, 3, 9, 3)),
    "small": ((96, 192, 384, 768), (3, 3, 27, 3)),
    "base": ((128, 256, 512, 1024), (3, 3, 27, 3)),
    "large": ((192, 384, 768, 1536), (3, 3, 27, 3)),
}
SIZES = ((64, 64), (53, 86))  # pixels; the second is no multiple of 16 along either side
SEED = 30


def weight(name, shape):
    """Tensor of a saved checkpoint, in torch's layout: the recipe's, under the names it knows."""
    known = re.sub(r"\b([qk])_proj\b", r"proj\1", name).replace("lambda1", "gamma")
    # What enters the first norm is small, or a wrong epsilon would not show.
    first = name.startswith("embeddings.") or name.startswith("stages.0.downsample_layers.0.")
    return recipe_array(known, shape, SEED) * np.float32(0.05 if first else 1)


def image(height, width) -> np.ndarray:
    """[2, 3, H, W] float32"""
    return img(SEED, 2, height, width)
