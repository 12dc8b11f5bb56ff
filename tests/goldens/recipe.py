"""Seeded weights and images of the goldens, by formula.

Legacy RandomState.random_sample is bit-stable across numpy versions and platforms, so tensors
regenerate exactly.
"""

import re
import zlib

import numpy as np


def canon(key):
    """alias keys `scratch.layer_rn.<i>.` are the same tensor as `scratch.layer<i+1>_rn.`"""
    return re.sub(
        r"scratch\.layer_rn\.(\d)\.", lambda m: f"scratch.layer{int(m.group(1)) + 1}_rn.", key
    )


def recipe_array(key, shape, seed, fp16_round=False):
    """weight for state-dict key `key` (torch layout) of shape `shape`"""
    key = canon(key)
    shape = tuple(int(s) for s in shape)
    n = int(np.prod(shape)) if shape else 1
    rs = np.random.RandomState((zlib.crc32(key.encode()) + 1000003 * seed) % (2**32))
    u = (rs.random_sample(n) * 2.0 - 1.0).astype(np.float32)
    f = np.float32
    last = key.split(".")[-1]
    mod = key.split(".")[-2] if "." in key else ""
    if last == "num_batches_tracked":
        return np.zeros((), np.int64)
    if last == "running_var":
        v = f(0.65) + f(0.3) * u
    elif last == "running_mean":
        v = f(0.1) * u
    elif len(shape) == 1 and last == "weight":  # norm gains
        v = f(1.0) + f(0.4) * u
    elif len(shape) == 1 and last == "gamma":  # LayerScale
        v = f(0.6) + f(0.4) * u
    elif len(shape) == 1:  # biases
        v = f(0.05) * u
    elif "token" in last or "pos_embed" in last:
        v = f(0.5) * u
    else:
        upsamples = "act_postprocess.0." in key or "act_postprocess.1." in key
        convT = len(shape) == 4 and mod == "1" and upsamples
        fan = shape[0] if convT else int(np.prod(shape[1:]))
        v = f(np.sqrt(3.0 / fan)) * u
        if mod in ("qkv", "projq", "projk"):
            v = f(1.7) * v
        if key.endswith("dpt.head.4.weight"):
            v = f(0.25) * v
    v = v.reshape(shape).astype(np.float32)
    return v.astype(np.float16).astype(np.float32) if fp16_round else v


def img(seed, B, H, W):
    """(B,3,H,W) float32 in [-1,1]: half uniform noise, half a sinusoid per channel (to 1 ulp)"""
    rs = np.random.RandomState(seed)
    a = rs.random_sample((B, 3, H, W)) * 2 - 1
    yy, xx = np.mgrid[0:H, 0:W]
    for b in range(B):
        for c in range(3):
            fx, fy, ph = rs.random_sample(3) * np.array([0.3, 0.3, 6.28])
            a[b, c] = 0.5 * a[b, c] + 0.5 * np.sin(fx * xx + fy * yy + ph)
    return a.astype(np.float32)
