"""`lunar-distill export`: a model as a file that runs without this package."""

from __future__ import annotations

import argparse
import pathlib

from lunar_distill_jax.errors import InputError

FORMATS = ("stablehlo", "onnx", "torch")
MOST_BYTES = 2**31 - 2**24  # protobuf and flatbuffers end at 2 GiB
EXAMPLE = """\
examples:
  lunar-distill export moonlet-small small.stablehlo --format stablehlo
  lunar-distill export moonlet-small small.onnx --format onnx --size 128x128
  lunar-distill export teacher.safetensors back.pth --format torch    as `convert --to torch`

Photographs go in as they are: uint8 [B, H, W, 3]. Out come pts3d_1, conf_1, desc_1, desc_conf_1 and
the same of view 2. The file is compared with the model on two views of the Moon before it appears.
ONNX needs `make export` first.
"""


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "export",
        help="write a model as StableHLO, ONNX or PyTorch, to run without this package",
        description="Write a model as a file for other runtimes, checked against the model.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="an embedded model, or a weight file")
    parser.add_argument("target", metavar="OUT", help="a new file")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument(
        "--size", metavar="HxW", help="of both images, pixels (default: what it was trained at)"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    import jax

    from lunar_distill_jax import api, atomic
    from lunar_distill_jax.cli import convert
    from lunar_distill_jax.cli.info import parse_size
    from lunar_distill_jax.export.onnx_file import OPSET, converter, write_onnx
    from lunar_distill_jax.export.stablehlo import PLATFORMS, write_stablehlo

    target = pathlib.Path(args.target)
    beside = [target.with_name(f"{target.name}.json")] if args.format == "stablehlo" else []
    for path in (target, *beside):
        if path.exists():
            raise InputError(f"{path} exists already: give a new name, or delete it first.")
    atomic.check_writable(target.parent)
    if args.format == "torch":
        if args.size:
            raise InputError(f"--size is {args.size}: a PyTorch file has no size, leave it out.")
        convert.run(
            argparse.Namespace(
                source=args.model, target=args.target, to="torch", encoder_weights=None
            )
        )
        return
    size = parse_size(args.size) if args.size else None
    if args.format == "onnx":
        converter()
    stereo = api.load(args.model)
    parameters = sum(array.nbytes for array in jax.tree.leaves(stereo.arrays))
    if parameters > MOST_BYTES:
        raise InputError(
            f"{args.model} has {parameters / 1e9:.1f} GB of parameters and a file of this format "
            "holds at most 2: use --format torch."
        )
    if size is None:
        if stereo.training_side is None:
            raise InputError(
                f"{args.model} does not say what size it was trained at: give --size HxW."
            )
        size = parse_size(stereo.meta["training_size"])
    write = write_onnx if args.format == "onnx" else write_stablehlo
    error, output = write(stereo, target, *size)
    print(
        f"Checked on two views of the Moon: worst error {error:.1e} of the largest value, {output}"
    )
    print(f"Licence: {stereo.meta.get('licence', 'unknown')}")
    print(f"Wrote {target} ({target.stat().st_size / 1e6:.1f} MB).")
    if args.format == "onnx":
        print(f"Opset {OPSET}, one pair of {size[0]} x {size[1]} pixels. On NVIDIA's devices:")
        print(f"  trtexec --onnx={target} --fp16")
    else:
        print(f"For {', '.join(PLATFORMS)}, any number of pairs of {size[0]} x {size[1]} pixels;")
        print(f"{target}.json says what goes in and out.")
