"""numpy -> PNG bytes: photographs, colour-mapped maps with shared scales, colour bars."""

from __future__ import annotations

import base64
import dataclasses
import io
import struct
import zlib

import matplotlib
import numpy as np
from PIL import Image

LEVELS = 255  # palette entries 0..254 are colours; 255 is "no value", transparent


@dataclasses.dataclass(frozen=True)
class Scale:
    """How values become colours; shared by all pictures that are to be compared.

    cmap is a colour-blind-safe matplotlib name; lo and hi are in `unit`, `factor` times the unit of
    the map (metres shown as km: factor 1e-3).
    """

    unit: str
    cmap: str
    lo: float
    hi: float
    log: bool = False
    factor: float = 1.0

    def fraction(self, values: np.ndarray) -> np.ndarray:
        """Map values -> position along the colour bar, clipped to [0, 1]; NaN stays NaN."""
        x, lo, hi = np.asarray(values, np.float64) * self.factor, self.lo, self.hi
        if self.log:
            x, lo, hi = np.log(np.maximum(x, 1e-12)), np.log(lo), np.log(hi)
        return np.clip((x - lo) / (hi - lo), 0.0, 1.0)

    @property
    def ticks(self) -> tuple[float, float, float]:
        """Values at the left end, the middle and the right end of the bar."""
        middle = (self.lo * self.hi) ** 0.5 if self.log else (self.lo + self.hi) / 2
        return self.lo, middle, self.hi


def palette(cmap: str) -> np.ndarray:
    """The colours of a matplotlib colour map: uint8 [LEVELS, 3]."""
    colours = matplotlib.colormaps[cmap](np.linspace(0, 1, LEVELS))[:, :3]
    return np.round(colours * 255).astype(np.uint8)


def paint(values: np.ndarray, scale: Scale, title: str = "") -> bytes:
    """A map [H, W] as a palette PNG of the same size, transparent where not finite.

    The scale is written into the file, so that an exported picture can still be read.
    """
    known = np.isfinite(values)
    position = scale.fraction(np.where(known, values, scale.lo / scale.factor))
    index = np.where(known, np.round(position * (LEVELS - 1)), LEVELS).astype(np.uint8)
    text = {"Title": title, "Scale": f"{scale.cmap}, {scale.lo:g} to {scale.hi:g} {scale.unit}"}
    return palette_png(index, palette(scale.cmap), text)


def palette_png(index: np.ndarray, colours: np.ndarray, text: dict[str, str]) -> bytes:
    """A PNG of palette indices [H, W]; index LEVELS is transparent.

    Written by hand because Pillow never filters palette rows: our indices are smooth, and filter
    Sub (1) or Up (2), whichever leaves less in a row, saves a third of the bytes.
    """
    height, width = index.shape
    left = np.diff(index, axis=1, prepend=np.zeros((height, 1), np.uint8))
    up = np.diff(index, axis=0, prepend=np.zeros((1, width), np.uint8))
    sizes = [np.abs(d.view(np.int8).astype(int)).sum(1, keepdims=True) for d in (left, up)]
    rows = np.where(
        sizes[0] <= sizes[1],
        np.pad(left, ((0, 0), (1, 0)), constant_values=1),
        np.pad(up, ((0, 0), (1, 0)), constant_values=2),
    )
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", colours.tobytes() + b"\x80\x80\x80"),
        (b"tRNS", b"\xff" * LEVELS + b"\x00"),
        *((b"iTXt", k.encode() + b"\0" * 5 + v.encode()) for k, v in text.items()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d))
        for kind, d in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def photograph(image: np.ndarray, side: int = 512) -> bytes:
    """uint8 [H, W, 3] as a PNG, reduced to `side` pixels at most and grey if it is grey."""
    picture = Image.fromarray(image)
    if (image == image[..., :1]).all():
        picture = picture.convert("L")
    picture.thumbnail((side, side), Image.Resampling.BOX)
    return _png(picture)


def colour_bar(cmap: str) -> bytes:
    """A colour map as a PNG of one row, low values at the left; the page stretches it."""
    return _png(Image.fromarray(palette(cmap)[None]))


def data_uri(png: bytes) -> str:
    """PNG bytes as an address that needs no network."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=9)
    return out.getvalue()


def round_up(value: float, steps=(1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)) -> float:
    """The next "nice" number: a step times a power of ten. 1.0 for zero or no value."""
    if not np.isfinite(value) or value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(s for s in (*steps, 10.0) if s * power >= value * (1 - 1e-9)) * power)


def _percentile(values: np.ndarray, q: float, default: float) -> float:
    finite = np.asarray(values)[np.isfinite(values)]
    return float(np.percentile(finite, q)) if finite.size else default


def depth_scale(depth_m: np.ndarray) -> Scale:
    """Metres shown in km, from the 1st to the 99th percentile of the true depth."""
    lo, hi = _percentile(depth_m, 1, 0.0) / 1000, _percentile(depth_m, 99, 1000.0) / 1000
    return Scale("km", "cividis", lo, max(hi, lo + 1e-3), factor=1e-3)


def relief_scale(relief_m: np.ndarray) -> Scale:
    """Metres about zero, to the 98th percentile of the true relief's size."""
    reach = round_up(_percentile(np.abs(relief_m), 98, 1.0))
    return Scale("m", "RdBu_r", -reach, reach)


def slope_scale(slope_deg: np.ndarray) -> Scale:
    """Degrees from level, to the 98th percentile of the true slope, in fives."""
    top = 5.0 * np.ceil(_percentile(slope_deg, 98, 30.0) / 5.0)
    return Scale("degrees", "viridis", 0.0, float(np.clip(top, 5.0, 90.0)))


def error_scale(errors_pct: list[np.ndarray]) -> Scale:
    """% of depth, logarithmic: an untrained and a trained student are read on the same bar."""
    values = np.concatenate([e.ravel() for e in errors_pct]) if errors_pct else np.array([np.nan])
    grid = np.array([0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300])
    lo = grid[np.clip(np.searchsorted(grid, _percentile(values, 5, 0.1), "right") - 1, 0, 7)]
    hi = grid[np.clip(np.searchsorted(grid, _percentile(values, 98, 10.0)), 1, 9)]
    return Scale("% of depth", "magma", float(lo), float(max(hi, 10 * lo)), log=True)


def confidence_scale(confs: list[np.ndarray]) -> Scale:
    """The models' own number, logarithmic, from the 2nd to the 98th percentile of all of them."""
    values = np.concatenate([c.ravel() for c in confs]) if confs else np.array([np.nan])
    lo = max(_percentile(values, 2, 1.0), 1e-6)
    return Scale("", "cividis", lo, max(_percentile(values, 98, 2.0), 1.05 * lo), log=True)
