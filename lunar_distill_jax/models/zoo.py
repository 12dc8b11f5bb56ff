"""Named architectures: the only place where a name becomes a config."""

from __future__ import annotations

import dataclasses
import difflib

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.config import (
    DecoderConfig,
    EncoderConfig,
    HeadConfig,
    StereoConfig,
)

# The embedded teacher, trained from scratch on two CPU cores: hence stem, grid and plane.
MOONLET = StereoConfig(
    name="moonlet",
    encoder=EncoderConfig(
        width=192, depth=4, heads=6, mlp_ratio=3.0, stem=(16, 40, 64, 96), grid=True
    ),
    decoder=DecoderConfig(width=192, depth=4, heads=6, mlp_ratio=3.0),
    head=HeadConfig(
        width=32,
        layers=(32, 48, 64, 96),
        last=16,
        desc=12,
        desc_ratio=0.5,
        late_double=True,
        last_norm=True,
        plane=True,
    ),
)

ARCHITECTURES: dict[str, StereoConfig] = {
    c.name: c
    for c in (
        # The 688.6M teacher: ViT-L/16, two ViT-B decoders.
        StereoConfig(keep_unused=True),
        MOONLET,
        # Its student in the demo: the same widths, so that it can inherit, and less depth.
        dataclasses.replace(
            MOONLET,
            name="moonlet-student",
            encoder=dataclasses.replace(MOONLET.encoder, depth=2),
            decoder=dataclasses.replace(MOONLET.decoder, depth=2),
        ),
        # For tests: every part of the teacher, small enough to run in a second.
        StereoConfig(
            name="test",
            encoder=EncoderConfig(width=32, depth=2, heads=2),
            decoder=DecoderConfig(width=24, depth=4, heads=2),
            head=HeadConfig(width=16, layers=(8, 12, 16, 24), last=8, desc=6),
        ),
    )
}


def architecture(name: str) -> StereoConfig:
    """The config of a named architecture.

    Raises:
      InputError: there is none of that name; the nearest is suggested.
    """
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(ARCHITECTURES)}."
        raise InputError(f"There is no architecture {name!r}: {hint}")
    return ARCHITECTURES[name]
