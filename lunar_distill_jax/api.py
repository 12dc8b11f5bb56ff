"""The public functions: build, load, save, predict."""

from __future__ import annotations

import functools
import importlib.resources
import os
import pathlib
from typing import Any

import flax.struct
import jax
import numpy as np

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.fresh import fresh_params
from lunar_distill_jax.models.stereo import StereoNet
from lunar_distill_jax.models.zoo import ARCHITECTURES, architecture
from lunar_distill_jax.types import Prediction
from lunar_distill_jax.weights import read_weights, write_weights

EMBEDDED = {"moonlet": "moonlet.safetensors"}  # models that ship with the package


@flax.struct.dataclass
class Stereo:
    """A network: its architecture, its parameters (a pytree), where it came from.

    meta holds text by name: "licence", "source", and what the writer of the file added.
    """

    config: StereoConfig = flax.struct.field(pytree_node=False)
    params: Any
    meta: dict[str, str] = flax.struct.field(pytree_node=False, default_factory=dict)


def build(name_or_config: str | StereoConfig, seed: int = 0) -> Stereo:
    """A named architecture (or a config) with fresh parameters.

    Raises:
      InputError: no architecture has that name, or the config cannot be built.
    """
    config = architecture(name_or_config) if isinstance(name_or_config, str) else name_or_config
    config.check()
    return Stereo(config, fresh_params(config, seed), {"source": f"fresh parameters, seed {seed}"})


def load(source: str | os.PathLike) -> Stereo:
    """Loads a model: the name of an embedded one, or the path of a weight file or training workdir.

    Raises:
      InputError: `source` is none of these, or the file cannot be read.
    """
    if str(source) in EMBEDDED:
        with importlib.resources.as_file(
            importlib.resources.files("lunar_distill_jax") / "assets" / EMBEDDED[str(source)]
        ) as path:
            return Stereo(*read_weights(path))
    path = pathlib.Path(source)
    if path.is_dir():
        path = path / "student.safetensors"
        if not path.is_file():
            raise InputError(
                f"{path.parent} holds no finished training ({path.name} is absent): run `lunar-distill "
                "train` on it again to finish it, or give a weight file."
            )
    if not path.is_file():
        known = ", ".join(EMBEDDED)
        extra = (
            f" {source} is an architecture without trained weights." if str(source) in ARCHITECTURES else ""
        )
        raise InputError(
            f"There is no model {source}: give the path of a weight file, or an embedded model ({known})."
            + extra
        )
    return Stereo(*read_weights(path))


def save(stereo: Stereo, path: str | os.PathLike) -> None:
    """Writes one self-describing weight file, atomically."""
    write_weights(path, stereo.config, stereo.params, stereo.meta)


@functools.lru_cache(maxsize=16)
def _forward(config: StereoConfig, features: bool):
    def run(params, image1, image2):
        one, two = StereoNet(config).apply({"params": params}, image1, image2)
        # What is not returned is not computed twice and not kept.
        return (one, two) if features else (one.replace(features={}), two.replace(features={}))

    return jax.jit(run)


def predict(
    stereo: Stereo, image1, image2, true_shape1=None, true_shape2=None, features: bool = False
) -> tuple[Prediction, Prediction]:
    """Both views' points, confidences and descriptors.

    image1, image2: [B, H, W, 3] float32 in [-1, 1]; H and W multiples of 16, and may differ between views
    true_shape1, true_shape2: [B, 2] (height, width) or None; they must equal the arrays' size
    features: also return encoder tokens, decoder layers and raw channels
    -> two `Prediction`s in the camera frame of view 1

    Raises:
      InputError: a size that is not a multiple of 16, batches that differ, or a portrait true_shape.
    """
    for name, image, shape in (("image1", image1, true_shape1), ("image2", image2, true_shape2)):
        check_image(name, image)
        if shape is not None and not np.all(np.asarray(shape) == image.shape[1:3]):
            raise InputError(
                f"{name} is {image.shape[1]} x {image.shape[2]} but its true_shape says "
                f"{np.asarray(shape).tolist()}: transposed portrait images are not supported yet."
            )
    if image1.shape[0] != image2.shape[0]:
        raise InputError(
            f"image1 has {image1.shape[0]} samples and image2 {image2.shape[0]}: they are pairs."
        )
    return _forward(stereo.config, features)(stereo.params, image1, image2)


def check_image(name: str, image) -> None:
    """Raises InputError unless `image` is [B, H, W, 3] with H and W positive multiples of 16."""
    shape = image.shape
    if len(shape) != 4 or shape[3] != 3 or not shape[1] or shape[1] % 16 or shape[2] % 16:
        raise InputError(
            f"{name} has shape {tuple(shape)}: expected [B, H, W, 3] with H and W multiples of 16; resize "
            "or crop it."
        )
