"""What lunar photographs and terrain measure, by which a synthetic Moon is held to the real one.

The measures are those by which StereoLunar's frames were described; each is one number an image.
"""

from __future__ import annotations

import numpy as np

from lunar_distill_jax import geometry
from lunar_distill_jax.moon.terrain import MOON_RADIUS_KM
from lunar_distill_jax.types import StereoPair


def spectrum_slope(image: np.ndarray, low: float, high: float) -> float:
    """Exponent of the radial power spectrum between two frequencies, cycles per pixel.

    The image has its plane removed and a Hann window; power is averaged in rings of equal width in
    log frequency, and a line is fitted to the logarithms.
    """
    height, width = image.shape
    y, x = np.mgrid[:height, :width]
    A = np.stack([x.ravel(), y.ravel(), np.ones(image.size)], 1)
    flat = image - (A @ np.linalg.lstsq(A, image.ravel(), rcond=None)[0]).reshape(image.shape)
    power = np.abs(np.fft.rfft2(flat * np.outer(np.hanning(height), np.hanning(width)))) ** 2
    k = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    edges = np.geomspace(low, high, 13)
    x, y = [], []
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        ring = (k >= a) & (k < b)
        if ring.sum() >= 4:
            x.append(np.log(k[ring].mean()))
            y.append(np.log(power[ring].mean()))
    return float(np.polyfit(x, y, 1)[0])


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of [H, W] by FFT, borders mirrored."""
    pad = int(4 * sigma)
    padded = np.pad(image, pad, mode="reflect")
    k2 = np.fft.fftfreq(padded.shape[0])[:, None] ** 2 + np.fft.rfftfreq(padded.shape[1]) ** 2
    gain = np.exp(-2 * (np.pi * sigma) ** 2 * k2)
    out = np.fft.irfft2(np.fft.rfft2(padded) * gain, padded.shape)
    return out[pad:-pad, pad:-pad]


def image_statistics(grey: np.ndarray) -> dict[str, float]:
    """Measures of one image, uint8 [H, W].

    mean, sd, p50, p99: of the grey levels; black %: pixels of 2 and below
    gradient p50, p90, p99: length of the central-difference gradient, grey levels a pixel
    kurtosis: of horizontal differences (3 for a Gaussian)
    local contrast: median of sd over mean in windows of sigma 3 px, where the mean exceeds 10
    spectrum low, high: exponents over 0.01-0.1 and 0.15-0.45 cycles a pixel
    fine detail: sd of the image minus its blur of 1 px
    """
    image = grey.astype(np.float64)
    gy, gx = np.gradient(image)
    gradient = np.percentile(np.hypot(gx, gy), [50, 90, 99])
    step = np.diff(image, axis=1)
    step = step - step.mean()
    local = _blur(image, 3)
    spread = np.sqrt(np.maximum(_blur(image**2, 3) - local**2, 0))
    lit = local > 10
    return {
        "mean": image.mean(),
        "sd": image.std(),
        "p50": np.percentile(image, 50),
        "p99": np.percentile(image, 99),
        "black %": 100 * (image <= 2).mean(),
        "gradient p50": gradient[0],
        "gradient p90": gradient[1],
        "gradient p99": gradient[2],
        "kurtosis": (step**4).mean() / max((step**2).mean() ** 2, 1e-12),
        "local contrast": float(np.median(spread[lit] / local[lit])) if lit.any() else 0.0,
        "spectrum low": spectrum_slope(image, 0.01, 0.1),
        "spectrum high": spectrum_slope(image, 0.15, 0.45),
        "fine detail": (image - _blur(image, 1)).std(),
    }


def height_patch(pair: StereoPair, view: int, cell_m: float = 100.0) -> tuple[np.ndarray, float]:
    """The ground of one view as heights over the sphere on a square grid, metres; and its cell.

    Points are scattered into cells (their mean is taken) on the plane that touches the sphere below
    the middle of the view; the largest centred square with few holes is kept, holes are filled from
    their neighbours. HALF depth is blurred by the cell.
    """
    points = geometry.backproject(pair.depth_m[view], pair.K[view])[pair.valid[view]]
    points = geometry.transform(pair.T_world_cam[view], points)
    up = points.mean(0) / np.linalg.norm(points.mean(0))
    east = np.cross([0.0, 1.0, 0.0] if abs(up[2]) > 0.5 else [0.0, 0.0, 1.0], up)
    east /= np.linalg.norm(east)
    xy = np.stack([points @ east, points @ np.cross(up, east)], 1) / cell_m
    height = np.linalg.norm(points, axis=1) - 1e3 * MOON_RADIUS_KM
    at = np.floor(xy - np.median(xy, 0)).astype(int)
    half = int(np.abs(at).max()) + 1
    index = (at[:, 1] + half) * 2 * half + at[:, 0] + half
    count = np.bincount(index, minlength=4 * half * half).reshape(2 * half, 2 * half)
    total = np.bincount(index, height, 4 * half * half).reshape(2 * half, 2 * half)
    side = half
    while side > 8:
        window = count[half - side : half + side, half - side : half + side]
        if (window > 0).mean() > 0.95:
            break
        side -= 1
    window = (slice(half - side, half + side),) * 2
    count, total = count[window].astype(float), total[window]
    grid = np.where(count > 0, total / np.maximum(count, 1), 0)
    known = count > 0
    while not known.all():  # known ground grows by a cell each time
        sums, counts = (_neighbour_sum(a) for a in (np.where(known, grid, 0), known.astype(float)))
        new = ~known & (counts > 0)
        grid[new] = sums[new] / counts[new]
        known |= new
    return grid, cell_m


def _neighbour_sum(a: np.ndarray) -> np.ndarray:
    b = np.pad(a, 1)
    return b[:-2, 1:-1] + b[2:, 1:-1] + b[1:-1, :-2] + b[1:-1, 2:]


def rms_slope_deg(heights: np.ndarray, cell: float, lag: float) -> float:
    """Bidirectional RMS slope over a lag (unit of `cell`), degrees."""
    steps = max(1, round(lag / cell))
    rises = [heights[steps:] - heights[:-steps], heights[:, steps:] - heights[:, :-steps]]
    rms = np.sqrt(np.mean([np.mean(rise**2) for rise in rises]))
    return float(np.rad2deg(np.arctan(rms / (steps * cell))))


def terrain_statistics(heights: np.ndarray, cell_m: float) -> dict[str, float]:
    """Measures of heights [N, N] in metres.

    slope 250 m, 2.5 km: RMS slope over these lags, degrees
    spectrum: exponent of the 2-D power spectrum at wavelengths of 0.4 to 9 km
    slope p50, p90, p99: of the gradient after a blur of 80 m, degrees
    relief: p99 - p1 of the heights, metres
    """
    gy, gx = np.gradient(_blur(heights, 80 / cell_m), cell_m)
    slopes = np.rad2deg(np.arctan(np.percentile(np.hypot(gx, gy), [50, 90, 99])))
    return {
        "slope 250 m": rms_slope_deg(heights, cell_m, 250),
        "slope 2.5 km": rms_slope_deg(heights, cell_m, 2500),
        "spectrum": spectrum_slope(heights, cell_m / 9000, cell_m / 400),
        "slope p50": slopes[0],
        "slope p90": slopes[1],
        "slope p99": slopes[2],
        "relief m": float(np.ptp(np.percentile(heights, [1, 99]))),
    }


def flight_statistics(pair: StereoPair) -> dict[str, float]:
    """Measures of one camera pair over its ground.

    altitude km: of camera 1 over the median ground that it sees
    B/H: distance of the cameras over the mean of their altitudes
    off-nadir, off-nadir 2: between the optical axis and the vertical at the camera, degrees
    rotation: of camera 2 against camera 1, degrees
    roll: its part about the optical axis, degrees
    """
    altitude, tilt = [], []
    for view in (0, 1):
        T, valid = pair.T_world_cam[view], pair.valid[view]
        points = geometry.backproject(pair.depth_m[view], pair.K[view])[valid]
        ground = np.linalg.norm(geometry.transform(T, points), axis=1)
        centre = np.linalg.norm(T[:3, 3])
        altitude.append(float(centre - np.median(ground)) / 1e3)
        tilt.append(float(np.rad2deg(np.arccos(np.clip(-T[:3, 2] @ T[:3, 3] / centre, -1, 1)))))
    T = geometry.relative_pose(pair.T_world_cam)
    angle = np.arccos(np.clip((np.trace(T[:3, :3]) - 1) / 2, -1, 1))
    roll = np.arctan2(T[1, 0] - T[0, 1], T[0, 0] + T[1, 1])
    return {
        "altitude km": altitude[0],
        "B/H": float(np.linalg.norm(T[:3, 3]) / 1e3 / np.mean(altitude)),
        "off-nadir": tilt[0],
        "off-nadir 2": tilt[1],
        "rotation": float(np.rad2deg(angle)),
        "roll": float(abs(np.rad2deg(roll))),
    }
