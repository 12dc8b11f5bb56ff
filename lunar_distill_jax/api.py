"""The public functions: build, load, save, predict, and what is known to them."""

from __future__ import annotations

import functools
import html
import importlib.resources
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import numpy as np
from jax.core import Tracer

from lunar_distill_jax.convert.checkpoint import from_pytorch
from lunar_distill_jax.convert.encoders import what_is_lost, with_encoder_weights
from lunar_distill_jax.convert.torch_file import read_checkpoint
from lunar_distill_jax.data import framing, images
from lunar_distill_jax.data.batches import network_image
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.compute import Compute
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.fresh import fresh_params, fresh_statistics
from lunar_distill_jax.models.stereo import StereoNet
from lunar_distill_jax.models.zoo import ARCHITECTURES, ENCODERS, architecture
from lunar_distill_jax.twoview.turns import TURNS, predict_turned
from lunar_distill_jax.types import Prediction
from lunar_distill_jax.weights import read_weights, write_weights

# Models that ship with the package, and the frames they were trained at.
EMBEDDED = {
    "moonlet": ("moonlet.safetensors", "128x128"),
    "moonlet-small": ("moonlet-small.safetensors", "128x128"),
    # For `config.encoder`: what comes after its encoder has learned nothing.
    "moonlet-student-encoder": ("moonlet-student-encoder.safetensors", "128x128"),
}
ROUNDING = 1e-2  # by which pixels may lie outside [-1, 1]: float16, resampling


@flax.struct.dataclass
class Stereo:
    """A network: its architecture, its parameters (a pytree), where it came from.

    meta holds text by name: "licence", "source", and what the writer of the file added.
    batch_stats: the running moments of its batch norms, a nested dict; {} where it has none
    """

    config: StereoConfig = flax.struct.field(pytree_node=False)
    params: Any
    meta: dict[str, str] = flax.struct.field(pytree_node=False, default_factory=dict)
    batch_stats: Any = flax.struct.field(default_factory=dict)

    def __repr__(self) -> str:
        facts = "; ".join(f"{k} {v}" for k, v in self._facts().items())
        return f"<Stereo {self.config.name}: {facts}>"

    def _repr_html_(self) -> str:
        """The same as a table, for notebooks."""
        rows = {"model": self.config.name, **self._facts()}
        cells = "".join(
            f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items()
        )
        return f"<table>{cells}</table>"

    def _facts(self) -> dict[str, str]:
        count = sum(int(np.prod(np.shape(a))) for a in jax.tree.leaves(self.params))
        trained = (self.meta.get(key) for key in ("trained", "training_size", "source"))
        return {
            "parameters": f"{count:,}",
            "training": ", ".join(" ".join(text.split()) for text in trained if text) or "unknown",
            "licence": " ".join(self.meta.get("licence", "unknown").split()),
        }

    @property
    def variables(self) -> dict[str, Any]:
        """What `StereoNet(config).apply` takes."""
        return variables(self.params, self.batch_stats)

    @property
    def training_side(self) -> int | None:
        """Long side of the frames it was trained at, by its meta; None where that is silent."""
        sides = self.meta.get("training_size", "").split("x")
        return max((int(side) for side in sides if side.isdigit()), default=None)

    @property
    def turns(self) -> int:
        """At how many quarter turns of view 2 it wants to be asked (`predict`), by its meta."""
        return TURNS if self.meta.get("turns") == str(TURNS) else 1

    @property
    def arrays(self) -> dict[str, Any]:
        """What a weight file holds: the parameters, and the moments as one more branch of them."""
        statistics = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {**self.params, **statistics}


def variables(params: Any, batch_stats: Any) -> dict[str, Any]:
    return {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}


def list_models() -> dict[str, list[str]]:
    """The names that are known: "models" for `load`, "architectures" for `build`, and "encoders",
    which a student of ours takes as NAME@ENCODER.
    """
    return {
        "models": [name for name in EMBEDDED if not name.endswith("-encoder")],
        "architectures": [name for name in ARCHITECTURES if name != "test"],
        "encoders": list(ENCODERS),
    }


def read_image(path: str | os.PathLike, size: int | None = None) -> np.ndarray:
    """A photograph as `predict` takes it: float32 [1, H, W, 3] in [-1, 1], upright.

    size: of the long side, pixels, such as `stereo.training_side`; None: as it is stored. What is
          left over of multiples of 16 is cut off around the middle (`data.framing.frame`)

    Raises:
      InputError: it cannot be read, or is smaller than 16 pixels.
    """
    picture = images.read_photograph(pathlib.Path(path))
    cut, _ = framing.frame(picture, size or max(picture.size), square=True)
    if not cut.size or cut.shape[0] % 16 or cut.shape[1] % 16:
        raise InputError(
            f"The photograph {path} becomes {cut.shape[0]} x {cut.shape[1]} pixels at size "
            f"{size or max(picture.size)}: give a size whose both sides hold 16 pixels or more."
        )
    return network_image(cut)[None]


def build(
    name_or_config: str | StereoConfig,
    seed: int = 0,
    encoder_weights: str | os.PathLike | None = None,
) -> Stereo:
    """A named architecture (or a config) with fresh parameters.

    encoder_weights: a file of the student's encoder as its authors published it (timm's or Hugging
                     Face's `.safetensors`, or a `.pth`). Without it a student whose encoder is
                     public is warned of: its encoder starts from random numbers.

    Raises:
      InputError: no architecture has that name, the config cannot be built, or the file does not
        hold its encoder.
    """
    config = architecture(name_or_config) if isinstance(name_or_config, str) else name_or_config
    config.check()
    params, statistics = fresh_params(config, seed), fresh_statistics(config)
    meta = {"source": f"fresh parameters, seed {seed}"}
    if encoder_weights is not None:
        checkpoint = read_checkpoint(encoder_weights)
        params, statistics = with_encoder_weights(config, params, statistics, checkpoint)
        meta["encoder_weights"] = checkpoint.path.name
    elif loss := what_is_lost(config):
        warnings.warn(loss, stacklevel=2)
    return Stereo(config, params, meta, statistics)


def load(source: str | os.PathLike, encoder: Callable[[Any], Any] | None = None) -> Stereo:
    """Loads a model, its parameters as float32.

    source:  the name of an embedded model, or the path of a weight file, of a training workdir, of
             a released MASt3R checkpoint (`.pth`), or of a Hugging Face folder
    encoder: the function that a custom student was built with

    Raises:
      InputError: `source` is none of these, or the file cannot be read.
    """
    config, params, meta = read_network(source, encoder)
    params = jax.tree.map(lambda a: np.require(a, np.float32, "C"), params)
    statistics = params.pop("batch_stats", {})
    return Stereo(config, params, meta, statistics)


def read_network(
    source: str | os.PathLike, encoder: Callable[[Any], Any] | None = None
) -> tuple[StereoConfig, Any, dict[str, str]]:
    """-> (config, params, meta) of what `load` takes, the numbers as they are in the file.

    Batch norms' running moments are one more branch of params, "batch_stats".

    Raises:
      InputError: `source` is no model, or the file cannot be read.
    """
    if str(source) in EMBEDDED:
        name, training_size = EMBEDDED[str(source)]
        with importlib.resources.as_file(
            importlib.resources.files("lunar_distill_jax") / "assets" / name
        ) as path:
            config, params, meta = read_weights(path)
        return config, params, {"training_size": training_size, **meta}
    check_source(source)
    path = pathlib.Path(source)
    hugging_face = ("config.json", "model.safetensors", "adapter_config.json")
    if path.suffix in (".pth", ".pt") or any((path / name).is_file() for name in hugging_face):
        return from_pytorch(read_checkpoint(path))
    if path.is_dir():
        path = path / "student.safetensors"
        if not path.is_file():
            raise InputError(
                f"{path.parent} holds no finished training ({path.name} is absent) and no Hugging "
                "Face model (config.json, model.safetensors): run `lunar-distill train` on it "
                "again to finish it, or give a weight file."
            )
    return read_weights(path, encoder)


def check_source(source: str | os.PathLike) -> None:
    """Raises InputError unless `source` is the name of an embedded model, or a path that exists;
    called before long work.
    """
    if str(source) not in EMBEDDED and not pathlib.Path(source).exists():
        extra = ""
        if str(source).partition("@")[0] in ARCHITECTURES:
            extra = f" {architecture(str(source)).name} is an architecture without trained weights."
        raise InputError(
            f"There is no model {source}: give the path of a weight file, or an embedded model "
            f"({', '.join(list_models()['models'])}).{extra}"
        )


def save(stereo: Stereo, path: str | os.PathLike) -> None:
    """Writes one self-describing weight file, atomically."""
    write_weights(path, stereo.config, stereo.arrays, stereo.meta)


@functools.lru_cache(maxsize=16)
def _forward(
    config: StereoConfig,
    compute: Compute,
    features: bool,
    turns: int,
    fixed1: bool | None,
    fixed2: bool | None,
):
    """The compiled network; `fixed` says that all or none of a view's samples are portrait."""
    net = StereoNet(config, compute)

    def run(variables, image1, image2, portrait1, portrait2):
        if turns == TURNS:
            *views, _ = predict_turned(
                lambda *images: net.apply(variables, *images), image1, image2
            )
            return tuple(views)
        views: Any = net.apply(
            variables,
            image1,
            image2,
            portrait1 if fixed1 is None else fixed1,
            portrait2 if fixed2 is None else fixed2,
        )
        # What is not returned is not computed twice and not kept.
        return views if features else tuple(view.replace(features={}) for view in views)

    return jax.jit(run)


def predict(
    stereo: Stereo,
    image1,
    image2,
    true_shape1=None,
    true_shape2=None,
    features: bool = False,
    compute: Compute = Compute(),
    turns: int = 1,
) -> tuple[Prediction, Prediction]:
    """Both views' points, confidences and descriptors; may be traced by `jax.jit`.

    image1, image2: [B, H, W, 3] float32 in [-1, 1]; H and W multiples of 16, each view its own
    true_shape1, true_shape2: [B, 2] (height, width) of the upright pictures, or None: as stored.
        In a landscape array a portrait picture may be stored transposed, so that a batch can hold
        both: its true_shape says so, and its outputs are transposed alike. A MASt3R reads such
        pictures as if they stood upright; students with other encoders do not, and say so.
    features: also return encoder tokens, decoder layers and raw channels
    compute:  number type, and formulation of the attention
    turns:    4 tries view 2 at its four quarter turns and keeps the one that matches best, turned
        back: for networks that were not trained on rolled views; four times the work
    -> two `Prediction`s in the camera frame of view 1

    Raises:
      InputError: no float array, a size that is not a multiple of 16, values outside [-1, 1] or
        nan (of what is not traced), batches that differ, or a true_shape that is neither the
        array's nor that of a portrait picture stored transposed.
    """
    check_image("image1", image1)
    check_image("image2", image2)
    if image1.shape[0] != image2.shape[0]:
        raise InputError(
            f"image1 has {image1.shape[0]} samples and image2 {image2.shape[0]}: they are pairs."
        )
    portrait1 = _portrait(stereo.config, "image1", image1, true_shape1)
    portrait2 = _portrait(stereo.config, "image2", image2, true_shape2)
    if turns not in (1, TURNS):
        raise InputError(
            f"turns is {turns}: give 1, or {TURNS} to try view 2 at its quarter turns."
        )
    if turns == TURNS and (features or true_shape1 is not None or true_shape2 is not None):
        raise InputError(
            f"turns is {TURNS}, which goes with neither features nor true_shapes: give upright "
            "arrays and leave them out, or set turns to 1."
        )
    fixed = (p if isinstance(p, bool) else None for p in (portrait1, portrait2))
    return _forward(stereo.config, compute, features, turns, *fixed)(
        stereo.variables, image1, image2, portrait1, portrait2
    )


def _portrait(config: StereoConfig, name: str, image, true_shape):
    """Which samples are portrait pictures stored transposed: a bool for all, or [B] bool."""
    b, height, width = image.shape[:3]
    if true_shape is None:
        return False
    if np.shape(true_shape) != (b, 2):
        raise InputError(
            f"The true_shape of {name} has shape {np.shape(true_shape)}: expected ({b}, 2), the "
            "height and width of each picture."
        )
    may_be_turned = width > height and config.encoder.reads_transposed
    if isinstance(true_shape, Tracer):  # its values are known only on the device
        return true_shape[:, 0] > true_shape[:, 1] if may_be_turned else False
    true_shape = np.asarray(true_shape)
    as_stored = np.all(true_shape == (height, width), axis=1)
    portrait = np.all(true_shape == (width, height), axis=1) & ~as_stored
    if not np.all(as_stored | (portrait & may_be_turned)):
        hint = "give its own size"
        if np.any(portrait):
            hint = f"{config.name} reads upright pictures only, so transpose it back"
            if config.encoder.reads_transposed:
                hint = "only a portrait picture may be stored transposed, so transpose it back"
        raise InputError(
            f"{name} is {height} x {width} but its true_shape says {true_shape.tolist()}: {hint}."
        )
    return bool(portrait[0]) if np.all(portrait == portrait[0]) else portrait


def check_image(name: str, image) -> None:
    """Raises InputError unless `image` is float [B, H, W, 3] in [-1, 1], H and W positive multiples
    of 16; of what is being traced the values are not looked at.
    """
    if not isinstance(image, np.ndarray | jax.Array):
        fix = " (see ld.read_image)" if isinstance(image, str | os.PathLike) else ""
        raise InputError(
            f"{name} is a {type(image).__name__}, expected an array [B, H, W, 3]{fix}."
        )
    shape = tuple(image.shape)
    if len(shape) == 3:
        raise InputError(
            f"{name} has shape {shape}, expected [B, H, W, 3]: give {name}[None], a batch of one."
        )
    if len(shape) != 4 or shape[3] != 3 or not all(shape) or shape[1] % 16 or shape[2] % 16:
        raise InputError(
            f"{name} has shape {shape}: expected [B, H, W, 3] with H and W multiples of 16; "
            "resize or crop it."
        )
    if not jax.numpy.issubdtype(image.dtype, jax.numpy.floating):
        raise InputError(
            f"{name} is {image.dtype}, expected float32 in [-1, 1]: give "
            f"{name}.astype('float32') / 127.5 - 1 of pixels from 0 to 255."
        )
    if isinstance(image, Tracer):
        return
    low, high = float(image.min()), float(image.max())
    if not (low >= -1 - ROUNDING and high <= 1 + ROUNDING):  # so that nan is refused too
        fix = f"{name} / 127.5 - 1 of pixels from 0 to 255, or 2 * {name} - 1 of 0 to 1"
        if np.isnan(low):
            fix = "a picture without holes, such as numpy.nan_to_num makes it"
        raise InputError(f"{name} holds {low:g} to {high:g}, expected -1 to 1: give {fix}.")
