"""Two photographs -> point maps in one frame, cameras, matches, and whether they overlap at all."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from lunar_distill_jax import api, geometry
from lunar_distill_jax.data import framing, images
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.reconstruction.overlap import Overlap, overlap
from lunar_distill_jax.twoview import dem
from lunar_distill_jax.twoview.adjust import adjust
from lunar_distill_jax.twoview.essential import rays_of
from lunar_distill_jax.twoview.focal import focal_weiszfeld
from lunar_distill_jax.twoview.matching import match_confidence, reciprocal_matches
from lunar_distill_jax.twoview.pnp import camera_pose
from lunar_distill_jax.types import Prediction

SIZE = 512  # of the long side, where a model does not say what it was trained at
OVERLAPPING = 0.5  # probability from which the photographs are taken to show the same ground
AGREEING_MATCHES = 0.5  # fraction of descriptor matches that the point maps explain, likewise
FEWEST_MATCHES = 50  # below which that fraction means nothing
NEAR = 0.02  # of the long side: a match that the point maps explain
MATCH_STEP = 4  # pixels between seeds of matches
POSE_POINTS = 4000  # most points that a pose is fitted to
LEAST_SURE = 1.1  # median confidence of a view, below which the model is sure of nothing in it
SAME = 0.998  # correlation of two frames from which they are one picture, saved twice
LONGEST = 16  # times its short side that a photograph may be long


@dataclasses.dataclass(frozen=True)
class View:
    """One photograph and what was found of it. h, w: of the network's frame.

    picture:     uint8 [H, W, 3]     the upright photograph
    image:       uint8 [h, w, 3]     the network's frame of it
    framing:     where the frame's pixels lie in the photograph
    points_cam1: float64 [h, w, 3]   in the camera of view 1, in the reconstruction's unit
    depth:       float64 [h, w]      z-depth in its own camera, same unit
    conf:        float64 [h, w]      >= 1
    K:           float64 [3, 3]      of the frame, integer pixel centres
    """

    picture: np.ndarray
    image: np.ndarray
    framing: framing.Framing
    points_cam1: np.ndarray
    depth: np.ndarray
    conf: np.ndarray
    K: np.ndarray

    @property
    def K_photograph(self) -> np.ndarray:
        """K [3, 3] of the upright photograph, integer pixel centres."""
        scale = np.array(self.framing.original[::-1]) / self.framing.resized[::-1]
        out = self.K.copy()
        out[:2, :2] *= scale[:, None]
        out[:2, 2] = self.framing.to_original(self.K[:2, 2])
        return out

    def on_photograph(self, values: np.ndarray) -> np.ndarray:
        """A map [h, w] at the pixels of the photograph: float32 [H, W], NaN outside the frame."""
        height, width = self.framing.original
        xy = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
        x, y = np.moveaxis(self.framing.to_frame(xy), -1, 0)
        out = ndimage.map_coordinates(values, [y, x], order=1, mode="nearest")
        h, w = values.shape
        inside = (x >= -0.5) & (x <= w - 0.5) & (y >= -0.5) & (y <= h - 0.5)
        return np.where(inside, out, np.nan).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Matches:
    """Mutual nearest neighbours of the network's descriptors.

    pixels1, pixels2: [N, 2] (x, y) of the photographs
    conf:             [N] the smaller descriptor confidence
    explained:        fraction of them that the point maps explain within `NEAR`
    """

    pixels1: np.ndarray
    pixels2: np.ndarray
    conf: np.ndarray
    explained: float

    @property
    def believable(self) -> bool:
        """Whether the descriptors and the points of the network say the same."""
        return len(self.conf) >= FEWEST_MATCHES and self.explained >= AGREEING_MATCHES


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """views in the camera of view 1; unit: "m", or "unit" where nothing gave the scale.

    T_cam2_cam1: float64 [4, 4]; its translation is in the unit
    overlap:     how well the photographs can be laid over one another
    exact:       whether they were, from the model's matches on, window by window (`twoview.adjust`)
    """

    views: tuple[View, View]
    T_cam2_cam1: np.ndarray
    matches: Matches
    overlap: Overlap
    unit: str
    exact: bool = False

    @property
    def overlapping(self) -> bool:
        """Whether the pictures, or the network's matches, say that both show the same ground."""
        return self.exact or self.overlap.probability >= OVERLAPPING or self.matches.believable

    @property
    def doubt(self) -> str:
        """Why pose, scale and surface are not to be believed; "" where the model's points, matches
        and confidences, and the pictures, agree.
        """
        found, why = self.matches, []
        if not self.overlapping:
            why.append(
                "the photographs do not seem to show the same ground (probability of overlap "
                f"{self.overlap.probability:.2f}, at least {OVERLAPPING:.2f} is needed)"
            )
        if len(found.conf) < FEWEST_MATCHES:
            why.append(
                f"only {len(found.conf)} of the model's descriptors match (at least "
                f"{FEWEST_MATCHES} are needed)"
            )
        elif not (found.believable or self.exact):
            why.append(
                f"the model's points explain {found.explained:.0%} of its {len(found.conf)} "
                f"matches (at least {AGREEING_MATCHES:.0%} are needed)"
            )
        for number, view in enumerate(self.views, 1):
            if (sure := float(np.median(view.conf))) < LEAST_SURE:
                why.append(
                    f"the model is sure of nothing in view {number} (median confidence {sure:.2f}, "
                    f"where 1 is the least and {LEAST_SURE} is needed)"
                )
        return "; ".join(why)


def reconstruct(
    stereo: api.Stereo,
    path1: str | os.PathLike,
    path2: str | os.PathLike,
    *,
    size: int | None = None,
    focal: tuple[float, float] | None = None,
    baseline_m: float | None = None,
    altitude_m: float | None = None,
    turns: int | None = None,
) -> Reconstruction:
    """3D from two photographs of any size and aspect; read `doubt` before you believe it.

    Both orders of the photographs go through the network, so that each view has points in its own
    camera; these give the focal lengths. Where most matches of the descriptors agree on a
    pose, it is taken, and both maps are bent to it (`twoview.adjust`); else the pose is the one
    that sees view 2's points where they are (PnP). The frames are cut by MASt3R's rules
    (`data.framing`).

    Args:
      size: of the frames' long side, pixels; default: what the model was trained at
      focal: of both photographs, in their pixels; default: from the points
      baseline_m: distance between the cameras, metres, for the scale
      altitude_m: of camera 1 above the mean plane of its points, metres, for the scale
      turns: 4 tries the other view at its quarter turns (`api.predict`); default: as the model
          wants

    Raises:
      InputError: a photograph cannot be read or is a strip, both are one picture, both a baseline
        and an altitude, a number that is not positive, or points that fit no camera.
    """
    check_numbers(focal, baseline_m, altitude_m)
    size = size or stereo.training_side or SIZE
    pictures = [images.read_photograph(pathlib.Path(path)) for path in (path1, path2)]
    for path, picture in zip((path1, path2), pictures, strict=True):
        if max(picture.size) > LONGEST * min(picture.size):
            raise InputError(
                f"The photograph {path} is {picture.height} x {picture.width} pixels, more than "
                f"{LONGEST} times as long as wide: cut out the part that both photographs show."
            )
    # The released models were trained on frames cut to 4:3; ours on squares.
    square = not stereo.config.landscape_only
    frames, framings = zip(
        *(framing.frame(picture, size, square=square) for picture in pictures), strict=True
    )
    for path, image in zip((path1, path2), frames, strict=True):
        if min(image.shape[:2]) < 16 or image.shape[0] % 16 or image.shape[1] % 16:
            raise InputError(
                f"The photograph {path} becomes a frame of {image.shape[0]} x {image.shape[1]} at "
                f"size {size}, not of multiples of 16: give another size, such as {SIZE}."
            )
    if (alike := _correlation(*frames)) > SAME:
        raise InputError(
            f"{path1} and {path2} are the same picture, or nearly (correlation {alike:.4f}): 3D "
            "needs two photographs of one ground that were taken from two places."
        )
    turns = stereo.turns if turns is None else turns
    ahead = _predict(stereo, *frames, turns)
    back = _predict(stereo, *frames[::-1], turns)
    own = [ahead[0].pts3d, back[0].pts3d]
    K = [
        _intrinsics(points, framed, f)
        for points, framed, f in zip(own, framings, focal or (None, None), strict=True)
    ]
    T = _pose(ahead[1].pts3d, ahead[1].conf, K[1], path2)
    maps = (ahead[0].pts3d, ahead[1].pts3d)
    pixels = reciprocal_matches(ahead[0].desc, ahead[1].desc, MATCH_STEP, both_ways=True)
    fit = adjust(maps, np.concatenate(pixels, 1), K, frames)
    if fit is not None and fit.believable:
        T, maps = fit.T_cam2_cam1.copy(), fit.points
    scale = 1.0
    if baseline_m is not None:
        scale = baseline_m / max(float(np.linalg.norm(T[:3, 3])), 1e-12)
    elif altitude_m is not None:
        flat = dem.local_frame(maps[0].reshape(-1, 3), np.eye(4))
        scale = altitude_m / max(float(flat.T_local_cam1[2, 3]), 1e-12)
    T[:3, 3] *= scale
    views = []
    for i, (picture, image) in enumerate(zip(pictures, frames, strict=True)):
        points = maps[i] * scale
        depth = points[..., 2] if i == 0 else geometry.transform(T, points)[..., 2]
        views.append(
            View(np.asarray(picture), image, framings[i], points, depth, ahead[i].conf, K[i])
        )
    return Reconstruction(
        (views[0], views[1]),
        T,
        _matches(ahead, pixels, views, T),
        overlap(*(np.asarray(picture) for picture in pictures)),
        "unit" if baseline_m is None and altitude_m is None else "m",
        fit is not None and fit.exact,
    )


def check_numbers(
    focal: Sequence[float] | None, baseline_m: float | None, altitude_m: float | None
) -> None:
    """Raises InputError unless each is None or positive, and one of the last two is None.

    focal: of both photographs, pixels; baseline_m, altitude_m: metres
    """
    if baseline_m is not None and altitude_m is not None:
        raise InputError(
            f"Both a baseline ({baseline_m:g} m) and an altitude ({altitude_m:g} m) are given, and "
            "each fixes the scale: give one of them."
        )
    for name, value in (("baseline", baseline_m), ("altitude", altitude_m)):
        _require_positive(name, value)
    for value in focal or ():
        _require_positive("focal length", value)


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Of the brightness of two frames uint8 [H, W, 3]; 0 where they differ in shape."""
    if one.shape != two.shape:
        return 0.0
    a, b = (image.mean(-1).ravel() - image.mean() for image in (one, two))
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))


def _require_positive(name: str, value: float | None) -> None:
    if value is not None and not (np.isfinite(value) and value > 0):
        raise InputError(f"The {name} is {value:g}: give a positive number.")


def _intrinsics(points: np.ndarray, framed: framing.Framing, focal: float | None) -> np.ndarray:
    """K of a frame with its principal point in the middle; focal: of the photograph, if known."""
    height, width = points.shape[:2]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    if focal is None:
        own = focal_weiszfeld(points, centre)
    else:
        own = float(framed.intrinsics(np.diag([focal, focal, 1.0]))[0, 0])
    return np.array([[own, 0, centre[0]], [0, own, centre[1]], [0, 0, 1]])


def _pose(points: np.ndarray, conf: np.ndarray, K: np.ndarray, path) -> np.ndarray:
    """T_cam2_cam1 from the surer half of view 2's points [h, w, 3] in camera 1."""
    rows, columns = np.nonzero(conf >= np.median(conf))
    step = max(1, len(rows) // POSE_POINTS)
    rows, columns = rows[::step], columns[::step]
    rays = rays_of(np.stack([columns, rows], 1).astype(np.float64), K)
    T = camera_pose(points[rows, columns], rays)
    if T is None:
        raise InputError(
            f"The points of {path} fit no camera: the model makes no sense of this pair; try other "
            "photographs or another model."
        )
    return T


def _predict(
    stereo: api.Stereo, image1: np.ndarray, image2: np.ndarray, turns: int
) -> list[Prediction]:
    """Both views' predictions, float64 and without the batch axis, upright as the frames are."""
    arrays, shapes, turned = [], [], []
    for image in (image1, image2):
        height, width = image.shape[:2]
        # Of pictures stored transposed no turns are tried: they must stand upright.
        turn = stereo.config.landscape_only and height > width and turns == 1
        array = image.swapaxes(0, 1) if turn else image
        arrays.append(array[None].astype(np.float32) / 127.5 - 1)
        shapes.append(np.array([[height, width]]))
        turned.append(turn)
    out = []
    if turns > 1:
        predictions = api.predict(stereo, *arrays, turns=turns)
    else:
        predictions = api.predict(stereo, *arrays, *shapes)
    for prediction, turn in zip(predictions, turned, strict=True):
        values = {
            field: np.asarray(getattr(prediction, field)[0], np.float64)
            for field in ("pts3d", "conf", "desc", "desc_conf")
        }
        out.append(Prediction(**{k: v.swapaxes(0, 1) if turn else v for k, v in values.items()}))
    return out


def _matches(
    predictions: list[Prediction],
    pixels: tuple[np.ndarray, np.ndarray],
    views: list[View],
    T_cam2_cam1: np.ndarray,
) -> Matches:
    (one, two), (pixels1, pixels2) = predictions, pixels
    points = geometry.transform(T_cam2_cam1, views[0].points_cam1[pixels1[:, 1], pixels1[:, 0]])
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.linalg.norm(geometry.project(views[1].K, points) - pixels2, axis=1)
    near = (off < NEAR * max(views[1].image.shape[:2])) & (points[:, 2] > 0)
    return Matches(
        views[0].framing.to_original(pixels1),
        views[1].framing.to_original(pixels2),
        match_confidence(one.desc_conf, two.desc_conf, pixels1, pixels2),
        float(near.mean()) if len(near) else 0.0,
    )
