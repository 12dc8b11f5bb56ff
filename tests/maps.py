"""Random point maps with holes, and descriptors, for the tests of the losses."""

import jax.numpy as jnp
import numpy as np

B, H, W = 2, 17, 20


def scene(seed=0):
    """points, targets, confidences and masks of both views: six pairs of arrays, jax float32."""
    rng = np.random.default_rng(seed)
    p = [rng.normal(size=(B, H, W, 3)) + [0, 0, 4] for _ in range(2)]
    g = [3 * (x + 0.1 * rng.normal(size=x.shape)) for x in p]
    conf = [1 + rng.exponential(size=(B, H, W)) for _ in range(2)]
    valid = [rng.uniform(size=(B, H, W)) < 0.7 for _ in range(2)]
    floats = [[jnp.asarray(x, jnp.float32) for x in pair] for pair in (p, g, conf)]
    return (*floats, [jnp.asarray(x) for x in valid])


def normalised(p, valid):
    """The clouds over their joint mean distance, sample by sample, in numpy."""
    p, valid = [np.asarray(x, np.float64) for x in p], [np.asarray(x) for x in valid]
    out = [np.zeros_like(x) for x in p]
    for b in range(len(p[0])):
        inside = np.concatenate([x[b][v[b]] for x, v in zip(p, valid, strict=True)])
        scale = np.linalg.norm(inside, axis=-1).mean()
        for o, x, v in zip(out, p, valid, strict=True):
            o[b][v[b]] = x[b][v[b]] / scale
    return out


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pixel_list(rng, count):
    return np.stack([rng.integers(0, W, (B, count)), rng.integers(0, H, (B, count))], -1)
