"""The students' encoders against activations of the original PyTorch code, in forward order.

Errors are relative to the largest absolute value of a tensor. The goldens lie beside the repository
(`../shared/goldens/students`); DINOv3 has its own, in test_dinov3.py.
"""

import functools
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

import lunar_distill_jax.api as ld
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models.config import DecoderConfig, HeadConfig, StereoConfig
from lunar_distill_jax.models.encoders.adapted import IMAGENET_MEAN, IMAGENET_STD, AdaptedEncoder
from lunar_distill_jax.models.encoders.config import (
    AdaptedEncoderConfig,
    CustomConfig,
    MobileNetV3Config,
    ViTConfig,
)
from lunar_distill_jax.models.encoders.depthwise import DepthwiseConv
from lunar_distill_jax.models.encoders.mobilenet import MobileNetV3
from lunar_distill_jax.models.encoders.resample import interpolation_matrix, resample
from lunar_distill_jax.models.encoders.vit import ViT, resample_positions

FOLDER = pathlib.Path(__file__).parents[2] / "shared" / "goldens" / "students"
DINOV2 = ViTConfig(depth=1, patch=14, grid=37, layer_scale=True, offset=0.1)
TIMM_DINOV2 = ViTConfig(depth=1, patch=14, grid=37, layer_scale=True)
VIT_TINY = ViTConfig(width=192, depth=1, heads=3)
MOBILENET = MobileNetV3Config(stages=7)
FILES = {
    DINOV2: "dinov2_vits14_depth1",
    TIMM_DINOV2: "dinov2_vits14_depth1",
    VIT_TINY: "vit_tiny_patch16_depth1",
    MOBILENET: "mobilenetv3_large_100",
}


@functools.lru_cache(maxsize=8)
def golden(name: str):
    if not FOLDER.is_dir():
        pytest.skip("the goldens of the students (../shared/goldens/students) are absent")
    return np.load(FOLDER / f"{name}.npz")


@functools.lru_cache(maxsize=8)
def encoder_variables(model):
    """What a public file holds of an encoder, read as a student reads it."""
    golden("dinov2")
    head = HeadConfig(width=8, layers=(8, 8, 8, 8), last=4, desc=4, desc_ratio=0.5)
    encoder = AdaptedEncoderConfig(model, 8, "features", "unit")
    config = StereoConfig("one", encoder, DecoderConfig(8, 1, 1, 1.0), head)
    student = ld.build(config, encoder_weights=FOLDER / f"{FILES[model]}.safetensors")
    own = student.params["encoder"]["backbone"]
    return ld.variables(own, student.batch_stats.get("encoder", {}).get("backbone", {}))


def image(name: str, key: str):
    return golden(name)[key].transpose(0, 2, 3, 1)


@functools.lru_cache(maxsize=16)
def activations(model, file: str, key: str):
    """(features, named) of an encoder on a golden image."""
    net = MobileNetV3(model) if model is MOBILENET else ViT(model)
    return jax.device_get(jax.jit(net.apply)(encoder_variables(model), image(file, key)))


def assert_close(ours, theirs, bound: float, label: str) -> None:
    assert ours.shape == theirs.shape, label
    error = np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))
    assert error <= bound, f"{label}: relative error {error:.1e} > {bound:.0e}"


# Vision transformers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "file", "key", "size"),
    [
        (DINOV2, "dinov2", "70x98/hub_pos_embed", (5, 7)),  # seen 1.6e-7
        (DINOV2, "dinov2", "56x126/hub_pos_embed", (4, 9)),  # seen 4.0e-8
        (TIMM_DINOV2, "dinov2", "70x98/timm_pos_embed", (5, 7)),  # seen 8.5e-8
        (TIMM_DINOV2, "dinov2", "56x126/timm_pos_embed", (4, 9)),  # seen 1.2e-7
        (VIT_TINY, "vit_tiny", "48x80/pos_embed_resampled", (3, 5)),  # seen 9e-8
        (VIT_TINY, "vit_tiny", "50x70/pos_embed_resampled", (4, 5)),  # seen 1.1e-7
    ],
)
def test_position_tables_are_resampled_as_the_original_does(model, file, key, size):
    theirs = golden(file)[key]
    table = encoder_variables(model)["params"]["pos_embed"]
    ours = np.asarray(resample_positions(table, *size, model.offset))
    # timm's DINOv2 keeps the class token's own place apart.
    assert_close(ours[:, -theirs.shape[1] :], theirs, 1e-6, key)


@pytest.mark.parametrize(
    ("model", "file", "size", "key", "cls"),
    [
        (DINOV2, "dinov2", "70x98", "hub_x_norm_patchtokens", "hub_x_norm_clstoken"),
        (DINOV2, "dinov2", "56x126", "hub_x_norm_patchtokens", "hub_x_norm_clstoken"),
        (TIMM_DINOV2, "dinov2", "70x98", "timm_tokens", None),
        (VIT_TINY, "vit_tiny", "48x80", "forward_features_tokens", None),
        (VIT_TINY, "vit_tiny", "50x70", "forward_features_tokens", None),
    ],
)
def test_vision_transformers_match_the_original(model, file, size, key, cls):
    features, named = activations(model, file, f"{size}/img")
    theirs = golden(file)[f"{size}/{key}"]
    tokens = features.reshape(len(features), -1, model.width)
    class_token = golden(file)[f"{size}/{cls}"] if cls else theirs[:, 0]
    assert_close(named["class"], class_token, 5e-6, "class token")  # seen 1.1e-6
    assert_close(tokens, theirs[:, -tokens.shape[1] :], 8e-6, key)  # seen 2.1e-6
    assert sorted(named) == ["block0", "class"] and named["block0"].shape == features.shape


def test_a_position_table_of_its_own_grid_is_not_touched():
    table = np.random.default_rng(0).normal(size=(1, 17, 3)).astype(np.float32)
    assert resample_positions(table, 4, 4, 0.1) is table
    assert jax.eval_shape(lambda t: resample_positions(t, 3, 5, 0.1), table).shape == (1, 16, 3)


# MobileNetV3 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "bound"),
    [  # seen 4.6e-7, 1.5e-6, 8.7e-7
        ("stage2", "feat_stride8", 2e-6),
        ("stage4", "feat_stride16", 6e-6),
        ("stage6", "feat_stride32", 4e-6),
    ],
)
@pytest.mark.parametrize("size", ["64x96", "50x70"])
def test_mobilenet_matches_the_original(size, name, key, bound):
    _, named = activations(MOBILENET, "mobilenet", f"eval_{size}/img")
    theirs = golden("mobilenet")[f"eval_{size}/{key}"]
    assert_close(named[name].transpose(0, 3, 1, 2), theirs, bound, key)


@functools.lru_cache(maxsize=1)
def trained():
    """The batch norms in training: (named features, the moments afterwards)."""
    net = MobileNetV3(MOBILENET, train=True)
    run = jax.jit(lambda variables, x: net.apply(variables, x, mutable=["batch_stats"]))
    (_, named), new = run(encoder_variables(MOBILENET), image("mobilenet", "eval_64x96/img"))
    return jax.device_get(named), jax.device_get(new["batch_stats"])


@pytest.mark.parametrize(
    ("name", "key", "bound"),
    # Seen 5.3e-6 and 1.1e-5: deep maps have 12 values a channel, whose deviation divides.
    [("stage4", "feat_stride16", 2e-5), ("stage6", "feat_stride32", 4e-5)],
)
def test_mobilenet_in_training_matches_the_original(name, key, bound):
    ours = trained()[0][name].transpose(0, 3, 1, 2)
    assert_close(ours, golden("mobilenet")[f"train/{key}"], bound, key)


MOMENTS = {  # golden name -> ours
    "bn1": ("stem", "norm"),
    "blocks.0.0.bn1": ("stage0_block0", "depthwise", "norm"),
    "blocks.0.0.bn2": ("stage0_block0", "project", "norm"),
    "blocks.3.1.bn1": ("stage3_block1", "expand", "norm"),
    "blocks.3.1.bn2": ("stage3_block1", "depthwise", "norm"),
    "blocks.3.1.bn3": ("stage3_block1", "project", "norm"),
    "blocks.4.1.bn1": ("stage4_block1", "expand", "norm"),
    "blocks.4.1.bn3": ("stage4_block1", "project", "norm"),
    "blocks.6.0.bn1": ("last", "norm"),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_running_moments_after_one_batch_match_the_original(name):
    golden("mobilenet")
    ours = functools.reduce(lambda tree, key: tree[key], MOMENTS[name], trained()[1])
    for key in ("mean", "var"):  # seen 5.7e-7 and 2.7e-6
        theirs = golden("mobilenet")[f"train/after/backbone.{name}.running_{key}"]
        assert_close(ours[key], theirs, 1e-5, f"{name} {key}")


@pytest.mark.parametrize("kernel, stride", [(3, 2), (5, 1)])
def test_depthwise_convolution_is_a_grouped_one(kernel, stride):
    rng = np.random.default_rng(kernel)
    x = rng.normal(size=(2, 9, 8, 3)).astype(np.float32)
    weights = rng.normal(size=(kernel, kernel, 1, 3)).astype(np.float32)
    bias = rng.normal(size=3).astype(np.float32)
    net = DepthwiseConv(kernel, stride, use_bias=True)
    ours = jax.jit(net.apply)({"params": {"kernel": weights, "bias": bias}}, x)
    p = kernel // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (1, 2))
    theirs = np.einsum("bhwcij,ijc->bhwc", windows[:, ::stride, ::stride], weights[:, :, 0]) + bias
    np.testing.assert_allclose(ours, theirs, atol=1e-5)  # seen 1.9e-6: sums of 25 products


# The grid -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "align", "file", "key", "adapted"),
    [
        (DINOV2, "image", "dinov2", "pad_64x96/img", "recon_resize_64x96/adapter_out"),
        (
            *(DINOV2, "features", "dinov2", "pad_64x96/img"),
            "recon_pad_64x96/adapter_out_bilinear_to_16grid",
        ),
        (VIT_TINY, "image", "vit_tiny", "48x80/img", "48x80/adapter_out"),
    ],
)
def test_adapted_encoders_match_the_original(model, align, file, key, adapted):
    theirs, x = golden(file)[adapted], image(file, key)
    if model is DINOV2:
        stored, prefix = golden(file), "recon/adapter."
    else:
        stored = safetensors.numpy.load_file(FOLDER / f"{FILES[model]}.safetensors")
        prefix = "adapter."
    kernel, scale, bias = (
        stored[prefix + name].astype(np.float32) for name in ("0.weight", "1.weight", "1.bias")
    )
    params = {
        "backbone": encoder_variables(model)["params"],
        "adapter": {"kernel": kernel.transpose(2, 3, 1, 0)},
        "adapter_norm": {"scale": scale, "bias": bias},
    }
    net = AdaptedEncoder(AdaptedEncoderConfig(model, 16, align, "unit"))
    tokens = jax.jit(lambda params, x: net.apply({"params": params}, x).tokens)(params, x)
    h, w = x.shape[1] // 16, x.shape[2] // 16
    ours = np.asarray(tokens).reshape(len(x), h, w, 16).transpose(0, 3, 1, 2)
    assert_close(ours, theirs, 8e-6, adapted)  # seen 2.0e-6


def probe(x, **options):
    """(what an encoder of stride 14 is fed for the image x, `Encoded`); of a shape, shapes."""
    seen = []

    def every_14th_pixel(image):
        seen.append(image)
        return image[:, ::14, ::14]

    model = CustomConfig(every_14th_pixel, 14, "probe")
    net = AdaptedEncoder(AdaptedEncoderConfig(model, 4, **options))
    params = {
        "adapter": {"kernel": np.ones((1, 1, 3, 4), np.float32)},
        "adapter_norm": {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)},
    }
    run = functools.partial(net.apply, {"params": params})
    encoded = jax.eval_shape(run, x) if isinstance(x, jax.ShapeDtypeStruct) else run(x)
    return seen[-1], encoded


def test_image_alignment_gives_whole_patches_on_the_decoder_s_grid():
    x = jax.ShapeDtypeStruct((1, 384, 512, 3), np.float32)
    fed, encoded = probe(x, align="image")
    assert fed.shape == (1, 336, 448, 3) and encoded.tokens.shape == (1, 24 * 32, 4)
    fed, encoded = probe(x, align="features")  # 28 x 37 features, resampled
    assert fed.shape == (1, 384, 512, 3) and encoded.tokens.shape == (1, 24 * 32, 4)


def test_pixels_are_what_the_checkpoint_was_trained_on():
    x = np.random.default_rng(0).uniform(-1, 1, (1, 16, 48, 3)).astype(np.float32)
    fed, encoded = probe(x, align="features", pixels="unit")
    np.testing.assert_array_equal(fed, x)
    assert encoded.positions.tolist() == [[0, 0], [0, 1], [0, 2]]  # (row, column)
    fed, _ = probe(x, align="features", pixels="imagenet")
    np.testing.assert_allclose(fed, ((x + 1) / 2 - IMAGENET_MEAN) / IMAGENET_STD, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[:, ::8, ::8], "gives 4 x 4 features for an image of 32 x 32 pixels, expected"),
        (lambda x: x[0], "features of shape (32, 32, 3) for an image of (1, 32, 32, 3)"),
        (lambda x: x.reshape(1, -1, 3), "expected [B, h, w, D]"),
    ],
)
def test_features_off_the_grid_are_refused(function, message):
    net = AdaptedEncoder(AdaptedEncoderConfig(CustomConfig(function), 4))
    x = np.zeros((1, 32, 32, 3), np.float32)
    with pytest.raises(InputError) as error:
        jax.eval_shape(net.init, jax.random.key(0), x)
    assert message in str(error.value)


@pytest.mark.parametrize("method", ["linear", "cubic"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("n_in, n_out", [(37, 5), (7, 16), (6, 6)])
def test_interpolation_matrices(method, antialias, n_in, n_out):
    matrix = interpolation_matrix(n_in, n_out, method, antialias=antialias)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=2e-6)  # no side is preferred
    if n_in == n_out:
        np.testing.assert_allclose(matrix, np.eye(n_in), atol=1e-7)
    if n_out > n_in and (method == "linear" or antialias):
        # Away from the border a line stays a line; a cubic with a = -0.75 bends it.
        at = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
        inner = (at > 1) & (at < n_in - 2)
        np.testing.assert_allclose((matrix @ np.arange(n_in))[inner], at[inner], atol=1e-5)


def test_resample_is_the_two_matrices():
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    rows, columns = interpolation_matrix(5, 4, "linear"), interpolation_matrix(7, 6, "linear")
    expected = np.einsum("yh,xw,bhwc->byxc", rows, columns, x)
    np.testing.assert_allclose(resample(x, 4, 6), expected, atol=1e-6)
