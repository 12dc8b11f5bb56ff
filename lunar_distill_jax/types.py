"""The nouns of the package, and its glossary of shapes; imports nothing of ours.

Shapes: B batch, H W pixels, h w patches, N = h * w tokens, D width, C channels, K descriptor size.
Frames: `T_a_b` maps coordinates in frame b to frame a (4x4); `points_cam1` are in the camera of
view 1. Cameras are OpenCV's: x right, y down, z forward. Integer pixel coordinates are pixel
CENTRES, so the principal point of an untouched W-pixel wide frame is (W - 1) / 2. Depth is z-depth,
in metres.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import numpy as np


@dataclasses.dataclass(frozen=True)
class StereoPair:
    """Two photographs of one surface with their ground truth (numpy, on the host).

    name:        unique within its data set, e.g. "Nadir_baseline_sample/paire1/im_00594-im_00595"
    geometry:    name of the camera pair; pairs that differ only in lighting share it
    trajectory:  "nadir" | "oblique" | "dynamic" | "unknown"
    image:       uint8   [2, H, W, 3]
    depth_m:     float32 [2, H, W]     z-depth, metres; 0 where not `valid`
    valid:       bool    [2, H, W]
    K:           float64 [2, 3, 3]     pixels, integer pixel centres
    T_world_cam: float64 [2, 4, 4]     camera to world, metres
    """

    name: str
    geometry: str
    trajectory: str
    image: np.ndarray
    depth_m: np.ndarray
    valid: np.ndarray
    K: np.ndarray
    T_world_cam: np.ndarray


@flax.struct.dataclass
class Prediction:
    """What the network says of one view.

    pts3d:     [B, H, W, 3]  in the camera frame of view 1, for both views; the network's own unit
    conf:      [B, H, W]     >= 1
    desc:      [B, H, W, K]  local features of unit norm
    desc_conf: [B, H, W]     >= 0
    features:  {} or {"encoder": [B, N, D], "decoder": tuple of [B, N, D], one a
               layer, "raw": [B, H, W, C]}
    """

    pts3d: Any
    conf: Any
    desc: Any
    desc_conf: Any
    features: Any = flax.struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PointMaps:
    """A prediction of one `StereoPair` by anything (a network, a baseline), on the host.

    points_cam1: float32 [2, H, W, 3]  both views in the camera of view 1, up to scale; all NaN
                 where the predictor has no answer
    conf:        float32 [2, H, W]     higher is surer; ones where the predictor has no opinion
    matches:     float [N, 4]          pixels (x1, y1, x2, y2) of one ground; None if not looked for
    T_cam2_cam1: float64 [4, 4]        relative pose from the matches, its translation of any
                 length; NaN if it was sought in vain, None if not sought
    """

    points_cam1: np.ndarray
    conf: np.ndarray
    matches: np.ndarray | None = None
    T_cam2_cam1: np.ndarray | None = None
