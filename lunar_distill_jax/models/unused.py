"""Tensors of files in the reference's layout that no computation reads.

The paper counts them, a file may hold them, and nothing trains them. They exist in memory only with
`keep_unused`, under "unused/".
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from lunar_distill_jax.models.config import EncoderConfig, HeadConfig, StereoConfig
from lunar_distill_jax.models.encoders.config import MobileNetV3Config, ViTConfig
from lunar_distill_jax.models.encoders.mobilenet import MobileNetV3

Shapes = dict[str, tuple[int, ...]]
_FREE_HEAD_FIELDS = ("width", "layers", "last", "desc", "two_confs", "hooks")
_TAIL = ("stage5_block", "last/")  # of MobileNetV3, behind stride 16


def beyond_reference(config: StereoConfig) -> dict[str, Any]:
    """{field: value} of what PyTorch's MASt3R, or the paper's student code, has no counterpart of.

    The dense head's sizes are not among them: files differ in them, and hold them as shapes.
    """
    reference, other = StereoConfig(), {}
    for field in dataclasses.fields(HeadConfig):
        if field.name not in _FREE_HEAD_FIELDS:
            value = getattr(config.head, field.name)
            if value != getattr(reference.head, field.name):
                other[f"head.{field.name}"] = value
    plain = dataclasses.replace(config, head=dataclasses.replace(config.head, hooks=()))
    if config.hooks != plain.hooks:
        other["head.hooks"] = config.hooks
    if not config.decoder.rotary_cross:
        other["decoder.rotary_cross"] = False
    encoder = config.encoder
    if isinstance(encoder, EncoderConfig):
        values = {f"encoder.{key}": getattr(encoder, key) for key in ("stem", "grid")}
        other |= {name: value for name, value in values.items() if value}
        if encoder.patch != reference.encoder.patch:
            other["encoder.patch"] = encoder.patch
    elif not isinstance(encoder.model, MobileNetV3Config | ViTConfig):
        other["encoder.model.family"] = encoder.model.family
    elif encoder.width != config.decoder.width:
        other["encoder.width"] = encoder.width
    return other


@functools.lru_cache(maxsize=64)
def _tail_shapes() -> dict[str, Shapes]:
    """{collection: shapes} of what MobileNetV3 has behind stride 16, by its own names."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    net = MobileNetV3(MobileNetV3Config(stages=7))
    tree: Any = jax.eval_shape(net.init, jax.random.key(0), image)
    return {
        collection: {
            name: leaf.shape
            for name, leaf in dict[str, Any](
                flax.traverse_util.flatten_dict(values, sep="/")
            ).items()
            if name.startswith(_TAIL)
        }
        for collection, values in tree.items()
    }


def unused_shapes(config: StereoConfig) -> dict[str, Shapes]:
    """{collection: {name: shape}}; empty where no file in the reference's layout can exist."""
    if beyond_reference(config):
        return {"params": {}, "batch_stats": {}}
    d, w = config.decoder.width, config.head.width
    params: Shapes = {"mask_token": (1, 1, d)}
    stats: Shapes = {}
    for name in ("head1_conv1", "head1_conv2", "head2_conv1", "head2_conv2"):
        # The coarsest fusion has one input, so its first unit never runs.
        params |= {f"{name}/kernel": (3, 3, w, w), f"{name}/bias": (w,)}
    if not isinstance(config.encoder, EncoderConfig):
        # A student of the paper is a MASt3R of encoder depth 0, with an encoder added to it.
        params |= {"patch_embed/kernel": (16, 16, 3, d), "patch_embed/bias": (d,)}
        params |= {"norm/scale": (d,), "norm/bias": (d,)}
        model = config.encoder.model
        if isinstance(model, MobileNetV3Config) and model.stages == 5:
            tail = _tail_shapes()
            params |= {f"backbone/{k}": shape for k, shape in tail["params"].items()}
            stats |= {f"backbone/{k}": shape for k, shape in tail["batch_stats"].items()}
        if isinstance(model, ViTConfig) and model.offset and not model.registers:
            params |= {"backbone/mask_token": (1, model.width)}  # DINOv2's, not timm's copy of it
    return {"params": params, "batch_stats": stats}


class Held(nn.Module):
    """A tree of parameters (and statistics) of the given shapes that nothing reads."""

    params: Mapping[str, Any]
    stats: Mapping[str, Any]

    @nn.compact
    def __call__(self):
        for key in {**self.params, **self.stats}:
            shape, statistic = self.params.get(key), self.stats.get(key)
            if isinstance(shape, tuple):
                self.param(key, nn.initializers.zeros, shape)
            elif isinstance(statistic, tuple):
                self.variable("batch_stats", key, jnp.zeros, statistic)
            else:
                Held(shape or {}, statistic or {}, name=key)()


def hold_unused(config: StereoConfig) -> None:
    """Within a compact module: gives it what `unused_shapes` lists, under "unused"."""
    shapes = unused_shapes(config)
    trees = {k: flax.traverse_util.unflatten_dict(v, sep="/") for k, v in shapes.items()}
    Held(trees["params"], trees["batch_stats"], name="unused")()
