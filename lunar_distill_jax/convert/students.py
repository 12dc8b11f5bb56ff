"""Students in the layout of the paper's public code: a MASt3R shell with an encoder added to it.

That code gives the decoder token positions as (x, y), while MASt3R, whose weights initialise it,
reads (y, x) (spec of MASt3R, section 4). A head's first half of channels turns with the first
coordinate, so exchanging the halves of all queries and keys makes both the same network.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from lunar_distill_jax.convert.encoders import mobilenet_rules, vit_rules
from lunar_distill_jax.convert.torch_file import Checkpoint
from lunar_distill_jax.convert.torch_names import (
    CONV,
    NORM,
    RULES,
    Line,
    Rule,
    by_table,
    lines_of,
    own_names,
    to_torch,
    torch_name,
)
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.config import EncoderConfig, StereoConfig
from lunar_distill_jax.models.encoders.config import (
    TOKEN,
    AdaptedEncoderConfig,
    MobileNetV3Config,
)
from lunar_distill_jax.models.fresh import array_shapes
from lunar_distill_jax.models.unused import beyond_reference
from lunar_distill_jax.models.zoo import architecture

COUNTERS = (
    r"tiny_enc\.backbone\..+\.num_batches_tracked"  # of batch norms, which momentum makes idle
)

# The paper's four, by the adapter between encoder and decoder: (module, [out, in, 1, 1]).
PAPER = {
    ("tiny_enc", (512, 112, 1, 1)): "s1",
    ("tiny_vit", (512, 384, 1, 1)): "s2",
    ("tiny_vit", (256, 384, 1, 1)): "s3",
    ("tiny_vit", (512, 192, 1, 1)): "s4",
}


def paper_student(tensors: Mapping[str, np.ndarray]) -> StereoConfig | None:
    """Which of the paper's students a file holds, wired as the paper's code wires it; or None.

    That code feeds pixels in [-1, 1], pads pictures to whole patches, and resamples the features.
    """
    for (module, shape), name in PAPER.items():
        adapter = tensors.get(f"{module}.adapter.0.weight")
        if adapter is not None and adapter.shape == shape:
            config = architecture(name)
            assert isinstance(config.encoder, AdaptedEncoderConfig)
            encoder = dataclasses.replace(config.encoder, pixels="unit")
            if encoder.model.stride != TOKEN:
                encoder = dataclasses.replace(encoder, align="features")
            config = dataclasses.replace(config, encoder=encoder, keep_unused=True)
            names = (torch_name(n, student_lines(config)) for n in array_shapes(config))
            return dataclasses.replace(config, keep_unused=all(n in tensors for n in names))
    return None


def student_lines(config: StereoConfig) -> tuple[Line, ...]:
    """The table of a student's file, read in both directions."""
    model = getattr(config.encoder, "model", None)
    mobile = isinstance(model, MobileNetV3Config)
    owner, module = ("tiny_enc", "backbone") if mobile else ("tiny_vit", "vit")
    rules, bare = mobilenet_rules() if mobile else vit_rules()

    def ours(name):
        statistic = "batch_stats/" if name.startswith("batch_stats/") else ""
        name = name.removeprefix(statistic)
        tail = name.startswith(("stage5_", "last/")) and getattr(model, "stages", 0) == 5
        unused = tail if mobile else name == "mask_token"
        return f"{statistic}{'unused' if unused else 'encoder'}/backbone/{name}"

    bare = {**bare, **({} if mobile else {"mask_token": "mask_token"})}
    return lines_of(
        [
            *(rule for rule in RULES if not rule.ours.startswith("encoder/")),
            Rule("patch_embed.proj", "unused/patch_embed", CONV),
            Rule("enc_norm", "unused/norm", NORM),
            Rule(f"{owner}.adapter.0", "encoder/adapter", CONV),
            Rule(f"{owner}.adapter.1", "encoder/adapter_norm", NORM),
            *(Rule(f"{owner}.{module}.{r.torch}", ours(r.ours), r.layout) for r in rules),
        ],
        {
            "mask_token": "unused/mask_token",
            **{f"{owner}.{module}.{torch}": ours(name) for torch, name in bare.items()},
        },
    )


def _require_student(config: StereoConfig) -> None:
    other: dict[str, Any] = dict(beyond_reference(config))
    if isinstance(config.encoder, EncoderConfig):
        other = {"encoder.depth": config.encoder.depth}
    if config.rope_base != 100:
        other["rope_base"] = config.rope_base
    if other:
        fields = ", no ".join(f"{name} {value}" for name, value in other.items())
        raise InputError(
            f"{config.name} cannot go to PyTorch, because the paper's student code has no "
            f"{fields}: keep it in our own format."
        )


def exchange_axes(arrays: Mapping[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """Exchanges the halves of every query and key head of a decoder; twice is no change.

    arrays: {our name: array}; those of other parts are returned as they are
    """
    out = dict(arrays)
    for name, array in arrays.items():
        if re.fullmatch(r"decoder/.*/cross_attn/[qk]/(kernel|bias)", name):
            parts = [array]
        elif re.fullmatch(r"decoder/.*/attn/qkv/(kernel|bias)", name):
            parts = np.split(array, 3, axis=-1)
        else:
            continue
        for i, part in enumerate(parts[:2]):  # values have no place
            halves = part.reshape(*part.shape[:-1], heads, 2, -1)
            parts[i] = halves[..., ::-1, :].reshape(part.shape)
        out[name] = np.concatenate(parts, axis=-1)
    return out


def student_from_reference(
    config: StereoConfig, checkpoint: Checkpoint
) -> tuple[StereoConfig, Any, Any]:
    """-> (config, params, batch_stats) of a student that the paper's code trained.

    config: its architecture, which such a file does not name; `keep_unused` says what is kept

    Raises:
      InputError: the file does not hold that student, or the paper's code cannot build it.
    """
    _require_student(config)
    full = array_shapes(dataclasses.replace(config, keep_unused=True))
    named = own_names(
        {n: t for n, t in checkpoint.tensors.items() if not re.fullmatch(COUNTERS, n)}
    )
    lines, kept = student_lines(config), array_shapes(config)
    # What nothing reads may be there or not: `student_tensors` leaves it out of lean networks.
    want = {n: s for n, s in full.items() if n in kept or torch_name(n, lines) in named.tensors}
    found = by_table(named.tensors, lines, want, checkpoint.path, named.problems)
    arrays = exchange_axes({n: a for n, a in found.items() if n in kept}, config.decoder.heads)
    tree = flax.traverse_util.unflatten_dict(arrays, sep="/")
    return config, tree, tree.pop("batch_stats", {})


def student_tensors(config: StereoConfig, params: Any, statistics: Any) -> dict[str, np.ndarray]:
    """{torch name: array} as the paper's code names them; inverse of `student_from_reference`.

    Tensors that no computation reads are there only if the network keeps them (`keep_unused`).

    Raises:
      InputError: the paper's code cannot build this network.
    """
    _require_student(config)
    flat = flax.traverse_util.flatten_dict({**params, "batch_stats": statistics}, sep="/")
    arrays = {name: np.asarray(array) for name, array in flat.items()}
    return to_torch(exchange_axes(arrays, config.decoder.heads), student_lines(config))
