"""Writes stereo pairs in StereoLunar's on-disk format.

    ROOT/split.npz                    which frames make a pair
    ROOT/Nadir/paire1/im_00000.jpg    view 1 under the first sun; R = G = B, quality 95
                      im_00000.exr    z-depth in metres, one channel Y, HALF, PIZ; inf where invalid
                      im_00000.npz    `intrinsics` (pixel corners), `cam2world` (metres), float32
                      im_00001.*      view 2 under the first sun
                      im_00002.*      view 1 under the second sun; depth and camera as im_00000

Equal pairs give equal bytes: none of these files holds a date.
"""

from __future__ import annotations

import collections
import os
import pathlib
import shutil
from collections.abc import Iterable

import numpy as np
import OpenEXR
from PIL import Image

from lunar_distill_jax import geometry
from lunar_distill_jax.atomic import atomic_folder
from lunar_distill_jax.types import StereoPair

JPEG_QUALITY = 95
DEPTH_TOLERANCE = 0.01  # relative; a larger difference means that the point is hidden
PAIR_ROW = np.dtype([("scene", "<i4"), ("im1", "<i4"), ("im2", "<i4"), ("score", "<f4")])


def overlap(pair: StereoPair) -> float:
    """Fraction of the ground of one view that the other one sees, mean of both directions."""
    seen = []
    for a, b in ((0, 1), (1, 0)):
        T_b_a = geometry.relative_pose(pair.T_world_cam[[b, a]])
        points = geometry.backproject(pair.depth_m[a], pair.K[a])[pair.valid[a]]
        points = geometry.transform(T_b_a, points)
        points = points[points[:, 2] > 0]
        u, v = np.rint(geometry.project(pair.K[b], points)).T
        height, width = pair.depth_m[b].shape
        framed = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        there = v[framed].astype(int), u[framed].astype(int)
        z, depth = points[framed, 2], pair.depth_m[b][there]
        same = pair.valid[b][there] & (np.abs(z - depth) < DEPTH_TOLERANCE * depth)
        seen.append(same.sum() / max(pair.valid[a].sum(), 1))
    return float(np.mean(seen))


def write_stereolunar(
    pairs: Iterable[StereoPair], root: str | os.PathLike, *, half_depth: bool = True
) -> list[str]:
    """Writes pairs, one by one as they come, to a new folder that appears only when complete.

    Consecutive pairs of one geometry share a scene folder, as one camera pair under several suns.
    Frames are numbered through a trajectory; the even frame is view 1, the next one view 2.

    Args:
      pairs: any iterable; only one pair is held at a time.
      root: an absent or empty folder.
      half_depth: HALF depth as the published frames have it (steps of 8 m at 10 km, inf beyond
        65 504 m), or else FLOAT.

    Returns:
      The names under which `data.stereolunar` finds the pairs, "Nadir/paire1/im_00000-im_00001".

    Raises:
      InputError: `root` holds something already, or cannot be written.
    """
    scenes: list[str] = []
    frames: collections.Counter[str] = collections.Counter()
    folders: collections.Counter[str] = collections.Counter()
    rows, names = [], []
    last: tuple[StereoPair, list[pathlib.Path], float] | None = None
    with atomic_folder(root) as part:
        for pair in pairs:
            trajectory = pair.trajectory.capitalize()
            if last is None or (pair.trajectory, pair.geometry) != _scene_key(last[0]):
                folders[trajectory] += 1
                scenes.append(f"{trajectory}/paire{folders[trajectory]}")
                (part / scenes[-1]).mkdir(parents=True)
            first = frames[trajectory]
            frames[trajectory] += 2
            paths = [part / scenes[-1] / _stem(first + view) for view in range(2)]
            # Under another sun the same cameras see the same ground: all but the photographs is
            # there already, and costs more to encode than they do.
            known = last if last is not None and _same_ground(pair, last[0]) else None
            for view, path in enumerate(paths):
                if known is None:
                    _write_ground(path, pair, view, half_depth=half_depth)
                else:
                    for kind in (".exr", ".npz"):
                        shutil.copyfile(known[1][view].with_suffix(kind), path.with_suffix(kind))
                _write_photograph(path, pair, view)
            score = overlap(pair) if known is None else known[2]
            last = pair, paths, score
            names.append(f"{scenes[-1]}/{_stem(first)}-{_stem(first + 1)}")
            rows.append((len(scenes) - 1, first, first + 1, score))
        stems = [_stem(i) for i in range(max(frames.values(), default=0))]
        np.savez(
            part / "split.npz",
            scenes=np.array(scenes, dtype=str),
            images=np.array(stems, dtype=str),
            pairs=np.array(rows, dtype=PAIR_ROW),
        )
    return names


def _stem(number: int) -> str:
    return f"im_{number:05d}"


def _scene_key(pair: StereoPair) -> tuple[str, str]:
    return pair.trajectory, pair.geometry


def _same_ground(a: StereoPair, b: StereoPair) -> bool:
    """Whether two pairs differ in nothing but their photographs."""
    fields = ("depth_m", "valid", "K", "T_world_cam")
    return _scene_key(a) == _scene_key(b) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in fields
    )


def write_frame(path: pathlib.Path, pair: StereoPair, view: int, *, half_depth: bool) -> None:
    """Writes `path`.jpg, .exr and .npz of one view."""
    _write_photograph(path, pair, view)
    _write_ground(path, pair, view, half_depth=half_depth)


def _write_photograph(path: pathlib.Path, pair: StereoPair, view: int) -> None:
    Image.fromarray(pair.image[view]).save(path.with_suffix(".jpg"), quality=JPEG_QUALITY)


def _write_ground(path: pathlib.Path, pair: StereoPair, view: int, *, half_depth: bool) -> None:
    depth = np.where(pair.valid[view], pair.depth_m[view], np.inf)
    with np.errstate(over="ignore"):  # HALF ends at 65 504 m; beyond, StereoLunar has inf too
        depth = depth.astype(np.float16 if half_depth else np.float32)
    header = {"compression": OpenEXR.PIZ_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Y": depth}).write(str(path.with_suffix(".exr")))
    intrinsics = pair.K[view].copy()
    intrinsics[:2, 2] += 0.5  # the files place (0, 0) at the corner of the first pixel
    np.savez(
        path.with_suffix(".npz"),
        intrinsics=intrinsics.astype(np.float32),
        cam2world=pair.T_world_cam[view].astype(np.float32),
    )
