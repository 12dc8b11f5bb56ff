"""Public checkpoints of the students' encoders, by the names that their authors gave them.

One table a family, read by `torch_names.by_table`; ours are the names below "encoder/backbone/".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from lunar_distill_jax.convert import encoder_names_dinov3 as dinov3
from lunar_distill_jax.convert.torch_file import Checkpoint
from lunar_distill_jax.convert.torch_names import (
    CONV,
    LINEAR,
    NORM,
    Line,
    Rule,
    by_table,
    lines_of,
)
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.config import StereoConfig
from lunar_distill_jax.models.encoders.config import (
    AdaptedEncoderConfig,
    CustomConfig,
    MobileNetV3Config,
    ModelConfig,
    ViTConfig,
)
from lunar_distill_jax.models.encoders.dinov3_config import ConvNeXtConfig, DINOv3Config
from lunar_distill_jax.models.encoders.resample import interpolation_matrix
from lunar_distill_jax.models.fresh import array_shapes

BACKBONE = "encoder/backbone/"


class Table(NamedTuple):
    """How a family's files name things.

    title:   of the checkpoint, for people
    anchors: names that every file has, each the first of a naming scheme
    unused:  patterns of names that the encoder does not read: classifiers, masks, counters
    """

    title: str
    anchors: tuple[str, ...]
    lines: tuple[Line, ...]
    unused: tuple[str, ...]


def _batch_norms(names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for torch, ours in names.items():
        yield f"{torch}.running_mean", f"batch_stats/{ours}/mean"
        yield f"{torch}.running_var", f"batch_stats/{ours}/var"


Rules = tuple[list[Rule], dict[str, str]]  # modules, bare parameters: what `lines_of` takes


def mobilenet_rules() -> Rules:
    """timm's `mobilenetv3_large_100`."""
    convs = {"conv_stem": "stem/conv", "blocks.6.0.conv": "last/conv"}
    norms = {"bn1": "stem/norm", "blocks.6.0.bn1": "last/norm"}
    # The first block has no expansion, so its second convolution projects already.
    first = {"conv_dw": "depthwise", "conv_pw": "project"}
    others = {"conv_pw": "expand", "conv_dw": "depthwise", "conv_pwl": "project"}
    for i in range(6):
        for n, (torch, ours) in enumerate((others if i else first).items(), 1):
            convs[f"blocks.{i}.{{j}}.{torch}"] = f"stage{i}_block{{j}}/{ours}/conv"
            norms[f"blocks.{i}.{{j}}.bn{n}"] = f"stage{i}_block{{j}}/{ours}/norm"
        for part in ("reduce", "expand"):
            convs[f"blocks.{i}.{{j}}.se.conv_{part}"] = f"stage{i}_block{{j}}/gate/{part}"
    rules = [Rule(t, o, CONV) for t, o in convs.items()]
    rules += [Rule(t, o, NORM) for t, o in norms.items()]
    return rules, dict(_batch_norms(norms))


def vit_rules() -> Rules:
    """timm's and DINOv2's vision transformers; DUNE's encoder is a DINOv2."""
    block, ours = "blocks.{i}", "block{i}"
    linears = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    rules = [
        Rule("patch_embed.proj", "patch_embed", CONV),
        Rule("norm", "norm", NORM),
        *(Rule(f"{block}.norm{n}", f"{ours}/norm{n}", NORM) for n in (1, 2)),
        *(Rule(f"{block}.{n}", f"{ours}/{n.replace('.', '/')}", LINEAR) for n in linears),
    ]
    bare = {name: name for name in ("cls_token", "pos_embed", "register_tokens")}
    bare |= {f"{block}.ls{n}.gamma": f"{ours}/scale{n}" for n in (1, 2)}
    return rules, bare


_HEADS = (r"(head|fc_norm|head_norm|classifier)\..+",)
_MOBILENET, _VIT = lines_of(*mobilenet_rules()), lines_of(*vit_rules())


def table_of(model: ModelConfig) -> Table:
    """The table of an encoder's family.

    Raises:
      InputError: it is a custom one, which nobody published.
    """
    if isinstance(model, MobileNetV3Config):
        unused = (*_HEADS, r"conv_head\..+", r".+\.num_batches_tracked")
        if model.stages == 5:
            unused += (r"blocks\.[56]\..+",)
        return Table("timm's mobilenetv3_large_100", ("conv_stem.weight",), _MOBILENET, unused)
    if isinstance(model, ViTConfig):
        anchors = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
        title = "DINOv2" if model.layer_scale else "timm's ViT"
        return Table(title, anchors, _VIT, (*_HEADS, "mask_token"))
    if isinstance(model, DINOv3Config):
        anchors = ("embeddings.patch_embeddings.weight",)
        return Table("DINOv3's ViT", anchors, dinov3.VIT, dinov3.unused_names(model))
    if isinstance(model, ConvNeXtConfig):
        anchors = ("stages.0.downsample_layers.0.weight",)
        return Table("DINOv3's ConvNeXt", anchors, dinov3.CONVNEXT, dinov3.unused_names(model))
    raise InputError(f"The encoder {model.name!r} is a custom one: load its parameters yourself.")


# Hugging Face's names of DINOv2, in DINOv2's own; query, key and value are joined first.
_FROM_HUGGING_FACE = (
    (r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.(cls_token|mask_token|register_tokens)", r"\1"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.qkv\.(.+)", r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(.+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.(.+)", r"blocks.\1.\2.\3"),
    (r"layernorm\.(.+)", r"norm.\1"),
)


def encoder_shapes(config: StereoConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of all below "encoder/backbone/"; statistics are the branch "batch_stats/"."""
    found = {}
    for name, shape in array_shapes(config).items():
        own = name.removeprefix("batch_stats/")
        if own.startswith(BACKBONE):
            found[name.replace(BACKBONE, "", 1)] = shape
    return found


def what_is_lost(config: StereoConfig) -> str:
    """Why a student should not start from random numbers, or "" where nothing public is missing."""
    encoder = config.encoder
    if not isinstance(encoder, AdaptedEncoderConfig) or isinstance(encoder.model, CustomConfig):
        return ""
    count = sum(
        math.prod(shape)
        for name, shape in encoder_shapes(config).items()
        if not name.startswith("batch_stats/")
    )
    return (
        f"{config.name} starts with a random encoder: its {count:,} parameters lack what "
        f"{table_of(encoder.model).title} learned from millions of photographs, which lunar pairs "
        "do not replace. Give encoder_weights=FILE (--encoder-weights FILE), a checkpoint in its "
        "authors' layout."
    )


def with_encoder_weights(
    config: StereoConfig, params: Any, statistics: Any, checkpoint: Checkpoint
) -> tuple[Any, Any]:
    """-> (params, statistics) with the encoder's from a file; all others are those given.

    A position table of another grid is resampled to the config's, as timm does on loading.

    Raises:
      InputError: the network's encoder is not a public one, or the file does not hold it.
    """
    if not isinstance(config.encoder, AdaptedEncoderConfig):
        raise InputError(
            f"{config.name} has no public encoder that {checkpoint.path} could hold: leave out the "
            "encoder weights."
        )
    table = table_of(config.encoder.model)
    tensors, want = own_names(checkpoint, table), encoder_shapes(config)
    if "pos_embed" in tensors and "pos_embed" in want:
        tensors["pos_embed"] = _resized(tensors["pos_embed"], want["pos_embed"])
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(
        {**params, "batch_stats": statistics}, sep="/"
    )
    for name, array in by_table(tensors, table.lines, want, checkpoint.path).items():
        own = name.removeprefix("batch_stats/")
        target = name.removesuffix(own) + BACKBONE + own
        flat[target] = np.require(array, np.float32, "C")
    new = flax.traverse_util.unflatten_dict(flat, sep="/")
    return new, new.pop("batch_stats", {})


def own_names(checkpoint: Checkpoint, table: Table) -> dict[str, np.ndarray]:
    """A file's encoder tensors by the names of the family's own code, without what nobody reads.

    The encoder may lie below any prefix ("backbone.", "module.encoder."): the anchor finds it.

    Raises:
      InputError: the file holds no such encoder, or several.
    """
    tensors = checkpoint.tensors
    prefixes = {
        name.removesuffix(anchor)
        for name in tensors
        for anchor in table.anchors
        if name == anchor or name.endswith("." + anchor)
    }
    if len(prefixes) != 1:
        found = f"several ({', '.join(sorted(map(repr, prefixes)))})" if prefixes else "none"
        raise InputError(
            f"{checkpoint.path} should hold {table.title}, known by {' or '.join(table.anchors)}; "
            f"it has {found}: give a file of that encoder alone."
        )
    (prefix,) = prefixes
    out = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    if table.anchors[-1] in out and len(table.anchors) > 1:
        out = _from_hugging_face(out)
    if "reg_token" in out:  # timm's name
        out["register_tokens"] = out.pop("reg_token")
    return {n: t for n, t in out.items() if not any(re.fullmatch(p, n) for p in table.unused)}


def _from_hugging_face(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    joined = dict(tensors)
    for name in tensors:
        if match := re.fullmatch(r"(.+\.attention)\.query\.(weight|bias)", name):
            parts = [f"{match[1]}.{part}.{match[2]}" for part in ("query", "key", "value")]
            if all(part in joined for part in parts):
                joined[f"{match[1]}.qkv.{match[2]}"] = np.concatenate(
                    [joined.pop(p) for p in parts]
                )
    out = {}
    for name, tensor in joined.items():
        for pattern, target in _FROM_HUGGING_FACE:
            if match := re.fullmatch(pattern, name):
                name = match.expand(target)
                break
        out[name] = tensor
    return out


def _resized(table: np.ndarray, want: tuple[int, ...]) -> np.ndarray:
    """A position table [1, 1 + g * g, D] on the grid of another; what is none stays as it is."""
    if table.ndim != 3 or table.shape == want:
        return table
    table = np.asarray(table, np.float32)
    side = int(table.shape[1] ** 0.5)
    if side * side == table.shape[1]:  # timm's models with registers: the class token has no place
        table = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
    side, target = (int((n - 1) ** 0.5) for n in (table.shape[1], want[1]))
    if side * side + 1 != table.shape[1] or side == target:
        return table
    matrix = interpolation_matrix(side, target, "cubic", antialias=True)
    patches = table[0, 1:].reshape(side, side, -1)
    patches = np.einsum("yu,xv,uvd->yxd", matrix, matrix, patches, optimize=True)
    patches = patches.reshape(1, target * target, -1)
    return np.concatenate([table[:, :1], patches.astype(np.float32)], axis=1)
