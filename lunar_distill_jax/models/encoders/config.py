"""Sizes of the students' encoders, and how an encoder is brought to the decoder's grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, get_args

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.encoders.dinov3_config import ConvNeXtConfig, DINOv3Config
from lunar_distill_jax.models.limits import build_dataclass, require_numbers

TOKEN = 16  # pixels along the side of a decoder token


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """A transformer over patches with a class token and learned absolute positions.

    width, depth, heads, mlp_ratio: of its blocks
    patch:       pixels along the side of a patch
    grid:        patches along the side of the position table
    registers:   tokens without a place (Darcet et al. 2024)
    layer_scale: scales what each half of a block adds, channel by channel, as DINOv2 does
    offset:      how the position table is resampled to another grid of n patches. 0: bicubic to
                 that size with antialias (timm, and DINOv2 with registers). Else as DINOv2 without
                 registers: bicubic, no antialias, by the factor (n + offset) / grid, which is used
                 for the coordinates too, so that the result is not quite centred.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    patch: int = 16
    grid: int = 32
    registers: int = 0
    layer_scale: bool = False
    offset: float = 0.0
    family: str = dataclasses.field(default="vit", init=False)

    @property
    def stride(self) -> int:
        return self.patch

    def check(self, name: str) -> None:
        """Raises InputError for sizes that no transformer can have; `name` is the network's."""
        keys = ("width", "depth", "heads", "patch", "grid")
        sizes = {f"encoder.model.{k}": getattr(self, k) for k in keys}
        if self.registers:
            sizes["encoder.model.registers"] = self.registers
        require_numbers(name, sizes, {"encoder.model.mlp_ratio": self.mlp_ratio})
        if self.width % self.heads:
            raise InputError(
                f"{name}: encoder.model.width {self.width} is not a multiple of "
                f"encoder.model.heads {self.heads}."
            )


@dataclasses.dataclass(frozen=True)
class MobileNetV3Config:
    """stages: 5 ends at stride 16 with 112 channels; 7 runs the tail of stride 32 too, for which a
    student on 16-pixel tokens has no use."""

    stages: int = 5
    family: str = dataclasses.field(default="mobilenetv3", init=False)

    @property
    def stride(self) -> int:
        return TOKEN if self.stages == 5 else 2 * TOKEN

    def check(self, name: str) -> None:
        """Raises InputError unless it ends at a stride that exists; `name` is the network's."""
        if self.stages not in (5, 7):
            raise InputError(f"{name}: encoder.model.stages is {self.stages}; choose 5 or 7.")


@dataclasses.dataclass(frozen=True)
class CustomConfig:
    """Your own encoder: any function, or flax module, from an image to features.

    function: [B, H, W, 3] -> [B, h, w, D]. It may call flax modules: they hold its parameters. A
              weight file cannot hold it, only its `name`: give it to `load` again.
    stride:   pixels of a feature
    name:     by which a weight file remembers it
    """

    function: Callable[[Any], Any] | None = None
    stride: int = TOKEN
    name: str = ""
    family: str = dataclasses.field(default="custom", init=False)

    def check(self, name: str) -> None:
        """Raises InputError where the function is missing; `name` is the network's."""
        require_numbers(name, {"encoder.model.stride": self.stride}, {})
        if not callable(self.function):
            raise InputError(
                f"{name} was built with the encoder {self.name!r}, which a file cannot hold: give "
                "it again, as load(path, encoder=function)."
            )


ModelConfig = ViTConfig | MobileNetV3Config | DINOv3Config | ConvNeXtConfig | CustomConfig
FAMILIES = {c().family: c for c in get_args(ModelConfig)}


@dataclasses.dataclass(frozen=True)
class AdaptedEncoderConfig:
    """A public image encoder on the decoder's grid of 16-pixel tokens, through a 1x1 adapter.

    model:  the encoder's own sizes
    width:  channels that the adapter gives the decoder's tokens
    align:  for strides other than 16, "image" resamples the picture by stride / 16, so that the
            encoder's features lie exactly on the tokens: 512 x 384 -> 448 x 336 -> 32 x 24 patches
            of 14; "features" pads the picture to whole patches and resamples the adapter's output.
    pixels: "imagenet" shifts and scales channels to ImageNet's mean and deviation, as most public
            checkpoints were trained; "unit" leaves [-1, 1], as timm's ViT-Tiny was, and as the
            paper feeds all of its students.
    """

    model: ModelConfig = ViTConfig()
    width: int = 256
    align: str = "image"
    pixels: str = "imagenet"

    # What the rest of the network asks of any encoder; see `EncoderConfig`.
    patch = TOKEN
    stem: ClassVar[tuple[int, ...]] = ()
    reads_transposed = False

    def to_dict(self) -> dict[str, Any]:
        model = {f.name: getattr(self.model, f.name) for f in dataclasses.fields(self.model)}
        if isinstance(self.model, CustomConfig):
            del model["function"]
        return {**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, "model": model}

    def check(self, name: str) -> None:
        """Raises InputError for values that no encoder can have; `name` is the network's."""
        require_numbers(name, {"encoder.width": self.width}, {})
        for field, known in (("align", ("image", "features")), ("pixels", ("imagenet", "unit"))):
            value = getattr(self, field)
            if value not in known:
                raise InputError(
                    f"{name}: encoder.{field} is {value!r}; choose from {', '.join(known)}."
                )
        self.model.check(name)


def adapted_from_dict(values: Mapping[str, Any], where: str) -> AdaptedEncoderConfig:
    """Inverse of `AdaptedEncoderConfig.to_dict`.

    Raises:
      InputError: an unknown family or key; `where` says in which part it is.
    """
    model = dict(values["model"])
    family = model.pop("family", None)
    if family not in FAMILIES:
        raise InputError(
            f"{where}.model.family is {family!r}: choose from {', '.join(sorted(FAMILIES))}."
        )
    built = build_dataclass(FAMILIES[family], model, f"{where}.model")
    return build_dataclass(AdaptedEncoderConfig, {**values, "model": built}, where)
