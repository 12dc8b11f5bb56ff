"""Renders a few pairs of every preset on the last device there is: `python render_worker.py OUT`.

tests/test_moon_devices.py starts it under other XLA flags and compares what comes out.
"""

import sys

import jax
import numpy as np

from lunar_distill_jax import moon

SIZE, GRID = 64, 128
TRAJECTORIES = ("nadir", "oblique", "dynamic")
FIELDS = ("image", "depth_m", "valid", "T_world_cam")


def render(preset: str, seeds: range) -> dict[str, np.ndarray]:
    """{field: [pairs, ...]} of all trajectories under the sun that each seed draws."""
    kind = moon.preset(preset)
    pairs = [moon.make_pair(s, t, SIZE, grid=GRID, moon=kind) for s in seeds for t in TRAJECTORIES]
    return {field: np.stack([getattr(pair, field) for pair in pairs]) for field in FIELDS}


if __name__ == "__main__":
    out, presets, seeds = sys.argv[1], sys.argv[2].split(","), range(int(sys.argv[3]))
    with jax.default_device(jax.devices()[-1]):
        arrays = {
            f"{preset}/{field}": array
            for preset in presets
            for field, array in render(preset, seeds).items()
        }
    np.savez(out, devices=len(jax.devices()), **arrays)
