"""DINOv3 encoders against `transformers`, layer by layer in forward order; sizes; files' names.

tests/goldens/dinov3.npz is written by tools/make_dinov3_goldens.py. Errors are relative to the
largest absolute value of a tensor. What they would be: epsilon 1e-6 in the ViT 3e-2, a tanh GELU
1e-4, a rotary base of 101 8e-3, x and y exchanged 1.
"""

import dataclasses
import functools
import json
import math
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import dinov3_cases as cases

from lunar_distill_jax.convert.encoders import own_names, table_of
from lunar_distill_jax.convert.torch_file import Checkpoint
from lunar_distill_jax.convert.torch_names import by_table
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.encoders.convnext import ConvNeXt
from lunar_distill_jax.models.encoders.dinov3 import DINOv3, rotary_table
from lunar_distill_jax.models.encoders.dinov3_config import (
    CONVNEXT_SIZES,
    VIT_SIZES,
    ConvNeXtConfig,
    DINOv3Config,
)

GOLDEN = np.load(pathlib.Path(__file__).parent / "goldens" / "dinov3.npz")
SQUARE, ODD = cases.SIZES
CASES = [(model, size) for model in cases.VIT for size in cases.SIZES]
# Each takes 5 s to compile, so the size that no stride divides is the one that always runs.
CASES += [("convnext", ODD), pytest.param("convnext", SQUARE, marks=pytest.mark.slow)]
BOUND = {"rope": 1e-6, "vit": 1.5e-5, "convnext": 2e-6}  # seen 3e-7, 4.8e-6, 6e-7
PARAMETERS = {  # of transformers 5.23.0 on the meta device; the ViT's with its mask token
    **{"s": 21_596_544, "s+": 28_692_864, "b": 85_660_416, "l": 303_129_600, "h+": 840_592_640},
    **{"tiny": 27_820_128, "small": 49_454_688, "base": 87_566_464, "large": 196_230_336},
}


def network(config):
    return DINOv3(config) if isinstance(config, DINOv3Config) else ConvNeXt(config)


def config_of(model):
    if model in cases.CONVNEXT:
        return ConvNeXtConfig(*cases.CONVNEXT[model], stages=4)
    width, depth, heads, gated, registers = cases.VIT[model]
    return DINOv3Config(width, depth, heads, gated=gated, registers=registers)


@functools.cache
def shapes_of(config):
    """{name: shape} of an encoder's parameters."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    tree = jax.eval_shape(network(config).init, jax.random.key(0), image)["params"]
    return {k: v.shape for k, v in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def tensors_of(model):
    """A checkpoint as transformers saves it: its names, values by formula."""
    shapes = json.loads(str(GOLDEN[f"{model}/shapes"]))
    return {name: cases.weight(name, shape) for name, shape in shapes.items()}


def read(tensors, config, path="dino.safetensors"):
    """-> {our name: array}, as the encoder of a student is read from a file"""
    table = table_of(config)
    tensors = own_names(Checkpoint(pathlib.Path(path), tensors, None), table)
    return by_table(tensors, table.lines, shapes_of(config), path)


def run(model, size):
    """-> (features, named features, {layer: output})"""
    apply = functools.partial(network(config_of(model)).apply, capture_intermediates=True)
    image = cases.image(*size).transpose(0, 2, 3, 1)
    flat = read(tensors_of(model), config_of(model))
    params = {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}
    (features, named), state = jax.device_get(jax.jit(apply)(params, image))
    layers = {k: v["__call__"][0] for k, v in state["intermediates"].items() if k != "__call__"}
    return features, named, layers


@pytest.mark.parametrize(
    "model, size", CASES, ids=lambda v: v if isinstance(v, str) else "x".join(map(str, v))
)
def test_matches_transformers(model, size):
    (features, named, layers), (h, w) = run(model, size), (n // 16 for n in size)
    prefix = f"{model}/{size[0]}x{size[1]}/"
    golden = {n.removeprefix(prefix): GOLDEN[n] for n in GOLDEN.files if n.startswith(prefix)}
    for name, theirs in golden.items():  # in forward order
        ours = layers.get("down0_norm" if name == "down0" else name)
        if name == "rope":
            ours = np.stack(rotary_table(h, w, theirs.shape[-1]))
        elif name == "patch_embed":
            theirs = theirs.reshape(2, h * w, -1)
        elif name == "norm" and model == "convnext":
            theirs = theirs[:, 1:].reshape(features.shape)  # the mean over the map goes first
        assert ours.shape == theirs.shape, name
        error = np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))
        bound = BOUND.get(name) or BOUND[model.split("_")[0]]
        assert error <= bound, f"{prefix}{name}: relative error {error:.1e} > {bound:.0e}"
    assert len(golden) == {"vit": 6, "vit_gated": 5, "vit_wide": 5, "convnext": 10}[model]

    # What is handed on is cut from the layers that were compared.
    if model == "convnext":
        np.testing.assert_array_equal(features, layers["norm"])
        np.testing.assert_array_equal(named["stage2"], layers["stage2_block1"])
        assert list(named) == ["stage0", "stage1", "stage2", "stage3"]
    else:
        depth, registers = cases.VIT[model][1], cases.VIT[model][4]
        tokens = features.reshape(2, h * w, -1)
        np.testing.assert_array_equal(tokens, layers["norm"][:, 1 + registers :])
        np.testing.assert_array_equal(named["class"], layers["norm"][:, 0])
        last = named[f"block{depth - 1}"].reshape(tokens.shape)
        np.testing.assert_array_equal(last, layers[f"block{depth - 1}"][:, 1 + registers :])


def parameters(config):
    """Counted on a network with one block of each kind: the others are the same."""
    if isinstance(config, DINOv3Config):
        depths, one = {"block0/": config.depth}, dataclasses.replace(config, depth=1)
    else:
        depths = {f"stage{i}_block0/": depth for i, depth in enumerate(config.depths)}
        one = dataclasses.replace(config, depths=(1,) * len(depths))
    return sum(
        math.prod(shape) * next((n for block, n in depths.items() if name.startswith(block)), 1)
        for name, shape in shapes_of(one).items()
    )


def test_published_sizes_have_the_published_parameters():
    for model in ("vit_gated", "convnext"):  # the count from one block is that of all blocks
        shapes = shapes_of(config_of(model)).values()
        assert parameters(config_of(model)) == sum(map(math.prod, shapes))
    found = {name: parameters(c) + c.width for name, c in VIT_SIZES.items()}
    for name, config in CONVNEXT_SIZES.items():
        found[name] = parameters(dataclasses.replace(config, stages=4))
    assert found == PARAMETERS == json.loads(str(GOLDEN["parameters"]))


@pytest.mark.parametrize("model, stages, channels", [("vit", 4, 32), ("convnext", 3, 24)])
def test_features_lie_on_the_grid_of_the_stride(model, stages, channels):
    """The default ConvNeXt ends at stride 16; in bfloat16 the features are bfloat16."""
    config = config_of(model)
    if model == "convnext":
        config = dataclasses.replace(config, stages=stages)
    assert config.stride == 16
    net = type(network(config))(config, jnp.bfloat16)
    image = jax.ShapeDtypeStruct((2, 70, 100, 3), jnp.float32)
    (features, named), _ = jax.eval_shape(net.init_with_output, jax.random.key(0), image)
    assert features.shape == (2, 4, 6, channels)
    assert {x.dtype for x in (features, *named.values())} == {jnp.dtype(jnp.bfloat16)}


def test_what_follows_stride_16_is_not_read():
    config = dataclasses.replace(config_of("convnext"), stages=3)
    flat = read(tensors_of("convnext"), config)
    assert flat.keys() == shapes_of(config).keys()
    assert {
        name.split("/")[0] for name in shapes_of(config_of("convnext")).keys() - flat.keys()
    } == {*("down3", "down3_norm", "stage3_block0", "norm")}


def test_all_problems_of_a_file_are_told_at_once():
    tensors, config = tensors_of("vit_gated"), config_of("vit_gated")
    tensors["layer.0.attention.k_proj.bias"] = np.zeros(48, np.float32)
    tensors["head.weight"] = np.zeros((2, 48), np.float32)
    tensors["layer.1.mlp.up_proj.weight"] = tensors["layer.1.mlp.up_proj.weight"].T
    del tensors["layer.1.layer_scale2.lambda1"], tensors["embeddings.mask_token"]
    with pytest.raises(InputError) as e:
        read(tensors, config)
    for part in (
        "dino.safetensors does not hold the network that it declares (4 problems)",
        "layer.0.attention.k_proj.bias (48,): the architecture has no such tensor",
        "head.weight (2, 48): no rules match",
        "layer.1.mlp.up_proj.weight (48, 192): expected the shape (192, 48)",
        "layer.1.layer_scale2.lambda1: missing",
    ):
        assert part in str(e.value)
