"""Teaching a network where its tokens' ground lies in the other view: heads of training alone.

A token's target is the place, among the other view's tokens, of the ground at its own centre. It is
spread over the four nearest tokens by bilinear weights, so it also says where between them.

flow: pair (view 1, view 2) of `Flow`, from the true depths and poses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lunar_distill_jax.losses.reduce import Mean

WIDTH = 64  # of the vectors that tokens are compared by
TEMPERATURE = 0.07
SAME_DEPTH = 0.05  # of the depth: ground that differs by more hides what is behind it


@flax.struct.dataclass
class Flow:
    """Where the other view shows the ground of each pixel.

    pixels: float32 [B, H, W, 2] (x, y) in the other view
    seen:   bool [B, H, W], whether it does
    """

    pixels: Any
    seen: Any


def true_flow(batch: Mapping[str, Any]) -> tuple[Flow, Flow]:
    """From "points1", "points2" (camera 1), "valid1", "valid2", "T_cam2_cam1", "K1", "K2"."""
    T = batch["T_cam2_cam1"]

    def in_camera2(points):
        moved = jnp.einsum("bij,bhwj->bhwi", T[:, :3, :3], points, precision="highest")
        return moved + T[:, None, None, :3, 3]

    one = _flow(
        in_camera2(batch["points1"]),
        batch["valid1"],
        batch["K2"],
        in_camera2(batch["points2"])[..., 2],
        batch["valid2"],
    )
    two = _flow(
        batch["points2"], batch["valid2"], batch["K1"], batch["points1"][..., 2], batch["valid1"]
    )
    return one, two


def _flow(points, valid, K, depth, depth_valid) -> Flow:
    """points: [B, H, W, 3] in the camera that sees `depth` [B, h, w] with K [B, 3, 3]."""
    _, height, width = depth.shape
    seen = jnp.einsum("bij,bhwj->bhwi", K, points, precision="highest")
    ahead = points[..., 2] > 0
    pixels = seen[..., :2] / jnp.where(ahead, seen[..., 2], 1.0)[..., None]
    nearest = jnp.rint(pixels).astype(jnp.int32)
    size = jnp.array([width, height])[None, None, None]
    inside = ((pixels >= 0) & (pixels <= size - 1)).all(-1)
    x, y = jnp.moveaxis(jnp.clip(nearest, 0, size - 1), -1, 0)
    index = (y * width + x).reshape(len(depth), -1)

    def there(values):
        found = jnp.take_along_axis(values.reshape(len(values), -1), index, axis=1)
        return found.reshape(valid.shape)

    same = jnp.abs(there(depth) - points[..., 2]) < SAME_DEPTH * points[..., 2]
    return Flow(pixels, valid & ahead & inside & same & there(depth_valid))


def token_places(flow: Flow, grid: tuple[int, int]) -> tuple[Any, Any]:
    """-> where the centres of h x w tokens lie, in tokens of the other view (of the same size):
    (x, y) [B, N, 2], and whether they are seen [B, N]. A centre is between its four middle pixels.
    """
    b, height, width, _ = flow.pixels.shape
    p = height // grid[0]
    middle = slice(p // 2 - 1, p // 2 + 1)

    def centres(x):
        x = x[:, : grid[0] * p, : grid[1] * p]
        x = x.reshape(b, grid[0], p, grid[1], p, *x.shape[3:])
        return x[:, :, middle, :, middle].swapaxes(2, 3).reshape(b, grid[0] * grid[1], 4, -1)

    places = (centres(flow.pixels).mean(2) + 0.5) / p - 0.5
    return places, centres(flow.seen).all((2, 3))


def bilinear_weights(places, grid: tuple[int, int]):
    """places [B, N, 2] (x, y) -> [B, N, h w], rows that sum to 1; what is beyond the rim counts as
    lying on it."""
    x, y = (
        jnp.clip(places[..., axis], 0, n - 1)[..., None] for axis, n in ((0, grid[1]), (1, grid[0]))
    )
    columns, rows = (np.arange(n, dtype=np.float32)[None, None] for n in (grid[1], grid[0]))
    across = jnp.maximum(1 - jnp.abs(x - columns), 0)
    down = jnp.maximum(1 - jnp.abs(y - rows), 0)
    weights = down[..., :, None] * across[..., None, :]
    return weights.reshape(*places.shape[:2], -1)


def cross_entropy(logits, weights, seen) -> Mean:
    """-sum weights log softmax(logits), both [B, N, M], over the rows that are seen [B, N]."""
    loss = jax.nn.logsumexp(logits, -1) - jnp.sum(weights * logits, -1)
    return Mean.over(loss, seen)


def parameters(encoder_width: int, decoder_width: int, on: Sequence[str], seed: int):
    """{name: array} of the heads that the terms in `on` need; both views share them."""
    flat = {}
    rng = np.random.default_rng([seed, 23])
    for name, width in (("encoder", encoder_width), ("decoder", decoder_width)):
        kernel = rng.standard_normal((width, WIDTH)).astype(np.float32) * np.float32(width**-0.5)
        if "tokens" in on:
            flat[f"correspondence/{name}/kernel"] = kernel
    if "covisibility" in on:
        flat["correspondence/covisible/kernel"] = np.zeros((decoder_width, 1), np.float32)
        flat["correspondence/covisible/bias"] = np.zeros(1, np.float32)
    return flat


def terms(predictions, heads: Mapping[str, Any], flow, on: Sequence[str]) -> dict[str, Mean]:
    """Those of "tokens", "attention" and "covisibility" that are in `on`.

    tokens:       softmax over the similarities of both views' tokens, rows and columns, after the
                  encoder and after the decoder
    attention:    the first head of every cross-attention looks at the true place
    covisibility: cross-entropy of whether the other view sees a token's centre
    """
    height, width = predictions[0].pts3d.shape[1:3]
    count = predictions[0].features["encoder"].shape[1]
    p = round((height * width / count) ** 0.5)
    grid = (height // p, width // p)
    places, seen = zip(*(token_places(f, grid) for f in flow), strict=True)
    out: dict[str, Mean] = {}
    if {"tokens", "attention"} & set(on):
        weights = [bilinear_weights(place, grid) for place in places]
    if "tokens" in on:
        means = []
        for name in ("encoder", "decoder"):
            kernel = heads[name]["kernel"]
            a, b = (_unit(_last(v.features[name]) @ kernel) for v in predictions)
            logits = jnp.einsum("bnk,bmk->bnm", a, b) / TEMPERATURE
            means.append(cross_entropy(logits, weights[0], seen[0]))
            means.append(cross_entropy(logits.swapaxes(1, 2), weights[1], seen[1]))
        out["tokens"] = 0.25 * sum(means[1:], means[0])
    if "attention" in on:
        means = []
        for view, prediction in enumerate(predictions):
            for queries, keys in prediction.features["cross"]:
                q, k = (x[:, 0].astype(jnp.float32) for x in (queries, keys))
                logits = jnp.einsum("bnd,bmd->bnm", q, k) * q.shape[-1] ** -0.5
                means.append(cross_entropy(logits, weights[view], seen[view]))
        out["attention"] = 1 / len(means) * sum(means[1:], means[0])
    if "covisibility" in on:
        means = []
        for prediction, truth in zip(predictions, seen, strict=True):
            head = heads["covisible"]
            logit = (_last(prediction.features["decoder"]) @ head["kernel"])[..., 0]
            logit = logit + head["bias"][0]
            means.append(Mean.of(jax.nn.softplus(logit) - truth * logit))
        out["covisibility"] = 0.5 * (means[0] + means[1])
    return out


def _last(tokens):
    return (tokens[-1] if isinstance(tokens, tuple) else tokens).astype(jnp.float32)


def _unit(x):
    return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12)
