"""The architecture as data: one frozen dataclass describes every teacher, student and test model.

A config is written into each weight file as JSON, so the field names are a file format.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.encoders.config import AdaptedEncoderConfig, adapted_from_dict
from lunar_distill_jax.models.limits import build_dataclass, require_numbers


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """A vision transformer over patches.

    width, depth, heads, mlp_ratio: of its blocks; head size is width / heads, a multiple of 4
    patch:     pixels along the side of a patch, 16 or 8
    stem:      () for one patch convolution (MASt3R); else the widths of a convolutional stem, one
               for each halving of the resolution, so 2 ** len(stem) == patch. The stem's maps also
               feed the dense head, which a small network trained from scratch needs to see shading
               in detail.
    grid:      adds a sine-cosine embedding of the absolute position. MASt3R has none; without it a
               small network cannot carry "where my match lies" through cross-attention.
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    patch: int = 16
    stem: tuple[int, ...] = ()
    grid: bool = False

    @property
    def reads_transposed(self) -> bool:
        """Portrait images may be stored transposed in landscape arrays."""
        return not self.stem and not self.grid

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def check(self, name: str) -> None:
        """Raises InputError for sizes that no encoder can have; `name` is the network's."""
        sizes = {f"encoder.{k}": getattr(self, k) for k in ("width", "depth", "heads")}
        sizes |= {f"encoder.stem[{i}]": width for i, width in enumerate(self.stem)}
        require_numbers(name, sizes, {"encoder.mlp_ratio": self.mlp_ratio})
        require_rotary(name, "encoder", self)
        if self.patch not in (8, 16):
            raise InputError(f"{name}: encoder.patch is {self.patch}: choose from 8, 16.")
        if self.stem and 2 ** len(self.stem) != self.patch:
            raise InputError(
                f"{name}: encoder.stem {self.stem} has {len(self.stem)} widths; a patch of "
                f"{self.patch} pixels needs {self.patch.bit_length() - 1}, one for each halving of "
                "the resolution."
            )


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Two stacks of cross-attending blocks, one a view; sizes as in `EncoderConfig`.

    rotary_cross: rotary positions also turn the queries and keys of cross-attention, as MASt3R has
                  it. Without, a match is found by what it looks like, wherever it lies, which a
                  small network learns sooner.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    rotary_cross: bool = True


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The dense point head and the local-feature head of one view.

    kind:        "dpt", MASt3R's fusion pyramid (Ranftl et al. 2021), for patches of 16; or
                 "catconv", a cheap head that concatenates the hooked token maps, and convolves them
                 as they are and four times as fine
    shared:      one head serves both views
    width:       channels of the fusion pyramid (DPT's feature_dim), or of the catconv's first map
    layers:      channels of the pyramid's four re-assembled token maps, fine to coarse
    last:        channels before the output convolution
    hooks:       which of the depth + 1 token maps feed the head; () = [0, d*2//4, d*3//4, d]
    desc:        descriptor size
    desc_ratio:  hidden width of the local-feature MLP over its input width
    desc_fine:   descriptors also read the dense head's finest map (catconv only). MASt3R makes each
                 patch's from its token alone; with few pairs to learn from, they stay as coarse.
    late_double: the last doubling of the resolution comes after the output convolutions, not
                 before: a quarter of their work
    last_norm:   normalises each pixel's channels before the output convolution. Nothing else in the
                 pyramid bounds them, and trained from scratch they grow until every step is noise.
    two_confs:   descriptors have their own confidence; else they share the points'
    plane:       adds the point map of a plane, its 12 coefficients read from the mean token. MASt3R
                 has none; with it a small network spends its capacity on relief, not on the trivial
                 plane.
    """

    kind: str = "dpt"
    shared: bool = False
    width: int = 256
    layers: tuple[int, int, int, int] = (96, 192, 384, 768)
    last: int = 128
    hooks: tuple[int, ...] = ()
    desc: int = 24
    desc_ratio: float = 4.0
    desc_fine: bool = False
    late_double: bool = False
    last_norm: bool = False
    two_confs: bool = True
    plane: bool = False


@dataclasses.dataclass(frozen=True)
class StereoConfig:
    """A whole two-view network; the defaults are the 688.6M teacher (Leroy et al. 2024, MASt3R).

    rope_base:      base of the rotary frequencies ("RoPE100")
    landscape_only: trained on landscape arrays, where portrait pictures are stored transposed (the
                    reference's ManyAR_PatchEmbed). It goes back to PyTorch; what is computed
                    depends on the pictures alone.
    keep_unused:    holds the tensors of the released files that no computation reads (`Unused`), so
                    that a model can go back to PyTorch unchanged and is counted as published
    """

    name: str = "mast3r"
    encoder: EncoderConfig | AdaptedEncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    head: HeadConfig = HeadConfig()
    rope_base: float = 100.0
    landscape_only: bool = False
    keep_unused: bool = False

    @property
    def hooks(self) -> tuple[int, ...]:
        """Indices into [encoder tokens, block 1, ..., block d] that feed the dense head."""
        d = self.decoder.depth
        return self.head.hooks or (0, d * 2 // 4, d * 3 // 4, d)

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(dataclasses.replace(self, encoder=EncoderConfig()))
        return {**values, "encoder": self.encoder.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StereoConfig:
        """Inverse of `to_dict`, also from JSON (lists for tuples).

        Raises:
          InputError: a key that no field has, or a size that cannot be built; it is named.
        """
        built = dict(values)
        for key, part in (
            ("encoder", EncoderConfig),
            ("decoder", DecoderConfig),
            ("head", HeadConfig),
        ):
            if key in values:
                adapted = key == "encoder" and "model" in values[key]
                make = adapted_from_dict if adapted else functools.partial(build_dataclass, part)
                built[key] = make(values[key], key)
        config = build_dataclass(cls, built, "architecture")
        config.check()
        return config

    def check(self) -> None:
        """Raises InputError for sizes that no network can have."""
        d, h = self.decoder, self.head
        require_numbers(
            self.name,
            {
                **{f"decoder.{k}": getattr(d, k) for k in ("width", "depth", "heads")},
                **{f"head.{k}": getattr(h, k) for k in ("width", "last", "desc")},
                **{f"head.layers[{i}]": width for i, width in enumerate(h.layers)},
            },
            {
                "decoder.mlp_ratio": d.mlp_ratio,
                "head.desc_ratio": h.desc_ratio,
                "rope_base": self.rope_base,
            },
        )
        require_rotary(self.name, "decoder", d)
        self.encoder.check(self.name)
        if self.landscape_only and not self.encoder.reads_transposed:
            raise InputError(
                f"{self.name}: landscape_only needs MASt3R's plain patch embedding: another "
                "encoder or a stem cannot read an image on its side."
            )
        if len(self.hooks) != 4 or not all(0 <= i <= d.depth for i in self.hooks):
            raise InputError(
                f"{self.name}: head.hooks {self.hooks} must be four indices from 0 to the "
                f"decoder's depth {d.depth}."
            )
        if len(h.layers) != 4:
            raise InputError(
                f"{self.name}: head.layers {h.layers} has {len(h.layers)} widths; the dense head "
                "needs 4."
            )
        if h.kind not in ("dpt", "catconv"):
            raise InputError(f"{self.name}: head.kind is {h.kind!r}; choose from dpt, catconv.")
        if h.kind == "dpt" and h.desc_fine:
            raise InputError(f"{self.name}: head.desc_fine needs head.kind catconv, not dpt.")
        if h.kind == "dpt" and self.encoder.patch != 16:
            raise InputError(
                f"{self.name}: encoder.patch is {self.encoder.patch}; the dpt head doubles the "
                "token grid four times, so it needs 16: choose head.kind catconv."
            )
        if h.kind == "catconv" and (h.width % 4 or h.late_double or h.last_norm):
            raise InputError(
                f"{self.name}: a catconv head needs a head.width that 4 divides, without "
                f"head.late_double and head.last_norm; head.width is {h.width}."
            )


def require_rotary(name: str, part: str, c: EncoderConfig | DecoderConfig) -> None:
    """Raises InputError unless rotary positions fit into the heads of a part of the network."""
    if c.width % (4 * c.heads):
        raise InputError(
            f"{name}: {part}.width {c.width} with {part}.heads {c.heads} gives heads of "
            f"{c.width / c.heads:g} channels; 2D rotary positions need a multiple of 4."
        )
