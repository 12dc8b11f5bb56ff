"""`lunar-distill convert`: PyTorch checkpoints to our weight files, and back."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lunar_distill_jax.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from lunar_distill_jax import api
    from lunar_distill_jax.models.config import StereoConfig

CHECK_SIZE = (32, 48)
CHUNK = 2**24  # bytes
EXAMPLE = """\
examples:
  lunar-distill convert MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric.pth teacher.safetensors
  lunar-distill convert teacher.safetensors back.pth --to torch        the layout of released files
  lunar-distill convert teacher.safetensors back --to torch            a Hugging Face folder
  lunar-distill convert s2 s2.safetensors --encoder-weights dinov2_vits14_pretrain.pth

Needs no torch, and runs nothing that a file holds.
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "convert",
        help="turn PyTorch's MASt3R checkpoints into ours, and back",
        description="Convert a MASt3R checkpoint (.pth or Hugging Face folder) to one "
        "self-describing weight file, or a model of ours back to PyTorch.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="a .pth, a Hugging Face folder, or our file")
    parser.add_argument("target", metavar="DST", help="a new file, or a new folder")
    parser.add_argument(
        "--encoder-weights",
        metavar="FILE",
        help="SRC is the name of a student: take its encoder from the checkpoint that the "
        "encoder's authors published (timm's or Hugging Face's .safetensors, or a .pth)",
    )
    parser.add_argument("--to", choices=("ours", "torch"), default="ours", help="(default: ours)")
    return parser


def run(args: argparse.Namespace) -> None:
    """Reads, checks, writes; the target appears when all of it is done."""
    from lunar_distill_jax import atomic
    from lunar_distill_jax.convert.torch_file import require_checksums
    from lunar_distill_jax.progress import Progress

    source, target = pathlib.Path(args.source), pathlib.Path(args.target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target} exists already: give a new name, or delete it first.")
    if args.to == "ours" and target.suffix != ".safetensors":
        raise InputError(f"DST is {target}: a weight file of ours ends in .safetensors.")
    atomic.check_writable(target.parent)
    if source.is_file() and source.suffix in (".pth", ".pt"):
        with Progress(source.stat().st_size, "checking bytes") as progress:
            require_checksums(source, progress.update)
    (to_torch if args.to == "torch" else to_ours)(source, target, args.encoder_weights)


def read(
    source: pathlib.Path, encoder_weights: str | None
) -> tuple[StereoConfig, Any, dict[str, str]]:
    """`api.read_network`, or a new student whose encoder is in a file."""
    from lunar_distill_jax import api

    if encoder_weights is None:
        return api.read_network(source)
    student = api.build(str(source), encoder_weights=encoder_weights)
    return student.config, student.arrays, student.meta


def to_ours(source: pathlib.Path, target: pathlib.Path, encoder_weights: str | None = None) -> None:
    """Writes our weight file, runs it once on `check_images`, and adds the result's hash to it."""
    import flax.traverse_util

    from lunar_distill_jax import api
    from lunar_distill_jax.atomic import atomic_file
    from lunar_distill_jax.progress import Progress
    from lunar_distill_jax.weights import add_meta, write_weights

    config, params, meta = read(source, encoder_weights)
    if "source_sha256" not in meta and source.exists():  # else it is one of ours, and says it
        meta = {**meta, "source_sha256": _sha256(source)}
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    summary = _summary(flat, meta)
    with atomic_file(target) as part:
        with _progress(flat, "writing") as progress:
            write_weights(part, config, params, meta, progress.update)
        del params, flat  # lets go of the mapped source: the check then maps only the new file
        with Progress(1, "self-check runs") as progress:
            digest = self_check(api.load(part))
            progress.update()
        add_meta(part, "self_check", digest)
    print(f"{summary}\nSelf-check: output sha256 {digest}")
    print(f"Licence: {meta.get('licence', 'unknown')}")
    print(f"Wrote {target} ({target.stat().st_size / 1e6:.1f} MB).")


def to_torch(
    source: pathlib.Path, target: pathlib.Path, encoder_weights: str | None = None
) -> None:
    """Writes the layout of released files (.pth), or else a Hugging Face folder."""
    import flax.traverse_util

    from lunar_distill_jax.convert.checkpoint import NOTES, cautions, to_pytorch
    from lunar_distill_jax.convert.torch_write import write_hugging_face, write_pth

    config, params, meta = read(source, encoder_weights)
    network = to_pytorch(config, params, meta)
    with _progress(network.tensors, "writing") as progress:
        if target.suffix in (".pth", ".pt"):
            write_pth(target, network.tensors, network.args, progress.update)
        else:
            notes = {k: v for k, v in network.args.items() if k in NOTES}
            write_hugging_face(target, network.tensors, network.config, notes, progress.update)
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    print(_summary(flat, {}))
    for caution in cautions(config):
        print(f"Note: {caution}")
    print(f"Licence: {meta.get('licence', 'unknown')}\nWrote {target}.")


def check_images() -> tuple[np.ndarray, np.ndarray]:
    """Two images [1, H, W, 3] by an integer formula: the same on every machine."""
    import numpy as np

    y, x = np.mgrid[: CHECK_SIZE[0], : CHECK_SIZE[1]]
    colour = np.arange(3)
    steps = 13 * y[..., None] + 7 * x[..., None] + 29 * colour
    one, two = (((steps + 17 * view) % 64 / 31.5 - 1).astype(np.float32)[None] for view in (0, 1))
    return one, two


def self_check(stereo: api.Stereo) -> str:
    """Runs the network on `check_images`; returns the sha256 of all its outputs.

    The hash is that of this machine and this version of jax: others may round differently.

    Raises:
      InputError: an output is not finite.
    """
    import numpy as np

    from lunar_distill_jax import api

    digest = hashlib.sha256()
    for view, prediction in enumerate(api.predict(stereo, *check_images()), 1):
        for name in ("pts3d", "conf", "desc", "desc_conf"):
            values = np.asarray(getattr(prediction, name))
            if not np.all(np.isfinite(values)):
                raise InputError(
                    f"The converted network gives {name} of view {view} that is not finite: the "
                    "checkpoint is damaged, or was saved while its training diverged."
                )
            digest.update(values.tobytes())
    return digest.hexdigest()


def _sha256(source: pathlib.Path) -> str:
    """Of the file with the weights; a folder is one of Hugging Face's or a finished training."""
    from lunar_distill_jax.progress import Progress

    names = ("model.safetensors", "student.safetensors")
    path = next((source / name for name in names if (source / name).is_file()), source)
    digest = hashlib.sha256()
    with open(path, "rb") as file, Progress(path.stat().st_size, "hashing bytes") as progress:
        while piece := file.read(CHUNK):
            digest.update(piece)
            progress.update(len(piece))
    return digest.hexdigest()


def _progress(arrays: Mapping[str, np.ndarray], label: str) -> contextlib.AbstractContextManager:
    from lunar_distill_jax.progress import Progress

    return Progress(sum(a.nbytes for a in arrays.values()), f"{label} bytes")


def _summary(flat: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> str:
    """One line for each part of the network: its tensors and numbers; then the other names."""
    from lunar_distill_jax.models.accounting import part_of

    tensors: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for name, array in flat.items():
        tensors[part_of(name)] += 1
        numbers[part_of(name)] += math.prod(array.shape)
    rows = [f"  {part:15s} {tensors[part]:5d} tensors {numbers[part]:13,d}" for part in tensors]
    total = f"  {'all':15s} {tensors.total():5d} tensors {numbers.total():13,d}"
    types = ", ".join(sorted({str(a.dtype) for a in flat.values()}))
    lines = [f"Mapped ({types}):", *rows, total]
    return "\n".join([*lines, f"From the file: {meta['mapping']}."] if "mapping" in meta else lines)
