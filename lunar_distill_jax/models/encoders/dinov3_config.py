"""Sizes of the DINOv3 encoders (Simeoni et al. 2025, arXiv 2508.10104), and the published ones."""

from __future__ import annotations

import dataclasses

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.limits import require_numbers


@dataclasses.dataclass(frozen=True)
class DINOv3Config:
    """A vision transformer with rotary positions and register tokens.

    width, depth, heads, mlp_ratio: of its blocks; head size is width / heads, a multiple of 4
    gated:     the MLP is a SwiGLU (Shazeer 2020): three matrices, not two
    registers: tokens without a place (Darcet et al. 2024)
    patch:     pixels along the side of a patch
    rope_base: of the rotary frequencies
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    gated: bool = False
    registers: int = 4
    patch: int = 16
    rope_base: float = 100.0
    family: str = dataclasses.field(default="dinov3", init=False)

    @property
    def stride(self) -> int:
        return self.patch

    def check(self, name: str) -> None:
        """Raises InputError for sizes that no transformer can have; `name` is the network's."""
        keys = ("width", "depth", "heads", "patch", *(("registers",) if self.registers else ()))
        sizes = {f"encoder.model.{k}": getattr(self, k) for k in keys}
        ratios = {f"encoder.model.{k}": getattr(self, k) for k in ("mlp_ratio", "rope_base")}
        require_numbers(name, sizes, ratios)
        if self.width % (4 * self.heads):
            raise InputError(
                f"{name}: encoder.model.width {self.width} with encoder.model.heads {self.heads} "
                "gives heads whose channels 4 does not divide; rotary positions need that."
            )


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig:
    """ConvNeXt (Liu et al. 2022), one width and one number of blocks for each of four stages.

    stages: how many run. 3 end at stride 16, not normalised, as no file has a norm there: the map
            that a student on 16-pixel tokens reads. 4 end at stride 32 with the final norm.
    """

    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    stages: int = 3
    family: str = dataclasses.field(default="dinov3_convnext", init=False)

    @property
    def stride(self) -> int:
        return 2 ** (self.stages + 1)

    def check(self, name: str) -> None:
        """Raises InputError for sizes that cannot be; `name` is the network's."""
        sizes = {f"encoder.model.widths[{i}]": n for i, n in enumerate(self.widths)}
        sizes |= {f"encoder.model.depths[{i}]": n for i, n in enumerate(self.depths)}
        require_numbers(name, {**sizes, "encoder.model.stages": self.stages}, {})
        if not len(self.widths) == len(self.depths) >= self.stages:
            raise InputError(
                f"{name}: encoder.model has {len(self.widths)} widths, {len(self.depths)} depths "
                f"and stages {self.stages}; give a width and a depth for each stage."
            )


VIT_SIZES = {
    "s": DINOv3Config(384, 12, 6),
    "s+": DINOv3Config(384, 12, 6, gated=True),
    "b": DINOv3Config(768, 12, 12),
    "l": DINOv3Config(1024, 24, 16),
    "h+": DINOv3Config(1280, 32, 20, gated=True),
}
CONVNEXT_SIZES = {
    "tiny": ConvNeXtConfig((96, 192, 384, 768), (3, 3, 9, 3)),
    "small": ConvNeXtConfig((96, 192, 384, 768), (3, 3, 27, 3)),
    "base": ConvNeXtConfig((128, 256, 512, 1024), (3, 3, 27, 3)),
    "large": ConvNeXtConfig((192, 384, 768, 1536), (3, 3, 27, 3)),
}
