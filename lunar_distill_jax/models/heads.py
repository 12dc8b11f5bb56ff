"""What becomes of the last features: points, confidences, descriptors. Always float32."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax.models.catconv import CatConv, depth_to_space
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.dpt import DensePrediction, conv1x1
from lunar_distill_jax.models.layers import LayerNorm, gelu
from lunar_distill_jax.types import Prediction


def points_from_raw(raw):
    """raw [..., 3] -> points raw / |raw| * (exp(|raw|) - 1): depth_mode ("exp", -inf, inf)."""
    # The square root's gradient at 0 is finite only if 0 is shifted away inside it.
    d = jnp.sqrt(jnp.maximum(jnp.sum(raw * raw, -1, keepdims=True), 1e-16))
    return raw / d * jnp.expm1(d)


def raw_from_points(points):
    """Inverse of `points_from_raw`."""
    d = jnp.sqrt(jnp.maximum(jnp.sum(points * points, -1, keepdims=True), 1e-16))
    return points / d * jnp.log1p(d)


def prediction_from_raw(raw, *, two_confs: bool) -> Prediction:
    """raw: [B, H, W, 3 + 1 + K (+ 1)] = x, y, z, confidence, descriptor, its confidence."""
    points, conf, desc = raw[..., :3], 1 + jnp.exp(raw[..., 3]), raw[..., 4:]
    desc_conf = conf
    if two_confs:
        desc, desc_conf = desc[..., :-1], jnp.exp(desc[..., -1])
    return Prediction(points_from_raw(points), conf, unit_descriptors(desc), desc_conf)


def unit_descriptors(desc):
    """[..., K] of unit norm."""
    # Without a shift an all-zero descriptor is nan (0 / 0), in value and in gradient.
    return desc / jnp.sqrt(jnp.maximum(jnp.sum(desc * desc, -1, keepdims=True), 1e-24))


class LocalFeatures(nn.Module):
    """Tokens [B, N, E + D] -> descriptors of the patch's pixels [B, h p, w p, channels]."""

    ratio: float
    channels: int
    patch: int

    @nn.compact
    def __call__(self, tokens, size: tuple[int, int]):
        (h, w), p = size, self.patch
        tokens = tokens.astype(jnp.float32)
        x = nn.Dense(int(self.ratio * tokens.shape[-1]), name="fc1")(tokens)
        x = gelu(x)
        x = nn.Dense(self.channels * p * p, name="fc2")(x)
        x = x.reshape(x.shape[0], h, w, self.channels, p, p)  # torch's pixel_shuffle order
        x = x.transpose(0, 1, 4, 2, 5, 3)
        return x.reshape(x.shape[0], h * p, w * p, self.channels)


class PlaneBase(nn.Module):
    """The point map of a plane under a pinhole camera, from 12 numbers of the mean token.

    A point of a plane is M [x, y, 1] / (n . [x, y, 1]) for normalised pixel coordinates (x, y):
    exact for any camera and pose. It starts as the plane z = 1 in front of a camera of 45 degrees.
    """

    @nn.compact
    def __call__(self, tokens, height: int, width: int):
        x = LayerNorm(name="norm")(tokens)
        x = jnp.mean(nn.gelu(nn.Dense(128, name="fc1")(x)), axis=1)
        x = nn.Dense(12, kernel_init=nn.initializers.normal(1e-3), name="fc2")(x)  # [B, 12]
        half = np.tan(np.pi / 8)
        start = np.array([half, 0, 0, 0, half, 0, 0, 0, 1, 0, 0, 1], np.float32)
        M, n = jnp.split(x + start[None], [9], axis=-1)
        v, u = np.mgrid[:height, :width] + 0.5
        scale = max(height, width) / 2
        rays = np.stack([(u - width / 2) / scale, (v - height / 2) / scale, np.ones_like(u)], -1)
        rays = rays.astype(np.float32)
        inverse_depth = jnp.maximum(jnp.einsum("hwj,bj->bhw", rays, n), 0.05)
        points = jnp.einsum("hwj,bij->bhwi", rays, M.reshape(-1, 3, 3)) / inverse_depth[..., None]
        return raw_from_points(points)


class Head(nn.Module):
    """One view's head: token maps -> raw channels [B, H, W, 3 + 1 + K (+ 1)].

    layers: the decoder's depth + 1 token maps; size: (h, w) patches
    """

    config: StereoConfig

    @nn.compact
    def __call__(self, layers, size: tuple[int, int], stem=()):
        c = self.config
        hooked, fine = [layers[i] for i in c.hooks], None
        channels = c.head.desc + c.head.two_confs
        local = LocalFeatures(c.head.desc_ratio, channels, c.encoder.patch, name="local_features")

        if c.head.kind == "dpt":
            raw = DensePrediction(c.head, 4, name="dpt")(hooked, size, stem)
        else:
            dense = CatConv(c.head, 4, c.encoder.patch, name="catconv")
            raw, fine = dense(hooked, size, stem)
        if c.head.plane:
            base = PlaneBase(name="plane")(layers[-1].astype(jnp.float32), *raw.shape[1:3])
            raw = jnp.concatenate([raw[..., :3] + base, raw[..., 3:]], -1)
        features = local(jnp.concatenate([layers[0], layers[-1]], -1), size)
        if c.head.desc_fine and fine is not None:
            more = c.encoder.patch // 4
            finer = conv1x1(more * more * channels, name="desc_fine")(fine)
            features = features + depth_to_space(finer, more)
        return jnp.concatenate([raw, features], -1)
