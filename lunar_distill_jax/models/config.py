"""The architecture as data: one frozen dataclass describes every teacher, student and test model.

A config is written into each weight file as JSON, so the field names are a file format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lunar_distill_jax.errors import InputError

MAX_SIZE, MAX_DEPTH = 2**20, 256  # a damaged file must not ask for terabytes or hours


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """A vision transformer over patches.

    width, depth, heads, mlp_ratio: of its blocks; head size is width / heads, a multiple of 4
    patch:     pixels along the side of a patch
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


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Two stacks of cross-attending blocks, one a view; sizes as in `EncoderConfig`."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The dense (DPT) point head and the local-feature head of one view.

    width:       channels of the fusion pyramid (DPT's feature_dim)
    layers:      channels of the four re-assembled token maps, fine to coarse
    last:        channels before the output convolution
    hooks:       which of the depth + 1 token maps feed the pyramid; () = [0, d*2//4, d*3//4, d]
    desc:        descriptor size
    desc_ratio:  hidden width of the local-feature MLP over its input width
    late_double: the last doubling of the resolution comes after the output convolutions, not
                 before: a quarter of their work
    last_norm:   normalises each pixel's channels before the output convolution. Nothing else in the
                 pyramid bounds them, and trained from scratch they grow until every step is noise.
    two_confs:   descriptors have their own confidence; else they share the points'
    plane:       adds the point map of a plane, its 12 coefficients read from the mean token. MASt3R
                 has none; with it a small network spends its capacity on relief, not on the trivial
                 plane.
    """

    width: int = 256
    layers: tuple[int, int, int, int] = (96, 192, 384, 768)
    last: int = 128
    hooks: tuple[int, ...] = ()
    desc: int = 24
    desc_ratio: float = 4.0
    late_double: bool = False
    last_norm: bool = False
    two_confs: bool = True
    plane: bool = False


@dataclasses.dataclass(frozen=True)
class StereoConfig:
    """A whole two-view network; the defaults are the 688.6M teacher (Leroy et al. 2024, MASt3R).

    rope_base:      base of the rotary frequencies ("RoPE100")
    landscape_only: portrait images are stored transposed in landscape arrays, as are the outputs
    keep_unused:    holds the tensors of the released files that no computation reads (`Unused`), so
                    that a model can go back to PyTorch unchanged and is counted as published
    """

    name: str = "mast3r"
    encoder: EncoderConfig = EncoderConfig()
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
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StereoConfig:
        """Inverse of `to_dict`, also from JSON (lists for tuples).

        Raises:
          InputError: a key that no field has, or a size that cannot be built; it is named.
        """
        parts = {"encoder": EncoderConfig, "decoder": DecoderConfig, "head": HeadConfig}
        built = {
            key: _build(parts[key], value, key) if key in parts else value
            for key, value in values.items()
        }
        config = _build(cls, built, "architecture")
        config.check()
        return config

    def check(self) -> None:
        """Raises InputError for sizes that no network can have."""
        e, d, h = self.encoder, self.decoder, self.head
        self._check_numbers()
        for part, c in (("encoder", e), ("decoder", d)):
            if c.width % (4 * c.heads):
                raise InputError(
                    f"{self.name}: {part}.width {c.width} with {part}.heads {c.heads} gives heads "
                    f"of {c.width / c.heads:g} channels; 2D rotary positions need a multiple of 4."
                )
        if e.patch != 16:
            raise InputError(
                f"{self.name}: encoder.patch is {e.patch}; the dense head doubles the token grid "
                "four times, so it needs 16."
            )
        if e.stem and 2 ** len(e.stem) != e.patch:
            raise InputError(
                f"{self.name}: encoder.stem {e.stem} has {len(e.stem)} widths; a patch of "
                f"{e.patch} pixels needs {e.patch.bit_length() - 1}, one for each halving of the "
                "resolution."
            )
        if self.landscape_only and (e.stem or e.grid):
            raise InputError(
                f"{self.name}: landscape_only needs a plain patch embedding, but encoder.stem is "
                f"{e.stem} and encoder.grid {e.grid}: a stem cannot read an image on its side."
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

    def _check_numbers(self) -> None:
        e, d, h = self.encoder, self.decoder, self.head
        sizes: dict[str, Any] = {"head.width": h.width, "head.last": h.last, "head.desc": h.desc}
        ratios: dict[str, Any] = {"head.desc_ratio": h.desc_ratio, "rope_base": self.rope_base}
        for part, c in (("encoder", e), ("decoder", d)):
            sizes |= {f"{part}.{k}": getattr(c, k) for k in ("width", "depth", "heads")}
            ratios[f"{part}.mlp_ratio"] = c.mlp_ratio
        for name, widths in (("encoder.stem", e.stem), ("head.layers", h.layers)):
            sizes |= {f"{name}[{i}]": width for i, width in enumerate(widths)}
        problems = [
            f"{name} is {v!r}, expected an integer from 1 to {limit}"
            for name, v in sizes.items()
            for limit in [MAX_DEPTH if name.endswith("depth") else MAX_SIZE]
            if type(v) is not int or not 1 <= v <= limit
        ]
        problems += [
            f"{name} is {v!r}, expected a number above 0, at most {MAX_SIZE}"
            for name, v in ratios.items()
            if type(v) not in (int, float) or not 0 < v <= MAX_SIZE
        ]
        if problems:
            raise InputError(f"{self.name}: {'; '.join(problems)}.")


def _build(cls, values: Mapping[str, Any], where: str):
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(
            f"Unknown key {', '.join(unknown)} in {where}: it has {', '.join(sorted(known))}."
        )
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
