"""A MASt3R checkpoint becomes one of our networks, and the other way round."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from lunar_distill_jax.convert.model_string import architecture_arguments
from lunar_distill_jax.convert.torch_file import Checkpoint
from lunar_distill_jax.convert.torch_names import from_torch, own_names, to_torch
from lunar_distill_jax.convert.torch_zip import shown
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.config import (
    DecoderConfig,
    EncoderConfig,
    HeadConfig,
    StereoConfig,
)
from lunar_distill_jax.models.fresh import parameter_shapes
from lunar_distill_jax.models.unused import beyond_reference

# One text, so that whoever copies the licence of a teacher copies its attribution too.
LICENCE = (
    "CC BY-NC-SA 4.0: non-commercial, share alike; derived from MASt3R (Leroy, Cabon, Revaud 2024, "
    "https://github.com/naver/mast3r), Copyright (C) 2024-present Naver Corporation"
)
_FIXED: dict[str, Any] = {  # what the network computes; the released files say the same
    "head_type": "catmlp+dpt",
    "depth_mode": ("exp", -math.inf, math.inf),
    "conf_mode": ("exp", 1, math.inf),
    "norm_im2_in_dec": True,
    "desc_mode": "norm",
    "patch_size": 16,
}
_DESC_CONF = ("exp", 0, math.inf)
_WIRINGS = ("PatchEmbedDust3R", "ManyAR_PatchEmbed")
_SIZES = "downstream_head1.dpt."  # both heads have the same sizes


def network_from_checkpoint(checkpoint: Checkpoint) -> tuple[StereoConfig, Any, dict[str, str]]:
    """-> (config, params, meta); params are views of the checkpoint's memory, in its number types.

    Raises:
      InputError: an option that this network does not have, or tensors that do not fit the options.
    """
    named = own_names(checkpoint.tensors)
    try:
        arguments = architecture_arguments(checkpoint)
        config = config_from_arguments(arguments, named.tensors)
        config = _as_released(config, checkpoint)
        config.check()
    except InputError as e:
        prefix = f"{checkpoint.path}: "
        raise InputError(prefix + str(e).removeprefix(prefix)) from e
    flat = from_torch(named, parameter_shapes(config), checkpoint.path)
    meta = {
        "source": checkpoint.path.name,
        "licence": LICENCE,
        "training_size": "x".join(map(str, arguments["img_size"])),
        "mapping": named.summary(),
    }
    return config, flax.traverse_util.unflatten_dict(flat, sep="/"), meta


def _as_released(config: StereoConfig, checkpoint: Checkpoint) -> StereoConfig:
    """The reference loads every `.pth` for upright images, whatever wiring it was trained with."""
    values = config.to_dict()
    if checkpoint.model_string is not None:
        values["landscape_only"] = False
    return StereoConfig.from_dict(values)


def config_from_arguments(
    arguments: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> StereoConfig:
    """The architecture that the arguments declare; the dense head's sizes come from its tensors.

    Upright wiring is meant unless both the patch embedding and the heads are for landscape arrays.

    Raises:
      InputError: options that this network does not have; it names all of them.
    """
    desc = re.fullmatch(r"pts3d\+desc(\d{1,5})", arguments["output_mode"])
    rope = re.fullmatch(r"RoPE(\d{1,6})", arguments["pos_embed"])
    expected: dict[str, Any] = {**_FIXED, "patch_embed_cls": arguments["patch_embed_cls"]}
    if arguments["patch_embed_cls"] not in _WIRINGS:
        expected["patch_embed_cls"] = " or ".join(_WIRINGS)
    if arguments["two_confs"]:
        expected["desc_conf_mode"] = _DESC_CONF
    expected["output_mode"] = arguments["output_mode"] if desc else "pts3d+desc<size>"
    expected["pos_embed"] = arguments["pos_embed"] if rope else "RoPE<base>"
    problems = [
        f"{name}={shown(repr(arguments[name]), 60)} (only {value!r} is supported)"
        for name, value in expected.items()
        if arguments[name] != value
    ]
    for part in ("enc", "dec"):
        found = len({m[1] for n in tensors if (m := re.match(rf"{part}_blocks\.(\d+)\.", n))})
        if found != arguments[f"{part}_depth"]:
            problems.append(f"{part}_depth={arguments[f'{part}_depth']} but {found} blocks")
    if problems or desc is None or rope is None:
        raise InputError(f"The network has {'; '.join(problems)}.")
    depth, ratio = arguments["dec_depth"], float(arguments["mlp_ratio"])
    encoder = (arguments["enc_embed_dim"], arguments["enc_depth"], arguments["enc_num_heads"])
    decoder = (arguments["dec_embed_dim"], depth, arguments["dec_num_heads"])
    return StereoConfig(
        name="mast3r",
        encoder=EncoderConfig(*encoder, mlp_ratio=ratio),
        decoder=DecoderConfig(*decoder, mlp_ratio=ratio),
        head=_head_sizes(tensors, int(desc[1]), arguments["two_confs"]),
        rope_base=float(rope[1]),
        landscape_only=arguments["landscape_only"]
        and arguments["patch_embed_cls"] == "ManyAR_PatchEmbed",
        keep_unused="mask_token" in tensors
        or any(".refinenet4.resConfUnit1." in name for name in tensors),
    )


def _head_sizes(tensors: Mapping[str, np.ndarray], desc: int, two_confs: bool) -> HeadConfig:
    names = [f"{_SIZES}scratch.layer{i}_rn.weight" for i in (1, 2, 3, 4)]
    names.append(f"{_SIZES}head.2.weight")
    wrong = [n for n in names if n not in tensors or tensors[n].ndim != 4]
    if wrong:
        raise InputError(
            f"The sizes of the dense head cannot be read: {', '.join(wrong)} is missing or not a "
            "convolution."
        )
    *layers, last = (tensors[n].shape for n in names)
    return HeadConfig(
        width=layers[0][0],
        layers=tuple(shape[1] for shape in layers),
        last=last[0],
        desc=desc,
        two_confs=two_confs,
    )


def reference_arguments(config: StereoConfig, training_size: str = "512x512") -> dict[str, Any]:
    """The keyword arguments with which the reference builds the same network.

    The dense head's sizes have no argument: the reference has one size, which the tensors must fit.
    training_size: "HxW" as in the meta of a converted file; it shapes no tensor

    Raises:
      InputError: fields that the reference's class cannot express; it names all of them.
    """
    encoder = _plain_encoder(config)
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", training_size)
    wiring = _WIRINGS[config.landscape_only]
    arguments = {
        "pos_embed": f"RoPE{config.rope_base:.0f}",
        "patch_embed_cls": wiring,
        "img_size": (int(size[1]), int(size[2])) if size else (512, 512),
        "head_type": _FIXED["head_type"],
        "output_mode": f"pts3d+desc{config.head.desc}",
        "depth_mode": _FIXED["depth_mode"],
        "conf_mode": _FIXED["conf_mode"],
        "enc_embed_dim": encoder.width,
        "enc_depth": encoder.depth,
        "enc_num_heads": encoder.heads,
        "dec_embed_dim": config.decoder.width,
        "dec_depth": config.decoder.depth,
        "dec_num_heads": config.decoder.heads,
        "two_confs": config.head.two_confs,
        "landscape_only": config.landscape_only,
    }
    if config.head.two_confs:
        arguments["desc_conf_mode"] = _DESC_CONF
    if encoder.mlp_ratio != 4.0:
        arguments["mlp_ratio"] = encoder.mlp_ratio
    return arguments


def _plain_encoder(config: StereoConfig) -> EncoderConfig:
    """Returns the network's encoder if the reference's class can express it, and all the rest."""
    other, encoder = beyond_reference(config), config.encoder
    if not isinstance(encoder, EncoderConfig):
        other["encoder.model.family"] = encoder.model.family
    elif encoder.mlp_ratio != config.decoder.mlp_ratio:
        ratios = f"{encoder.mlp_ratio} beside decoder.mlp_ratio {config.decoder.mlp_ratio}"
        other["encoder.mlp_ratio"] = ratios
    if config.rope_base % 1:
        other["rope_base"] = config.rope_base
    if other or not isinstance(encoder, EncoderConfig):
        fields = ", no ".join(f"{name} {value}" for name, value in other.items())
        raise InputError(
            f"{config.name} cannot go to PyTorch, because the reference's class has no {fields}: "
            "keep it in our own format."
        )
    return encoder


def checkpoint_tensors(config: StereoConfig, params: Any) -> dict[str, np.ndarray]:
    """Returns {torch name: array} of a network, as the reference code loads it.

    Raises:
      InputError: the network has parts or wiring that the reference does not have.
    """
    _plain_encoder(config)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return to_torch({name: np.asarray(array) for name, array in flat.items()})
