"""Tiny frames in StereoLunar's format, for tests that damage them."""

import numpy as np
import OpenEXR
from PIL import Image

H, W = 24, 32
K_FILE = np.array([[40.0, 0, W / 2], [0, 40.0, H / 2], [0, 0, 1]], np.float32)


def write_frame(folder, stem, *, seed=0, depth=None, K=K_FILE, pose=None, size=(H, W)):
    """Writes one tiny frame; returns its depth [H, W]."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    grey = rng.integers(20, 255, size, dtype=np.uint8)
    Image.fromarray(np.repeat(grey[..., None], 3, -1)).save(folder / f"{stem}.jpg", quality=95)
    depth = rng.uniform(2e4, 4e4, size) if depth is None else depth
    write_depth(folder / f"{stem}.exr", depth)
    pose = np.eye(4) if pose is None else pose
    np.savez(folder / f"{stem}.npz", intrinsics=K, cam2world=pose.astype(np.float32))
    return depth


def write_depth(path, depth, channel="Y"):
    header = {"compression": OpenEXR.PIZ_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {channel: depth.astype(np.float16)}) as file:
        file.write(str(path))
