"""What a PyTorch file holds of any network of ours, teacher or student, and the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lunar_distill_jax.convert.model_string import format_model_string
from lunar_distill_jax.convert.students import (
    paper_student,
    student_from_reference,
    student_tensors,
)
from lunar_distill_jax.convert.teacher import (
    LICENCE,
    checkpoint_tensors,
    network_from_checkpoint,
    reference_arguments,
)
from lunar_distill_jax.convert.torch_file import Checkpoint
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.config import EncoderConfig, StereoConfig
from lunar_distill_jax.models.encoders.config import TOKEN, AdaptedEncoderConfig

# The reference's text cannot say what a student is, so its file says it in our words, here.
STUDENT = "architecture"
NOTES = ("licence", "source", "source_sha256", "training_size")  # meta that goes along


class TorchNetwork(NamedTuple):
    """tensors: {torch name: array}; args: of a `.pth`; config: the `config.json` of a folder."""

    tensors: dict[str, np.ndarray]
    args: dict[str, Any]
    config: dict[str, Any]


def to_pytorch(config: StereoConfig, params: Any, meta: Mapping[str, str]) -> TorchNetwork:
    """A network as the PyTorch code names it: MASt3R's, or for a student the paper's.

    params: a nested dict of arrays; batch norms' running moments are its branch "batch_stats"

    Raises:
      InputError: the network has something that the PyTorch code lacks; every such field is named.
    """
    notes = {name: meta[name] for name in NOTES if name in meta}
    if isinstance(config.encoder, EncoderConfig):
        arguments = reference_arguments(config, meta.get("training_size", "512x512"))
        tensors = checkpoint_tensors(config, params)
        return TorchNetwork(tensors, {"model": format_model_string(arguments), **notes}, arguments)
    rest = {name: branch for name, branch in params.items() if name != "batch_stats"}
    tensors = student_tensors(config, rest, params.get("batch_stats", {}))
    said = {STUDENT: json.dumps(config.to_dict()), **notes}
    return TorchNetwork(tensors, said, said)


def cautions(config: StereoConfig) -> list[str]:
    """What the PyTorch code needs to be told, or changed in, before it computes the same."""
    found = []
    if config.decoder.depth <= 9:
        found.append(
            f"decoder.depth is {config.decoder.depth}: the public head factory asserts more than "
            "9, take that line out."
        )
    if isinstance(config.encoder, AdaptedEncoderConfig):
        if config.encoder.pixels != "unit":
            found.append(
                f"encoder.pixels is {config.encoder.pixels!r}: the paper's code gives its encoders "
                "[-1, 1]; shift and scale the channels first."
            )
        if config.encoder.align != "features" and config.encoder.model.stride != TOKEN:
            found.append(
                f"encoder.align is {config.encoder.align!r}: resample the picture by "
                f"{config.encoder.model.stride} / {TOKEN} before the encoder."
            )
    return found


def from_pytorch(checkpoint: Checkpoint) -> tuple[StereoConfig, Any, dict[str, str]]:
    """-> (config, params, meta) of a MASt3R checkpoint or of a student.

    A student says what it is if `to_pytorch` wrote it; the paper's four are known by their sizes.

    Raises:
      InputError: the file does not say what it is, or does not hold it.
    """
    said = {**(checkpoint.config or {}), **checkpoint.args}
    if STUDENT in said:
        config = _student_config(said, checkpoint)
    elif (found := paper_student(checkpoint.tensors)) is not None:
        config = found
    else:
        return network_from_checkpoint(checkpoint)
    config, params, statistics = student_from_reference(config, checkpoint)
    meta = {"licence": LICENCE, "source": checkpoint.path.name}
    meta |= {k: str(said[k]) for k in ("licence", "training_size") if k in said}
    return config, {**params, **({"batch_stats": statistics} if statistics else {})}, meta


def _student_config(said: Mapping[str, Any], checkpoint: Checkpoint) -> StereoConfig:
    try:
        return StereoConfig.from_dict(json.loads(said[STUDENT]))
    except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as e:
        raise InputError(
            f"{checkpoint.path} does not describe its student ({type(e).__name__}): convert the "
            "student to PyTorch again."
        ) from e
