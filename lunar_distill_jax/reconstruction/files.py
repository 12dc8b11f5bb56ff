"""Writes a reconstruction: point cloud, mesh, depth, confidence, matches, cameras, terrain.

points.ply         coloured points of both views, camera 1: x right, y down, z forward
surface.glb        the textured surface, y up and z towards the viewer, as glTF wants it
depth1.exr ...     z-depth in the view's own camera at the photograph's pixels; NaN outside
confidence1.exr    the network's confidence there, >= 1
matches.csv        pixels of both photographs and the confidence of each match
camera.json        focal lengths, K, relative pose, unit, overlap, whether to believe it
dem.tif, slope.tif heights in the local frame and their slope in degrees, float32 GeoTIFF
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib

import numpy as np
import OpenEXR
import trimesh
from PIL import Image, TiffImagePlugin

from lunar_distill_jax.data.images import DEPTH_JUMP
from lunar_distill_jax.reconstruction.run import Reconstruction, View
from lunar_distill_jax.twoview import dem

CELL_GSD = 2.0  # ground samples along the edge of a cell of the terrain model
# GeoTIFF 1.1 (OGC 19-008r4): ModelPixelScale, ModelTiepoint, GeoKeyDirectory.
PIXEL_SCALE, TIEPOINT, GEO_KEYS = 33550, 33922, 34735
# Version 1.1.0, two keys: a user-defined model, whose raster pixels are areas.
KEYS = (1, 1, 0, 2, 1024, 0, 1, 32767, 1025, 0, 1, 1)


@dataclasses.dataclass(frozen=True)
class Terrain:
    """Heights and slopes on a grid, [rows, columns], north (away from view 1's bottom) last.

    height: in the reconstruction's unit above the mean plane; NaN in empty cells
    slope_deg: of a plane through 5 x 5 cells, against that plane's frame
    """

    frame: dem.LocalFrame
    grid: dem.Grid
    height: np.ndarray
    slope_deg: np.ndarray


def terrain(made: Reconstruction) -> Terrain:
    """Grids the surer half of both views' points, in the frame of their own plane."""
    points, conf = (
        np.concatenate([getattr(view, name).reshape(-1, *last) for view in made.views])
        for name, last in (("points_cam1", (3,)), ("conf", ()))
    )
    points = points[conf >= np.median(conf)]  # a view that the network is unsure of adds noise
    frame = dem.local_frame(points, np.eye(4))
    local = frame(points)
    view = made.views[0]
    grid = dem.Grid.over(local[:, :2], CELL_GSD * float(np.median(view.depth)) / view.K[0, 0])
    height = dem.rasterise(local, grid)
    return Terrain(frame, grid, height, dem.windows(height, grid.cell_m).slope_deg)


def write(made: Reconstruction, ground: Terrain, folder: pathlib.Path) -> None:
    """Writes all files but the page into an existing folder."""
    _cloud(made).export(folder / "points.ply", encoding="binary")
    (folder / "surface.glb").write_bytes(_surface(made))
    for number, view in enumerate(made.views, start=1):
        write_exr(folder / f"depth{number}.exr", view.on_photograph(view.depth))
        write_exr(folder / f"confidence{number}.exr", view.on_photograph(view.conf))
    (folder / "matches.csv").write_text(_match_table(made))
    (folder / "camera.json").write_text(json.dumps(cameras(made), indent=1) + "\n")
    (folder / "dem.tif").write_bytes(geotiff(ground.height, ground.grid))
    (folder / "slope.tif").write_bytes(geotiff(ground.slope_deg, ground.grid))


def cameras(made: Reconstruction) -> dict:
    """What camera.json holds."""
    return {
        "reliable": not made.doubt,
        "doubt": made.doubt,
        "unit": made.unit,
        "T_cam2_cam1": made.T_cam2_cam1.tolist(),
        "baseline": float(np.linalg.norm(made.T_cam2_cam1[:3, 3])),
        "overlap": {
            "probability": made.overlap.probability,
            "agreement": made.overlap.agreement,
            "patches": made.overlap.patches,
            "matches": len(made.matches.conf),
            "matches_explained": made.matches.explained,
            "exact": made.exact,
        },
        "views": [
            {
                "photograph": list(view.framing.original),
                "focal_px": float(view.K_photograph[0, 0]),
                "K": view.K_photograph.tolist(),
                "frame": {"size": list(view.image.shape[:2]), "K": view.K.tolist()},
            }
            for view in made.views
        ],
    }


def _match_table(made: Reconstruction) -> str:
    found, laid = made.matches, made.overlap
    rows = [("descriptors", *row) for row in np.c_[found.pixels1, found.pixels2, found.conf]]
    rows += [("patches", *row) for row in np.c_[laid.pixels1, laid.pixels2, laid.scores]]
    lines = [",".join((*(f"{value:.3f}" for value in row[1:]), row[0])) for row in rows]
    return "\n".join(["x1,y1,x2,y2,conf,source", *lines]) + "\n"


def write_exr(path: pathlib.Path, values: np.ndarray) -> None:
    """One float32 channel "Y" [H, W], which `data.images.read_depth` reads."""
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Y": np.ascontiguousarray(values, np.float32)}).write(str(path))


def geotiff(values: np.ndarray, grid: dem.Grid) -> bytes:
    """float32 GeoTIFF of a grid [rows, columns], its last row first: north is up in a TIFF."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, kind, numbers in (
        (PIXEL_SCALE, 12, (grid.cell_m, grid.cell_m, 0.0)),
        (TIEPOINT, 12, (0.0, 0.0, 0.0, grid.x0, grid.y0 + grid.rows * grid.cell_m, 0.0)),
        (GEO_KEYS, 3, KEYS),
    ):
        tags.tagtype[tag] = kind
        tags[tag] = numbers
    out = io.BytesIO()
    Image.fromarray(np.flipud(values).astype(np.float32)).save(out, "TIFF", tiffinfo=tags)
    return out.getvalue()


def _cloud(made: Reconstruction) -> trimesh.PointCloud:
    return trimesh.PointCloud(
        np.concatenate([view.points_cam1.reshape(-1, 3) for view in made.views]).astype(np.float32),
        colors=np.concatenate([view.image.reshape(-1, 3) for view in made.views]),
    )


def _surface(made: Reconstruction) -> bytes:
    scene = trimesh.Scene()
    for number, view in enumerate(made.views, start=1):
        mesh = trimesh.Trimesh(
            view.points_cam1.reshape(-1, 3) * [1, -1, -1],
            triangles(view),
            vertex_colors=view.image.reshape(-1, 3),
            process=False,
        )
        scene.add_geometry(mesh, node_name=f"view{number}", geom_name=f"view{number}")
    data = scene.export(file_type="glb")
    assert isinstance(data, bytes)  # of this kind it always is
    return data


def triangles(view: View) -> np.ndarray:
    """Two for each square of pixels whose depths lie on one surface: int [N, 3]."""
    height, width = view.depth.shape
    index = np.arange(height * width).reshape(height, width)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    depth = np.where(view.depth > 0, view.depth, np.nan).ravel()
    corners = np.stack([depth[i] for i in (a, b, c, d)])
    whole = np.max(corners, 0) <= DEPTH_JUMP * np.min(corners, 0)  # False where NaN
    return np.concatenate(
        [np.stack([i[whole] for i in three], -1) for three in ((a, c, b), (b, c, d))]
    )
