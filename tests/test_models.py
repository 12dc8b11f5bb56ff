"""The network against slow formulas written here, and against counts of the published model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lunar_distill_jax import geometry
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.models import heads, resize
from lunar_distill_jax.models.config import DecoderConfig, HeadConfig, StereoConfig
from lunar_distill_jax.models.dpt import Unpatch
from lunar_distill_jax.models.fresh import fresh_params, parameter_shapes, standard_deviation
from lunar_distill_jax.models.layers import attention
from lunar_distill_jax.models.rope import grid_positions, rotary_table, rotate
from lunar_distill_jax.models.stereo import StereoNet
from lunar_distill_jax.models.zoo import ARCHITECTURES, STUDENTS, architecture

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


# Rotary positions and attention -------------------------------------------------------------------


def slow_rotate(x, positions, base):
    """x [N, d], positions [N, 2] (row, column): one pair of channels at a time, in float64."""
    out = np.empty(x.shape)
    half = x.shape[1] // 2
    pairs = half // 2
    for n in range(len(x)):
        for axis in (0, 1):  # the first half of the head turns with y, the second with x
            for k in range(pairs):
                angle = positions[n, axis] * base ** (-2 * k / half)
                i, j = axis * half + k, axis * half + k + pairs
                out[n, i] = x[n, i] * np.cos(angle) - x[n, j] * np.sin(angle)
                out[n, j] = x[n, j] * np.cos(angle) + x[n, i] * np.sin(angle)
    return out


def rope(x, positions, base=100.0):
    return np.asarray(rotate(x, *rotary_table(positions, x.shape[-1], base)))


@pytest.mark.parametrize("base", [100.0, 10.0])
def test_rope_is_the_slow_formula(base):
    positions = grid_positions(3, 5)
    assert positions[7].tolist() == [1, 2]  # row-major (row, column)
    x = normal(15, 24)
    # 3e-6: angles up to 4 rad in float32
    np.testing.assert_allclose(rope(x, positions, base), slow_rotate(x, positions, base), atol=3e-6)


def test_rope_takes_positions_of_each_sample_as_numpy_or_jax():
    positions = RNG.integers(0, 12, (2, 12, 2)).astype(np.int32)
    x = normal(2, 12, 16)
    expected = [slow_rotate(x[i], positions[i], 100.0) for i in range(2)]
    for kind in (np.asarray, jnp.asarray):
        np.testing.assert_allclose(rope(x, kind(positions)), expected, atol=5e-6)


def at_offset(dy, dx):
    """Row numbers of a 4 x 6 window of a 10 x 20 grid."""
    return (np.arange(4)[:, None] + dy) * 20 + np.arange(6) + dx


def windowed(x, dy=0, dx=0):
    """x [24, d] rotated by the positions of that window."""
    grid, rows = grid_positions(10, 20), at_offset(dy, dx).ravel()
    whole = np.zeros((200, x.shape[1]), np.float32)
    whole[rows] = x
    return rope(whole, grid)[rows]


def test_rope_scores_depend_on_differences_of_positions_only():
    q, k = normal(24, 16), normal(24, 16)
    here = windowed(q) @ windowed(k).T
    there = windowed(q, 3, 11) @ windowed(k, 3, 11).T
    np.testing.assert_allclose(here, there, atol=2e-5)
    assert np.abs(windowed(q) @ windowed(k, 3, 11).T - here).max() > 1


def test_rope_keeps_norms_and_each_half_has_its_axis():
    x = normal(24, 16)
    turned, down, right = windowed(x), windowed(x, 1, 0), windowed(x, 0, 1)
    norms = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), norms, rtol=1e-6)
    assert np.array_equal(down[:, 8:], turned[:, 8:])
    assert np.abs(down[:, :8] - turned[:, :8]).max() > 0.1
    assert np.array_equal(right[:, :8], turned[:, :8])
    assert np.abs(right[:, 8:] - turned[:, 8:]).max() > 0.1


def test_attention_is_softmax_over_the_keys():
    q, k, v = normal(2, 3, 5, 8), normal(2, 3, 7, 8), normal(2, 3, 7, 8)
    q[0] *= 40  # scores far beyond where exp overflows
    scores = np.einsum("bhnd,bhmd->bhnm", q.astype(np.float64), k) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhnm,bhmd->bhnd", weights, v)
    # 5e-5: scores near 200 carry 1e-5 of float32 rounding
    np.testing.assert_allclose(attention(q, k, v), expected, atol=5e-5)


# The dense head -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [2, 4])
def test_unpatch_is_a_transposed_convolution(stride):
    x = normal(2, 3, 2, 5)
    kernel, bias = normal(stride, stride, 5, 5), normal(5)
    out = Unpatch(stride).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    expected = np.zeros((2, 3 * stride, 2 * stride, 5))
    for row in range(3):
        for column in range(2):
            for i in range(stride):
                for j in range(stride):
                    expected[:, row * stride + i, column * stride + j] = (
                        x[:, row, column] @ kernel[i, j] + bias
                    )
    np.testing.assert_allclose(out, expected, atol=2e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (3, 5), (7, 4)])
def test_double_is_bilinear_with_aligned_corners(size):
    x = normal(2, *size, 3)
    out = np.asarray(resize.double(x))
    np.testing.assert_allclose(resize._by_matrices(x), out, atol=1e-6)  # as a TPU has it
    h, w = size
    expected = np.empty((2, 2 * h, 2 * w, 3))
    for i in range(2 * h):
        for j in range(2 * w):
            y, z = i * (h - 1) / (2 * h - 1), j * (w - 1) / (2 * w - 1)
            a, b = int(y), int(z)
            c, d = min(a + 1, h - 1), min(b + 1, w - 1)
            y, z = y - a, z - b
            top = x[:, a, b] * (1 - z) + x[:, a, d] * z
            expected[:, i, j] = top * (1 - y) + (x[:, c, b] * (1 - z) + x[:, c, d] * z) * y
    np.testing.assert_allclose(out, expected, atol=2e-6)
    for i, j in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        np.testing.assert_allclose(out[:, i, j], x[:, i, j], atol=1e-6)


@pytest.mark.parametrize("size", [(1, 3), (3, 5)])
def test_gradient_of_double_is_that_of_its_gathers(size):
    x, g = normal(2, *size, 3), normal(2, 2 * size[0], 2 * size[1], 3)
    ours = jax.grad(lambda x: jnp.sum(resize.double(x) * g))(x)
    plain = jax.grad(lambda x: jnp.sum(resize._double(resize._double(x, 1), 2) * g))(x)
    np.testing.assert_allclose(ours, plain, atol=2e-6)


HOOKS = {  # depth 4, 6 and 10 to 14: spec of MASt3R; the others by the same rule, by hand
    1: (0, 0, 0, 1),
    2: (0, 1, 1, 2),
    3: (0, 1, 2, 3),
    4: (0, 2, 3, 4),
    5: (0, 2, 3, 5),
    6: (0, 3, 4, 6),
    7: (0, 3, 5, 7),
    8: (0, 4, 6, 8),
    9: (0, 4, 6, 9),
    10: (0, 5, 7, 10),
    11: (0, 5, 8, 11),
    12: (0, 6, 9, 12),
    13: (0, 6, 9, 13),
    14: (0, 7, 10, 14),
}


@pytest.mark.parametrize("depth", HOOKS)
def test_hooks_of_every_depth(depth):
    config = StereoConfig(decoder=DecoderConfig(depth=depth))
    assert config.hooks == HOOKS[depth]
    config.check()
    chosen = dataclasses.replace(config, head=HeadConfig(hooks=(0, 0, 1, 1)))
    assert chosen.hooks == (0, 0, 1, 1)


# Outputs ------------------------------------------------------------------------------------------


def test_points_and_raw_are_inverse():
    direction = normal(200, 3)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    raw = direction * np.geomspace(1e-4, 8, 200, dtype=np.float32)[:, None]
    points = heads.points_from_raw(raw)
    lengths = np.linalg.norm(raw.astype(np.float64), axis=1)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), np.expm1(lengths), rtol=3e-6)
    np.testing.assert_allclose(heads.raw_from_points(points), raw, rtol=2e-6, atol=1e-10)


@pytest.mark.parametrize("function", [heads.points_from_raw, heads.raw_from_points])
def test_points_and_raw_have_slope_one_at_zero(function):
    jacobian = jax.jacobian(function)(jnp.zeros(3))
    np.testing.assert_allclose(jacobian, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("two_confs", [True, False])
def test_prediction_has_its_ranges(two_confs):
    raw = 3 * normal(2, 4, 5, 3 + 1 + 6 + two_confs)
    raw[0, 0, 0] = 0  # a descriptor of zeros has no direction, and must not be nan
    p = heads.prediction_from_raw(jnp.asarray(raw), two_confs=two_confs)
    np.testing.assert_allclose(p.conf, 1 + np.exp(raw[..., 3]), rtol=1e-6)
    assert (p.conf >= 1).all() and p.desc.shape == (2, 4, 5, 6)
    lengths = np.linalg.norm(p.desc, axis=-1)
    assert lengths[0, 0, 0] == 0
    np.testing.assert_allclose(lengths.ravel()[1:], 1, atol=1e-6)
    np.testing.assert_allclose(
        p.desc_conf, np.exp(raw[..., -1]) if two_confs else p.conf, rtol=1e-6
    )
    grads = jax.grad(
        lambda r: sum(
            jnp.sum(x) for x in jax.tree.leaves(heads.prediction_from_raw(r, two_confs=two_confs))
        )
    )(jnp.asarray(raw))
    assert np.isfinite(grads).all()


@pytest.mark.parametrize("seed", range(4))
def test_plane_base_is_exact_for_a_plane_seen_by_any_camera(seed):
    rng = np.random.default_rng(seed)
    height, width = 48, 32
    K = np.array([[40.0, 0, 13.5], [0, 46.0, 25.0], [0, 0, 1]])
    R, t = tiny.rotation(rng.normal(size=3), 0.4), rng.normal(size=3)  # T_cam1_cam2
    plane, distance = np.array([*rng.uniform(-0.3, 0.3, 2), 1.0]), 3.0  # plane . X = 3 in camera 2
    rays = geometry.pixel_rays(K, height, width)
    points = rays * (distance / (rays @ plane))[..., None] @ R.T + t

    # The module's rays: the centre of the frame at 0, the end of its longer half at 1.
    scale = max(height, width) / 2
    pixel = np.array([[scale, 0, width / 2 - 0.5], [0, scale, height / 2 - 0.5], [0, 0, 1]])
    to_camera = np.linalg.inv(K) @ pixel
    M = (distance * R + np.outer(t, plane)) @ to_camera
    n = plane @ to_camera
    half = np.tan(np.pi / 8)
    start = np.array([half, 0, 0, 0, half, 0, 0, 0, 1, 0, 0, 1])
    bias = np.concatenate([M.ravel(), n]) - start
    params = {
        "norm": {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)},
        "fc1": {"kernel": normal(8, 128), "bias": normal(128)},
        "fc2": {"kernel": np.zeros((128, 12), np.float32), "bias": bias.astype(np.float32)},
    }
    raw = heads.PlaneBase().apply({"params": params}, normal(1, 6, 8), height, width)
    found = np.asarray(heads.points_from_raw(raw))[0]
    np.testing.assert_allclose(found, points, atol=2e-6 * np.abs(points).max())


# The whole network --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    """(compiled network without parameters, parameters); the biases are not zero."""
    params = fresh_params(tiny.CONFIG, 0)
    rng = np.random.default_rng(5)
    params = jax.tree.map(
        lambda a: a + 0.3 * rng.standard_normal(a.shape).astype(np.float32) / a.shape[-1], params
    )
    net = StereoNet(tiny.CONFIG)
    return jax.jit(lambda params, one, two: net.apply({"params": params}, one, two)), params


def photographs(count, height=32, width=48, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (count, height, width, 3)).astype(np.float32)


def assert_same(a, b, atol):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=atol, rtol=atol)


# Sums of equal numbers in another order: 4.1e-6 was seen.
ORDER = 2e-5


def test_outputs_have_the_documented_shapes(network):
    run, params = network
    for p in run(params, photographs(2), photographs(2, seed=1)):
        assert p.pts3d.shape == (2, 32, 48, 3) and p.conf.shape == (2, 32, 48)
        assert p.desc.shape == (2, 32, 48, 4) and p.desc_conf.shape == (2, 32, 48)
        assert (p.conf >= 1).all() and (p.desc_conf >= 0).all()
        np.testing.assert_allclose(np.linalg.norm(p.desc, axis=-1), 1, atol=1e-5)
        assert p.features["encoder"].shape == (2, 6, 16)
        assert [x.shape for x in p.features["decoder"]] == [(2, 6, 24)] * 2
        assert p.features["raw"].shape == (2, 32, 48, 3 + 1 + 4 + 1)
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(p)[:4])


def test_samples_of_a_batch_do_not_see_each_other(network):
    run, params = network
    one, two = photographs(2), photographs(2, seed=1)
    both = run(params, one, two)
    for i in range(2):
        single = run(params, one[i : i + 1], two[i : i + 1])
        for whole, part in zip(both, single, strict=True):
            pick = [x[i : i + 1] for x in (whole.pts3d, whole.conf, whole.desc, whole.desc_conf)]
            assert_same(pick, [part.pts3d, part.conf, part.desc, part.desc_conf], ORDER)


def exchange_views(params):
    """The parameters of a network whose branches have traded places."""
    decoder = {
        name.translate(str.maketrans("12", "21")) if name.startswith("view") else name: value
        for name, value in params["decoder"].items()
        if not name.startswith("view")
    }
    for name, value in params["decoder"].items():
        if name.startswith("view"):
            other = {"view1": "view2", "view2": "view1"}[name[:5]]
            decoder[other + name[5:]] = value
    exchanged = {"head1": params["head2"], "head2": params["head1"], "decoder": decoder}
    return {**params, **exchanged}


def test_exchanging_images_and_branches_exchanges_predictions(network):
    run, params = network
    one, two = photographs(2), photographs(2, seed=1)
    first, second = run(params, one, two)
    again2, again1 = run(exchange_views(params), two, one)
    assert_same((first, second), (again1, again2), ORDER)
    # The branches differ: exchanging only the images is not the same.
    assert np.abs(run(params, two, one)[0].pts3d - second.pts3d).max() > 0.01


def test_each_view_looks_at_the_other(network):
    run, params = network
    one, two = photographs(2), photographs(2, seed=1)
    first, second = run(params, one, two)
    other1, other2 = run(params, one, photographs(2, seed=2))
    np.testing.assert_array_equal(first.features["encoder"], other1.features["encoder"])
    assert np.abs(first.pts3d - other1.pts3d).max() > 1e-3  # through cross-attention
    assert np.abs(second.pts3d - other2.pts3d).max() > 1e-3


def test_views_may_differ_in_size(network):
    run, params = network
    one, two = photographs(1), photographs(1, 48, 32, seed=1)
    first, second = run(params, one, two)
    assert first.pts3d.shape == (1, 32, 48, 3) and second.pts3d.shape == (1, 48, 32, 3)
    alike, _ = run(params, one, photographs(1, seed=1))
    np.testing.assert_allclose(first.features["encoder"], alike.features["encoder"], atol=ORDER)
    assert np.isfinite(first.pts3d).all() and np.isfinite(second.pts3d).all()


# Sizes and configs --------------------------------------------------------------------------------


def count(shapes, prefix=""):
    return sum(int(np.prod(s)) for name, s in shapes.items() if name.startswith(prefix))


def test_the_teacher_has_exactly_the_published_parameters():
    shapes = parameter_shapes(architecture("mast3r"))
    assert count(shapes) == 688_638_856  # spec of MASt3R, section 1
    assert count(shapes, "unused/") == 768 + 4 * 590_080
    assert count(shapes, "encoder/patch_embed/") == 787_456
    assert count(shapes, "encoder/block") == 24 * 12_596_224
    assert count(shapes, "encoder/norm/") == 2_048
    assert count(shapes, "decoder/embed/") == 787_200
    for view in (1, 2):
        assert count(shapes, f"decoder/view{view}_block") == 12 * 9_453_312
        assert count(shapes, f"head{view}/local_features/") == 58_733_824
        # The published head holds a unit of 2 x 590,080 that is listed under "unused" here.
        assert count(shapes, f"head{view}/") == 78_935_492 - 2 * 590_080
    assert count(shapes, "decoder/norm/") == 1_536
    used = dataclasses.replace(architecture("mast3r"), keep_unused=False)
    assert count(parameter_shapes(used)) == 686_277_768


def test_the_embedded_models_are_small():
    teacher = count(parameter_shapes(architecture("moonlet")))
    student = count(parameter_shapes(architecture("moonlet-student")))
    assert teacher <= 12_000_000 and student < teacher / 7


# The students are built in test_students.py: each trace takes seconds.
@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in STUDENTS])
def test_every_architecture_builds(name):
    config = architecture(name)
    assert config.name == name
    config.check()
    image = jax.ShapeDtypeStruct((1, 48, 64, 3), np.float32)
    net = StereoNet(config)
    shapes = jax.eval_shape(net.init, jax.random.key(0), image, image)
    for p in jax.eval_shape(net.apply, shapes, image, image):
        assert p.pts3d.shape == (1, 48, 64, 3) and p.desc.shape == (1, 48, 64, config.head.desc)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_config_survives_json(name):
    config = architecture(name)
    text = json.dumps(config.to_dict())
    assert StereoConfig.from_dict(json.loads(text)) == config
    assert hash(config) == hash(StereoConfig.from_dict(json.loads(text)))  # it is a jit cache key


def change(part, **values):
    data = json.loads(json.dumps(tiny.CONFIG.to_dict()))
    (data[part] if part else data).update(values)
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (change("", colour=1), "Unknown key colour in architecture: it has "),
        (change("encoder", widht=8), "Unknown key widht in encoder: it has depth, grid, heads"),
        (change("encoder", width=20), "encoder.width 20 with encoder.heads 2 gives heads of 10"),
        (change("decoder", heads=5), "decoder.width 24 with decoder.heads 5 gives heads of 4.8"),
        (change("encoder", patch=14), "encoder.patch is 14"),
        (change("encoder", stem=[8, 8]), "has 2 widths; a patch of 16 pixels needs 4"),
        (change("head", hooks=[0, 1, 2, 3]), "head.hooks (0, 1, 2, 3) must be four indices from 0"),
        (change("head", hooks=[0, 1]), "head.hooks (0, 1) must be four indices"),
        (change("head", layers=[8, 8, 8]), "head.layers (8, 8, 8)"),
        (change("decoder", depth=0), "decoder.depth is 0"),
        (change("decoder", heads=0), "decoder.heads is 0, expected an integer from 1"),
        (
            change("encoder", depth=10**6),
            "encoder.depth is 1000000, expected an integer from 1 to 256",
        ),
        (change("encoder", width="16"), "encoder.width is '16'"),
        (
            change("head", layers=[8, 8, -8, 8.5]),
            "expected an integer from 1 to 1048576; head.layers[3] is 8.5",
        ),
        (change("encoder", mlp_ratio=float("nan")), "encoder.mlp_ratio is nan"),
    ],
)
def test_unusable_config_is_one_sentence(data, message):
    with pytest.raises(InputError) as error:
        StereoConfig.from_dict(data)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_unknown_architecture_suggests_the_nearest():
    with pytest.raises(InputError, match="no architecture 'moonlett': did you mean 'moonlet'?"):
        architecture("moonlett")
    with pytest.raises(InputError, match="choose from mast3r, moonlet"):
        architecture("zzz")


# Fresh parameters ---------------------------------------------------------------------------------


def flat(config, seed):
    tree = jax.tree_util.tree_flatten_with_path(fresh_params(config, seed))[0]
    return {"/".join(key.key for key in path): value for path, value in tree}


def test_fresh_parameters_depend_on_name_shape_and_seed_only():
    first, again, other = (flat(tiny.CONFIG, seed) for seed in (3, 3, 4))
    deeper = flat(
        dataclasses.replace(tiny.CONFIG, decoder=dataclasses.replace(tiny.CONFIG.decoder, depth=3)),
        3,
    )
    assert first.keys() == parameter_shapes(tiny.CONFIG).keys()
    for name, value in first.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, again[name])
        np.testing.assert_array_equal(value, deeper[name])  # a new block changes no other tensor
        if name.endswith("/kernel"):
            assert not np.array_equal(value, other[name])
    equal = [n for n in first if n.endswith("attn/qkv/kernel") and "block0" in n and "decoder" in n]
    assert len(equal) == 2 and not np.array_equal(*(first[n] for n in equal))


def test_fresh_kernels_have_the_stated_deviation():
    config = architecture("test")
    shapes = parameter_shapes(config)
    for name, value in flat(config, 0).items():
        if name.endswith("/kernel"):
            expected = standard_deviation(name, shapes[name])
            # Sampling error of a deviation is 1 / sqrt(2 n); there are a hundred kernels.
            assert abs(value.std() / expected - 1) < 5 / np.sqrt(2 * value.size), name
        else:
            assert (value == name.endswith("/scale")).all(), name
    # fan-in by hand: rows of a matrix, pixels x channels of a convolution
    assert standard_deviation("encoder/block0/mlp/fc1/kernel", (32, 128)) == 32**-0.5
    assert standard_deviation("encoder/patch_embed/kernel", (16, 16, 3, 32)) == 768**-0.5
    assert standard_deviation("head1/dpt/resize0/kernel", (4, 4, 8, 8)) == 8**-0.5
    assert standard_deviation("head1/dpt/resize3/kernel", (3, 3, 24, 24)) == 216**-0.5
    assert standard_deviation("head2/plane/fc2/kernel", (128, 12)) == 1e-3
    assert standard_deviation("head2/dpt/head2/kernel", (1, 1, 16, 4)) == 0.02 / 4
