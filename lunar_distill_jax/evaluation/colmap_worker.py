"""Run by `colmap.py` in a process of its own: python colmap_worker.py FOLDER

pycolmap's wheel brings libraries that crash Pillow's PNG writer in the same process (4.2.1: heap
corruption), so this file imports nothing of ours. FOLDER holds images/0.png, images/1.png and
cameras.npy [2, 4] (fx, fy, cx, cy for pixel corners). Writes result.npz: matches [N, 4] in pixel
corners, inliers bool [N], T_cam2_cam1 [4, 4] (NaN if COLMAP found no pose).
"""

import pathlib
import sys

import numpy as np
import pycolmap

FEATURES = 8192
THREADS = 2
THRESHOLD_PX = 1.0  # of an inlier, as for the SIFT baseline; COLMAP's own default is 4


def detect_and_match(database: pathlib.Path, folder: pathlib.Path) -> None:
    """SIFT and exhaustive matching, COLMAP's defaults but for the number of threads."""
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.sift.max_num_features = FEATURES
    extraction.num_threads = THREADS
    pycolmap.extract_features(
        database,
        folder / "images",
        camera_mode=pycolmap.CameraMode.PER_IMAGE,
        extraction_options=extraction,
        device=pycolmap.Device.cpu,
    )
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = THREADS
    pycolmap.match_exhaustive(database, matching_options=matching, device=pycolmap.Device.cpu)


def main(folder: pathlib.Path) -> None:
    database = folder / "database.db"
    detect_and_match(database, folder)
    with pycolmap.Database.open(database) as db:
        seen = [db.read_image_with_name(f"{view}.png") for view in range(2)]
        ids = [image.image_id for image in seen]
        sizes = [db.read_camera(image.camera_id) for image in seen]
        points = [db.read_keypoints(i)[:, :2].astype(np.float64) for i in ids]
        pairs = np.asarray(db.read_matches(*ids)).reshape(-1, 2)
    cameras = [
        pycolmap.Camera(model="PINHOLE", width=c.width, height=c.height, params=k.tolist())
        for c, k in zip(sizes, np.load(folder / "cameras.npy"), strict=True)
    ]
    options = pycolmap.TwoViewGeometryOptions()
    options.compute_relative_pose = True
    options.ransac.max_error, options.ransac.random_seed = THRESHOLD_PX, 0
    T, inliers = np.full((4, 4), np.nan), np.zeros(len(pairs), bool)
    if len(pairs):
        found = pycolmap.estimate_calibrated_two_view_geometry(
            cameras[0], points[0], cameras[1], points[1], pairs, options
        )
        kept = {tuple(row) for row in np.asarray(found.inlier_matches).tolist()}
        inliers = np.array([tuple(row) in kept for row in pairs.tolist()])
        if found.cam2_from_cam1 is not None and inliers.any():
            T = np.eye(4)
            T[:3] = found.cam2_from_cam1.matrix()
    matches = np.concatenate([points[0][pairs[:, 0]], points[1][pairs[:, 1]]], 1)
    np.savez(folder / "result.npz", matches=matches, T_cam2_cam1=T, inliers=inliers)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
