"""Point clouds for the viewer: a frame that stands on the terrain, and a compact packing.

Each source (ground truth or model) is one zlib stream, which assets/cloud.js unpacks:
  conf     uint8 [2, H, W]         0 hidden, 1..255 rising confidence
  x, y, z  uint16 [2, H, W] each   as two planes, low bytes then high bytes
The uint16 are second differences of the values q, modulo 2^16, with the sign in the lowest bit:
  d = q[r, c] - q[r, c-1] - q[r-1, c] + q[r-1, c-1], zero outside the view;  d >= 0 ? 2 d : -2 d - 1
which are small on smooth ground and so compress well.
A position is lo + step * value, in km, in the terrain frame.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.report import figures
from lunar_distill_jax.report.maps import Surface, terrain_plane
from lunar_distill_jax.types import StereoPair

REACH = 4.0  # points further out than this many scene radii are drawn on that edge


def terrain_frame(pair: StereoPair) -> np.ndarray:
    """T_terrain_cam1 [4, 4], metres: z up along the plane's normal, x along the rows of view 1."""
    centre, up = terrain_plane(pair)
    along = np.eye(3)[0 if abs(up[0]) < 0.9 else 1]  # terrain seen edge-on: along the columns
    x = along - (along @ up) * up
    x /= np.linalg.norm(x)
    T = np.eye(4)
    T[:3, :3] = np.stack([x, np.cross(up, x), up])
    T[:3, 3] = -T[:3, :3] @ centre
    return T


def quantise(points: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """points [..., 3] -> (uint16 [..., 3], lo [3], step [3]); off by at most step / 2."""
    if not known.any():
        return np.zeros(points.shape, np.uint16), np.zeros(3), np.ones(3)
    lo, hi = points[known].min(0), points[known].max(0)
    step = np.maximum((hi - lo) / 65535, 1e-9)
    filled = np.where(known[..., None], points, lo)
    return np.round((filled - lo) / step).astype(np.uint16), lo, step


def pack(points_km: np.ndarray, conf: np.ndarray) -> dict:
    """One source: points [2, H, W, 3] in km, conf uint8 [2, H, W] with 0 for "not there"."""
    values, lo, step = quantise(points_km, conf > 0)
    planes = [conf.tobytes()]
    for axis in range(3):
        d = np.diff(np.diff(values[..., axis], axis=1, prepend=0), axis=2, prepend=0)
        signed = d.astype(np.int16).astype(np.int32)
        code = ((signed << 1) ^ (signed >> 15)).astype(np.uint16)
        planes += [(code & 255).astype(np.uint8).tobytes(), (code >> 8).astype(np.uint8).tobytes()]
    return {"lo": lo.tolist(), "step": step.tolist(), "data": squeeze(b"".join(planes))}


def pack_pair(
    pair: StereoPair, truth: Surface, models: dict[str, Surface], conf: figures.Scale
) -> dict:
    """Everything the viewer needs of a pair, ready for JSON; sources are keyed by model name."""
    T = terrain_frame(pair)
    height, width = pair.depth_m.shape[1:]
    ground = geometry.transform(T, truth.points_cam1) / 1000
    flat = ground[pair.valid]
    reach = REACH * max(float(np.abs(flat).max()) if len(flat) else 1.0, 1e-3)
    sources = {"ground_truth": pack(ground, np.where(pair.valid, 255, 0).astype(np.uint8))}
    for name, surface in models.items():
        points = np.clip(geometry.transform(T, surface.points_cam1) / 1000, -reach, reach)
        known = pair.valid & np.isfinite(points).all(-1) & np.isfinite(surface.conf)
        level = np.where(known, conf.fraction(np.where(known, surface.conf, conf.lo)), 0.0)
        sources[name] = pack(points, np.where(known, 1 + np.round(level * 254), 0).astype(np.uint8))
    grey = bool((pair.image == pair.image[..., :1]).all())
    photo = pair.image[..., :1] if grey else pair.image
    return {
        "height": height,
        "width": width,
        "channels": photo.shape[-1],
        "photo": squeeze(np.ascontiguousarray(photo).tobytes()),
        "cameras": _cameras(pair, T),
        "span": np.ptp(flat, axis=0).tolist() if len(flat) else [1.0, 1.0, 1.0],
        "relief": float(np.percentile(np.abs(flat[:, 2]), 98)) if len(flat) else 1.0,
        "sources": sources,
    }


def _cameras(pair: StereoPair, T_terrain_cam1: np.ndarray) -> list[dict]:
    """Centre (km) and optical axis of both cameras in the terrain frame: error is in % of depth."""
    out = []
    for T_cam1_cam in (np.eye(4), geometry.relative_pose(pair.T_world_cam)):
        T = T_terrain_cam1 @ T_cam1_cam
        out.append({"centre": (T[:3, 3] / 1000).tolist(), "forward": T[:3, 2].tolist()})
    return out


def squeeze(data: bytes) -> str:
    """zlib and base64, as assets/cloud.js undoes them."""
    return base64.b64encode(zlib.compress(data, 9)).decode()


def still(pair: StereoPair, surface: Surface, size: tuple[int, int] = (560, 360)) -> bytes:
    """A PNG of the textured cloud from above and behind camera 1, for browsers without WebGL."""
    points = geometry.transform(terrain_frame(pair), surface.points_cam1)
    known = pair.valid & np.isfinite(points).all(-1)
    return draw_points(points[known], pair.image[known], pair.depth_m.shape[2], size)


def draw_points(
    points: np.ndarray, colours: np.ndarray, columns: int, size: tuple[int, int] = (560, 360)
) -> bytes:
    """A PNG of points [N, 3] (z up) in uint8 colours [N, 3], from above and behind camera 1.

    Painter's algorithm in parallel projection: far points first, each a square as large as one of
    `columns` side by side.
    """
    width, height = size
    canvas = np.full((height, width, 3), (13, 15, 20), np.uint8)
    if len(points):
        x, y, z = points.T
        tilt = np.radians(38)
        u, v, near = x, y * np.sin(tilt) + 2 * z * np.cos(tilt), -y
        lo, hi = np.percentile([u, v], [1, 99], axis=1)
        scale = 0.86 * (size / np.maximum(hi - lo, 1e-9)).min()
        col = width / 2 + (u - (lo + hi)[0] / 2) * scale
        row = height / 2 - (v - (lo + hi)[1] / 2) * scale
        order, dot = np.argsort(near), int(np.ceil(1.6 * width / columns / 2))
        for dr in range(-dot, dot + 1):
            for dc in range(-dot, dot + 1):
                r, c = np.round(row + dr).astype(int)[order], np.round(col + dc).astype(int)[order]
                inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
                canvas[r[inside], c[inside]] = colours[order][inside]
    return figures.photograph(canvas, max(size))
