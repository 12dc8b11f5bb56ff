"""Distils MASt3R into small students that reconstruct the Moon in 3D from two photographs.

import lunar_distill_jax as ld

teacher = ld.load("moonlet")
view1, view2 = ld.predict(teacher, image1, image2)  # [B, H, W, 3] in [-1, 1] -> two Predictions
"""

from typing import TYPE_CHECKING

from lunar_distill_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from lunar_distill_jax.api import Stereo, build, list_models, load, predict, read_image, save
    from lunar_distill_jax.evaluation.network import evaluate
    from lunar_distill_jax.init.student import init_student
    from lunar_distill_jax.models.compute import Compute
    from lunar_distill_jax.models.zoo import custom_student
    from lunar_distill_jax.reconstruction.run import Reconstruction, reconstruct
    from lunar_distill_jax.types import Prediction

_HOME = {
    "Compute": "models.compute",
    "Prediction": "types",
    "Reconstruction": "reconstruction.run",
    "Stereo": "api",
    "build": "api",
    "custom_student": "models.zoo",
    "evaluate": "evaluation.network",
    "init_student": "init.student",
    "list_models": "api",
    "load": "api",
    "predict": "api",
    "read_image": "api",
    "reconstruct": "reconstruction.run",
    "save": "api",
}

__all__ = [
    "Compute",
    "Prediction",
    "Reconstruction",
    "Stereo",
    "build",
    "custom_student",
    "evaluate",
    "init_student",
    "list_models",
    "load",
    "predict",
    "read_image",
    "reconstruct",
    "save",
]


def __getattr__(name: str):
    # Imported on first use: the command line's --help and errors should not wait for jax.
    if name not in _HOME:
        raise AttributeError(f"module 'lunar_distill_jax' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(f"lunar_distill_jax.{_HOME[name]}")
    globals()[name] = getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return [*__all__, "__version__", "__doc__"]
