"""The names of DINOv3's files in the layout of `transformers` and ours, as two tables.

A file of facebook/dinov3-*-pretrain-* is one: `model.safetensors`, as `save_pretrained` of
transformers 4.56 or later writes it.
"""

from __future__ import annotations

from lunar_distill_jax.convert.torch_names import CONV, LINEAR, NORM, Rule, lines_of
from lunar_distill_jax.models.encoders.dinov3_config import ConvNeXtConfig, DINOv3Config

_ATTENTION = {f"attention.{x}_proj": f"attn/{x}" for x in "qkv"} | {"attention.o_proj": "attn/proj"}
_MLP = {f"mlp.{t}_proj": f"mlp/{o}" for t, o in (("gate", "gate"), ("up", "fc1"), ("down", "fc2"))}
VIT = lines_of(
    (
        Rule("embeddings.patch_embeddings", "patch_embed", CONV),
        *(Rule(f"layer.{{i}}.norm{n}", f"block{{i}}/norm{n}", NORM) for n in (1, 2)),
        *(Rule(f"layer.{{i}}.{t}", f"block{{i}}/{o}", LINEAR) for t, o in _ATTENTION.items()),
        *(Rule(f"layer.{{i}}.{t}", f"block{{i}}/{o}", LINEAR) for t, o in _MLP.items()),
        Rule("norm", "norm", NORM),
    ),
    {
        "embeddings.cls_token": "cls_token",
        "embeddings.register_tokens": "register_tokens",
        "layer.{i}.layer_scale1.lambda1": "block{i}/scale1",
        "layer.{i}.layer_scale2.lambda1": "block{i}/scale2",
    },
)
# Pre-training hides patches behind the mask token; frequencies are computed.
VIT_UNUSED = (r"embeddings\.mask_token", r"rope_embeddings\.inv_freq")

_STAGE, _BLOCK, _OUR_BLOCK = "stages.{i}", "stages.{i}.layers.{j}", "stage{i}_block{j}"
CONVNEXT = lines_of(
    (
        # The stem's norm follows its convolution, the others' go before.
        Rule("stages.0.downsample_layers.0", "down0", CONV),
        Rule("stages.0.downsample_layers.1", "down0_norm", NORM),
        *(Rule(f"stages.{i}.downsample_layers.0", f"down{i}_norm", NORM) for i in (1, 2, 3)),
        *(Rule(f"stages.{i}.downsample_layers.1", f"down{i}", CONV) for i in (1, 2, 3)),
        Rule(f"{_BLOCK}.depthwise_conv", f"{_OUR_BLOCK}/depthwise", CONV),
        Rule(f"{_BLOCK}.layer_norm", f"{_OUR_BLOCK}/norm", NORM),
        Rule(f"{_BLOCK}.pointwise_conv1", f"{_OUR_BLOCK}/mlp/fc1", LINEAR),
        Rule(f"{_BLOCK}.pointwise_conv2", f"{_OUR_BLOCK}/mlp/fc2", LINEAR),
        Rule("layer_norm", "norm", NORM),
    ),
    {f"{_BLOCK}.gamma": f"{_OUR_BLOCK}/layer_scale"},
)


def unused_names(config: DINOv3Config | ConvNeXtConfig) -> tuple[str, ...]:
    """Patterns of the names that an encoder of these sizes does not read."""
    if isinstance(config, DINOv3Config):
        return VIT_UNUSED
    if config.stages == len(config.widths):
        return ()
    return (rf"stages\.[{config.stages}-9]\..+", r"layer_norm\..+")
