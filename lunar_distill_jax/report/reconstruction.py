"""The page of a reconstruction: photographs with their matches, surface, maps, terrain, cameras."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from lunar_distill_jax import atomic, geometry
from lunar_distill_jax.reconstruction.files import Terrain
from lunar_distill_jax.reconstruction.run import Reconstruction, View
from lunar_distill_jax.report import cloud, figures
from lunar_distill_jax.report.page import KILOMETRES, NO_UNIT, assemble, viewer

PHOTO_SIDE = 720  # pixels of the photographs on the page
CLOUD_SIDE = 256  # of the frames in the viewer; larger ones are thinned
MATCHES_SHOWN = 24
SHOWN_OF = {
    True: "the model's descriptors",
    False: "patches of the pictures, because the model's descriptors and points disagree",
}
OUTLIERS = 2.0  # percent of points at either end that do not set the range of the viewer
NOTE = """\
<p>Everything is the model's own answer in the camera of view 1: nothing was aligned with anything.
Focal lengths not given were estimated from the points, the pose by looking for the camera that sees
view 2's points where they are. The terrain model is level with the plane through all points.</p>"""


def write_reconstruction(
    path: str | os.PathLike,
    made: Reconstruction,
    ground: Terrain,
    *,
    names: Sequence[str],
    facts: Mapping[str, str],
    command: str,
) -> None:
    """Writes the page, whole or not at all. names: of the two photographs.

    Raises:
      InputError: `path` cannot be written.
    """
    unit = made.unit
    baseline = float(np.linalg.norm(made.T_cam2_cam1[:3, 3]))
    cosine = np.clip((np.trace(made.T_cam2_cam1[:3, :3]) - 1) / 2, -1, 1)
    cameras = [
        ("Overlap", f"probability {made.overlap.probability:.2f}: {made.overlap.agreement:.0%} of "
         f"{made.overlap.patches} patches of view 1 lie over view 2 under one affine map"),
        ("Matches", f"{len(made.matches.conf)} of descriptors, of which the points explain "
         f"{made.matches.explained:.0%}; {len(made.overlap.scores)} of patches"),
        ("Focal lengths", " and ".join(f"{v.K_photograph[0, 0]:.1f} px" for v in made.views)),
        ("Baseline", f"{_number(baseline)} {unit}"),
        ("Rotation", f"{np.degrees(np.arccos(cosine)):.2f}°"),
        ("Depth", "{} to {} {}".format(*map(_number, _range(made.views[0].depth)), unit)),
    ]  # fmt: skip
    rows = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in cameras)
    photographs = "".join(
        _figure(png, f"{html.escape(name)}, view {i}", f"View {i}: {html.escape(name)}")
        for i, (png, name) in enumerate(zip(_photographs(made), names, strict=True), start=1)
    )
    sections = [
        f'<section class="pair"><h2>Photographs</h2><div class="photographs">{photographs}'
        f'<div><dl>{rows}</dl></div></div><p class="note">Outlined: what the model saw. Dots of '
        f"one colour and number are one match, of {SHOWN_OF[made.matches.believable]}.</p>"
        "</section>",
        _viewer(made, ground),
        *(_maps(view, number, unit) for number, view in enumerate(made.views, start=1)),
        _terrain(ground, unit),
    ]
    measured = (
        "Distances are in metres."
        if unit == "m"
        else "Nothing gave the scale: distances are in the model's own unit; a baseline or an "
        "altitude would fix it."
    )
    lead = f"{names[0]} and {names[1]}, in the camera of the first. {measured}"
    title = "Reconstruction"
    if made.doubt:
        title = "Unreliable reconstruction"
        lead = f"Do not believe pose, scale and surface: {made.doubt}. {lead}"
    atomic.write_text(
        path, assemble(title, lead, sections, facts=facts, command=command, note=NOTE)
    )


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [1, 99])
    return float(low), float(high)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _figure(png: bytes, alt: str, caption: str) -> str:
    return (
        f'<figure><img class="photo" src="{figures.data_uri(png)}" alt="{alt}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _photographs(made: Reconstruction) -> list[bytes]:
    """Both photographs with the frame and numbered dots of some matches."""
    found = made.matches if made.matches.believable else made.overlap
    conf = made.matches.conf if made.matches.believable else made.overlap.scores
    order = np.argsort(-conf, kind="stable")[:MATCHES_SHOWN]
    colours = figures.palette("plasma")
    pictures = []
    for view, pixels in zip(made.views, (found.pixels1, found.pixels2), strict=True):
        picture = Image.fromarray(view.picture)
        scale = min(1.0, PHOTO_SIDE / max(picture.size))
        picture = picture.resize([max(round(side * scale), 1) for side in picture.size])
        draw = ImageDraw.Draw(picture)
        h, w = view.image.shape[:2]
        corners = view.framing.to_original(np.array([[-0.5, -0.5], [w - 0.5, h - 0.5]]))
        box = ((corners + 0.5) * scale).round().clip(0, np.array(picture.size) - 1)
        draw.rectangle([*map(float, box.ravel())], outline=(230, 159, 0), width=2)
        # The colour follows the place in view 1, so that neighbours differ little.
        along = found.pixels1[order, 0] / max(made.views[0].picture.shape[1] - 1, 1)
        for number, ((x, y), t) in enumerate(zip(pixels[order], along, strict=True), start=1):
            u, v = (x + 0.5) * scale, (y + 0.5) * scale
            colour = tuple(int(c) for c in colours[int(np.clip(t, 0, 1) * (figures.LEVELS - 1))])
            draw.ellipse([u - 4, v - 4, u + 4, v + 4], fill=colour, outline=(255, 255, 255))
            draw.text(
                (u + 6, v - 7),
                str(number),
                fill=(255, 255, 255),
                font_size=13,
                stroke_width=2,
                stroke_fill=(0, 0, 0),
            )
        out = io.BytesIO()
        picture.save(out, "PNG")
        pictures.append(out.getvalue())
    return pictures


def _maps(view: View, number: int, unit: str) -> str:
    low, high = _range(view.depth)
    depth = figures.Scale(unit, "cividis", low, max(high, low * (1 + 1e-6)))
    conf = figures.confidence_scale([view.conf])
    return (
        f'<section><h2>View {number}</h2><div class="photographs">'
        + _mapped(view.depth, depth, "Depth", "along the optical axis of its own camera")
        + _mapped(view.conf, conf, "Confidence", "the model's own; it has no unit")
        + "</div></section>"
    )


def _terrain(ground: Terrain, unit: str) -> str:
    height, slope = np.flipud(ground.height), np.flipud(ground.slope_deg)
    reach = figures.round_up(float(np.nanpercentile(np.abs(height), 98)))
    heights = figures.Scale(unit, "RdBu_r", -reach, reach)
    cell = (
        f"{ground.grid.rows} x {ground.grid.columns} cells of {_number(ground.grid.cell_m)} {unit}"
    )
    return (
        '<section><h2>Terrain from above</h2><div class="photographs">'
        + _mapped(height, heights, "Height", "above the plane through all points")
        + _mapped(slope, figures.slope_scale(slope), "Slope", "of 5 x 5 cells")
        + f'</div><p class="note">{cell}, as in dem.tif and slope.tif; blank where no point fell. '
        "Slopes to that plane, which itself need not be level.</p></section>"
    )


def _mapped(values: np.ndarray, scale: figures.Scale, name: str, about: str) -> str:
    png = figures.paint(values, scale, name)
    bar = figures.data_uri(figures.colour_bar(scale.cmap))
    low, _, high = scale.ticks
    return (
        f'<figure><img class="photo" src="{figures.data_uri(png)}" alt="{name}">'
        f"<figcaption><b>{name}</b>, {about}<br>{_number(low)} "
        f'<img src="{bar}" alt="" style="display:inline;width:9rem;height:.6rem"> '
        f"{_number(high)} {scale.unit}</figcaption></figure>"
    )


def _viewer(made: Reconstruction, ground: Terrain) -> str:
    unit = KILOMETRES if made.unit == "m" else NO_UNIT
    height, width = (max(v.image.shape[axis] for v in made.views) for axis in (0, 1))
    step = -(-max(height, width) // CLOUD_SIDE)
    shape = (2, -(-height // step), -(-width // step))
    points, photo = np.zeros((*shape, 3)), np.zeros((*shape, 3), np.uint8)
    conf = np.zeros(shape)
    for i, view in enumerate(made.views):
        thinned = view.image[::step, ::step]
        cut = i, slice(thinned.shape[0]), slice(thinned.shape[1])
        photo[cut], conf[cut] = thinned, view.conf[::step, ::step]
        points[cut] = ground.frame(view.points_cam1[::step, ::step]) / unit["ratio"]
    known = (conf > 0) & np.isfinite(points).all(-1)
    flat = points[known]
    low, high = np.percentile(flat, [OUTLIERS, 100 - OUTLIERS], axis=0)
    centre, reach = (low + high) / 2, np.maximum(high - low, 1e-6)
    points = np.clip(points, centre - cloud.REACH * reach, centre + cloud.REACH * reach)
    scale = figures.confidence_scale([conf[known]])
    level = 1 + np.round(scale.fraction(np.where(known, conf, scale.lo)) * 254)
    T = ground.frame.T_local_cam1
    cameras = []
    for T_cam1_cam in (np.eye(4), geometry.inverse(made.T_cam2_cam1)):
        placed = T @ T_cam1_cam
        cameras.append({
            "centre": (placed[:3, 3] / unit["ratio"]).tolist(), "forward": placed[:3, 2].tolist(),
        })  # fmt: skip
    packed = {
        "label": "1",
        "height": shape[1],
        "width": shape[2],
        "channels": 3,
        "photo": cloud.squeeze(photo.tobytes()),
        "cameras": cameras,
        "span": (high - low).tolist(),
        "relief": float(np.percentile(np.abs(flat[:, 2]), 98)) or 1.0,
        "conf": list(scale.ticks),
        "sources": {"surface": cloud.pack(points, np.where(known, level, 0).astype(np.uint8))},
    }
    still = cloud.draw_points(flat, photo[known], shape[2])
    return viewer(
        {
            "pairs": [packed],
            "models": {"surface": "Reconstruction"},
            "right": "",
            "reference": None,
            "unit": unit,
        },
        [("Reconstruction", still)],
    )
