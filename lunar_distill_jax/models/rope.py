"""2-D rotary positions (RoPE100 of CroCo v2 / MASt3R).

The first half of a head turns with y, the second with x.
"""

import jax.numpy as jnp
import numpy as np


def grid_positions(h: int, w: int) -> np.ndarray:
    """Row-major (row, column) of each patch: int32 [h * w, 2], a constant of the traced program."""
    return np.indices((h, w), np.int32).reshape(2, -1).T


def rotary_table(positions, head_size: int, base: float):
    """Cosines and sines for `rotate`.

    positions: [N, 2] or [B, N, 2] (row, column) in a grid of N patches
    -> cos, sin, each [N, d] or [B, N, d] float32, laid out [y, y, x, x] in quarters of the head
    """
    quarter = head_size // 4
    frequency = (base ** (-np.arange(quarter) / quarter)).astype(np.float32)
    # Every coordinate that N patches can have, so that the angles are constants of the program, and
    # numpy's cosines the only ones: an error of the angle grows with every block.
    angle = np.arange(positions.shape[-2], dtype=np.float32)[:, None] * frequency  # [N, d/4]
    angle = np.concatenate([angle, angle], -1)

    def look_up(table):
        if not isinstance(positions, np.ndarray):
            table = jnp.asarray(table)
        return table[positions].reshape(*positions.shape[:-1], head_size)

    return look_up(np.cos(angle)), look_up(np.sin(angle))


def rotate(x, cos, sin):
    """Rotates the pairs (k, k + d/4) within each half of the heads of x: [..., N, d].

    Within a half of size D = d/2: out_k = a cos - b sin, out_(k + D/2) = b cos + a sin.
    """
    y1, y2, x1, x2 = jnp.split(x, 4, axis=-1)
    turned = jnp.concatenate([-y2, y1, -x2, x1], axis=-1)
    return x * cos.astype(x.dtype) + turned * sin.astype(x.dtype)
