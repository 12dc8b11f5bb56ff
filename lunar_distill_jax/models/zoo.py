"""Named architectures: the only place where a name becomes a config.

A student may be given another encoder: "slim-s@dinov3-b" is slim-s with DINOv3's ViT-B.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Collection
from typing import Any

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.config import (
    DecoderConfig,
    EncoderConfig,
    HeadConfig,
    StereoConfig,
)
from lunar_distill_jax.models.encoders.config import (
    TOKEN,
    AdaptedEncoderConfig,
    CustomConfig,
    MobileNetV3Config,
    ModelConfig,
    ViTConfig,
)
from lunar_distill_jax.models.encoders.dinov3_config import CONVNEXT_SIZES, VIT_SIZES

_DINOV2_S = ViTConfig(384, 12, 6, patch=14, grid=37, layer_scale=True, offset=0.1)
_DINOV2_B = dataclasses.replace(_DINOV2_S, width=768, heads=12)
# The versions with registers were also trained with another resampling of their positions.
_REGISTERS = {"registers": 4, "offset": 0.0}
ENCODERS: dict[str, ModelConfig] = {
    "mobilenetv3": MobileNetV3Config(),
    "vit-ti": ViTConfig(192, 12, 3),
    "dinov2-s": _DINOV2_S,
    "dinov2-b": _DINOV2_B,
    "dinov2-s-reg": dataclasses.replace(_DINOV2_S, **_REGISTERS),
    "dinov2-b-reg": dataclasses.replace(_DINOV2_B, **_REGISTERS),
    "dune-s": dataclasses.replace(_DINOV2_S, registers=4),
    "dune-b": dataclasses.replace(_DINOV2_B, registers=4),
    **{f"dinov3-{size}": model for size, model in VIT_SIZES.items()},
    **{f"dinov3-convnext-{size}": model for size, model in CONVNEXT_SIZES.items()},
}


def _student(name: str, encoder: str, decoder: DecoderConfig, head: HeadConfig) -> StereoConfig:
    adapted = AdaptedEncoderConfig(ENCODERS[encoder], decoder.width, pixels=_pixels(encoder))
    return StereoConfig(name=name, encoder=adapted, decoder=decoder, head=head)


def _pixels(encoder: str) -> str:
    """What the public checkpoint was trained on: timm's ViT-Tiny alone on pixels in [-1, 1]."""
    return "unit" if encoder == "vit-ti" else "imagenet"


# The embedded teacher, trained from scratch on two CPU cores: hence stem, grid and plane, patches
# of 8 pixels, a cheap head, and matches found without rotary positions.
MOONLET = StereoConfig(
    name="moonlet",
    encoder=EncoderConfig(width=128, depth=3, heads=2, patch=8, stem=(24, 48, 128), grid=True),
    decoder=DecoderConfig(width=128, depth=4, heads=2, rotary_cross=False),
    head=HeadConfig(
        kind="catconv",
        shared=True,
        width=128,
        last=32,
        desc=16,
        desc_ratio=1.0,
        desc_fine=True,
        plane=True,
    ),
)

# The paper's students: the teacher's heads on small decoders; 4 heads, MLPs as wide as their input.
_LARGE, _SMALL = DecoderConfig(512, 6, 4, 1.0), DecoderConfig(256, 4, 4, 1.0)
# Ours: the dense head at Depth-Anything-Small's sizes, a narrow local-feature MLP, one for both
# views. Decoder heads have 64 channels, as the teacher's, so that these can be inherited.
_SLIM = HeadConfig(shared=True, width=64, layers=(48, 96, 192, 384), last=32, desc_ratio=1.0)
_MEDIUM = dataclasses.replace(_SLIM, width=128, layers=(96, 192, 384, 768), last=64)
_CATCONV = dataclasses.replace(_SLIM, kind="catconv", width=256, last=64)

ARCHITECTURES: dict[str, StereoConfig] = {
    c.name: c
    for c in (
        # The 688.6M teacher: ViT-L/16, two ViT-B decoders.
        StereoConfig(keep_unused=True),
        MOONLET,
        # Seven times smaller. Two maps of the stem are as wide as the teacher's: what reads them
        # carries over.
        dataclasses.replace(
            MOONLET,
            name="moonlet-student",
            encoder=dataclasses.replace(
                MOONLET.encoder, width=64, depth=2, mlp_ratio=2.5, stem=(24, 48, 64)
            ),
            decoder=dataclasses.replace(MOONLET.decoder, width=64, depth=2, mlp_ratio=3.0),
            head=dataclasses.replace(MOONLET.head, width=48, desc_ratio=0.25),
        ),
        _student("s1", "mobilenetv3", _LARGE, HeadConfig()),
        _student("s2", "dinov2-s", _LARGE, HeadConfig()),
        _student("s3", "dinov2-s", _SMALL, HeadConfig()),
        _student("s4", "vit-ti", _LARGE, HeadConfig()),
        _student("slim-m", "dinov2-s", DecoderConfig(512, 4, 8, 2.0), _MEDIUM),
        _student("slim-s", "dinov2-s", _SMALL, _SLIM),
        _student("slim-s-catconv", "dinov2-s", _SMALL, _CATCONV),
        _student("slim-ti", "vit-ti", DecoderConfig(192, 4, 3, 1.0), _SLIM),
        _student("slim-mobile", "mobilenetv3", _SMALL, _SLIM),
        # For tests: every part of the teacher, small enough to run in a second.
        StereoConfig(
            name="test",
            encoder=EncoderConfig(width=32, depth=2, heads=2),
            decoder=DecoderConfig(width=24, depth=4, heads=2),
            head=HeadConfig(width=16, layers=(8, 12, 16, 24), last=8, desc=6),
        ),
    )
}


STUDENTS = tuple(
    name for name, c in ARCHITECTURES.items() if isinstance(c.encoder, AdaptedEncoderConfig)
)


def architecture(name: str) -> StereoConfig:
    """The config of an architecture, "NAME", or of a student with another encoder, "NAME@ENCODER".

    Raises:
      InputError: there is none of that name; the nearest is suggested.
    """
    base, at, encoder = name.partition("@")
    config = ARCHITECTURES[_known(base, "architecture", ARCHITECTURES)]
    if not at:
        return config
    if base not in STUDENTS:
        raise InputError(
            f"The encoder of {base} cannot be another: choose from {', '.join(STUDENTS)}."
        )
    model = ENCODERS[_known(encoder, "encoder", ENCODERS)]
    adapted = dataclasses.replace(config.encoder, model=model, pixels=_pixels(encoder))
    return dataclasses.replace(config, name=name, encoder=adapted)


def custom_student(
    name: str,
    function: Callable[[Any], Any],
    *,
    like: str = "slim-s",
    stride: int = TOKEN,
    align: str = "image",
    pixels: str = "unit",
) -> StereoConfig:
    """A student with your own encoder: decoder and heads of the architecture `like`.

    function: image [B, H, W, 3] -> features [B, h, w, D], D as you like; a function, which may call
              flax modules, or a flax module. See `CustomConfig`, and docs/students.md.
    stride, align, pixels: pixels of a feature, and what the function wants to be fed: see
              `AdaptedEncoderConfig`

    Raises:
      InputError: there is no student `like`.
    """
    config = architecture(like)
    if not isinstance(config.encoder, AdaptedEncoderConfig):
        raise InputError(f"like is {like}, no student: choose from {', '.join(STUDENTS)}.")
    label = getattr(function, "__name__", type(function).__name__)
    encoder = AdaptedEncoderConfig(
        CustomConfig(function, stride, label), config.encoder.width, align, pixels
    )
    return dataclasses.replace(config, name=name, encoder=encoder)


def _known(name: str, what: str, names: Collection[str]) -> str:
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}."
    raise InputError(f"There is no {what} {name!r}: {hint}")
