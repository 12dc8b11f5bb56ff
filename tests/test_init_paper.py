"""The paper's initialisation against the tensors of its public code, and its controls."""

import json

import numpy as np
import pytest
from test_golden import golden_folder, recipe
from test_golden import stereo as golden_teacher

import lunar_distill_jax as ld
from lunar_distill_jax.convert.torch_names import LINES, to_torch, torch_name, torch_shape
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.init.controls import HeadPair, heads_only, paper_fixed
from lunar_distill_jax.init.depth import layer_map, mapped_name, segments
from lunar_distill_jax.init.paper import _compress_on_device, as_matrix, compress, paper
from lunar_distill_jax.init.planes import channel_sources, logit_scale, plane_sources, take
from lunar_distill_jax.init.student import init_student
from lunar_distill_jax.models.config import DecoderConfig, EncoderConfig, HeadConfig, StereoConfig
from lunar_distill_jax.models.fresh import parameter_shapes
from lunar_distill_jax.models.rope import rotary_table, rotate

EPS = np.finfo(np.float32).eps
RUNS = [(c, m) for c in ("svd", "direct_truncation") for m in ("uniform", "last_k", "first_k")]


def flat(stereo):
    import flax.traverse_util

    return flax.traverse_util.flatten_dict(stereo.params, sep="/")


def golden_student():
    """{our name: array}: the recipe's numbers; the reference's shell has no encoder blocks."""
    config = StereoConfig(
        encoder=EncoderConfig(width=8, depth=1, heads=2),
        decoder=DecoderConfig(width=8, depth=5, heads=2, mlp_ratio=1.0),
        head=HeadConfig(width=24, layers=(8, 16, 32, 48), last=12, desc=10),
        keep_unused=True,
    )
    out = {}
    for name, shape in parameter_shapes(config).items():
        if not name.startswith("encoder/block"):
            axes = next(line.axes for line in LINES if line.ours.fullmatch(name))
            torch = torch_name(name)
            array = recipe.recipe_array(torch, torch_shape(shape, axes), 3001)
            out[name] = array if axes is None else array.transpose(axes)
    return out


@pytest.fixture(scope="module")
def golden():
    folder = golden_folder()
    return np.load(folder / "svd.npz"), json.loads((folder / "svd.json").read_text())


def condition(matrix, target) -> float:
    """How far float32 may be off: eps times the largest singular value over the gap at the cut.

    The reference computes in float32 and is off by half of this where the gap is 1 / 1300 (6.7e-5);
    numpy's float32 and float64 SVDs agree there to 4e-7.
    """
    s, rank = np.linalg.svd(matrix, compute_uv=False), min(target)
    gap = s[rank - 1] - s[rank] if rank < len(s) else s[0]
    return EPS * (s[0] / gap + 32)  # seen 9 without a cut


@pytest.mark.parametrize(("compression", "strategy"), RUNS)
def test_every_tensor_of_the_reference(golden, compression, strategy):
    arrays, runs = golden
    run = runs["runs"][f"{compression}/{strategy}"]
    teacher = flat(golden_teacher("A"))
    student = golden_student()
    blocks = layer_map(strategy, 5, 12)
    made, how = paper(teacher, student, blocks, compression)
    torch = to_torch(made)
    assert set(torch) == set(run["checksums"])
    untouched = {torch_name(name) for name in student if name not in how}
    assert untouched == set(run["untouched"])
    bounds = {
        torch_name(name): condition(
            as_matrix(name, teacher[mapped_name(name, blocks)]),
            as_matrix(name, student[name]).shape,
        )
        for name, kind in how.items()
        if (kind, compression) == ("compressed", "svd")
    }
    for name, (shape, total, size) in run["checksums"].items():
        ours = torch[name].astype(np.float64)
        assert list(ours.shape) == shape, name
        bound = bounds.get(name, EPS) * size
        assert abs(ours.sum() - total) <= bound, name
        assert abs(np.abs(ours).sum() - size) <= bound, name
    same_key = {torch_name(n) for n, kind in how.items() if kind == "copied" and "block" not in n}
    assert same_key <= set(run["copied_verbatim_same_key"])
    if (compression, strategy) != ("svd", "uniform"):
        return
    compared = 0
    for key in arrays.files:
        kind, _, name = key.partition("/")
        if kind.startswith("student"):
            ours = torch[name][::16] if kind == "student_every16th_row" else torch[name]
            theirs = arrays[key]
            bound = bounds.get(name, 0.0) * np.abs(theirs).max()
            assert np.abs(ours - theirs).max() <= bound, name
            compared += 1
    assert compared == 259


def test_single_matrices_of_the_reference(golden):
    arrays, _ = golden
    for n in range(6):
        W, target = arrays[f"unit/{n}/W"], arrays[f"unit/{n}/target"]
        for kind, name in (("svd", "svd"), ("direct_truncation", "direct")):
            theirs = arrays[f"unit/{n}/{name}"]
            ours = compress(W[None], *target, kind)[0]
            bound = condition(W, target) * np.abs(theirs).max() if name == "svd" else 0
            np.testing.assert_allclose(ours, theirs, atol=bound, rtol=0)


@pytest.mark.parametrize(
    "shape, target", [((20, 12), (9, 7)), ((12, 20), (7, 9)), ((12, 12), (12, 4)), ((9, 9), (9, 9))]
)
def test_compression_is_the_corner_of_the_truncated_svd(shape, target):
    rng = np.random.default_rng(0)
    W = rng.standard_normal((3, *shape)).astype(np.float32)
    u, s, vt = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    rank = min(target)
    whole = (u[:, :, :rank] * s[:, None, :rank]) @ vt[:, :rank]
    want = whole[:, : target[0], : target[1]]
    np.testing.assert_allclose(compress(W, *target), want, atol=1e-6)  # seen 2e-7
    bound = max(condition(w, target) for w in W) * np.abs(want).max()
    # The program for accelerators.
    np.testing.assert_allclose(_compress_on_device(W, *target), want, atol=bound, rtol=0)


def test_layer_maps_of_the_reference(golden):
    for label, want in golden[1]["layer_maps"].items():
        depths, strategy = label.split(" ")
        theirs, ours = (int(n) for n in depths.split("->"))
        assert layer_map(strategy, ours, theirs) == want, label
    with pytest.raises(InputError, match="6 decoder blocks one teacher block each, but .* has 4"):
        layer_map("last_k", 6, 4)
    with pytest.raises(InputError, match="no layer mapping 'middle'"):
        layer_map("middle", 2, 4)


@pytest.mark.parametrize(
    "ours, theirs, ends",
    [
        ((0, 3, 4, 6), (0, 6, 9, 12), [2, 4, 6, 9, 11, 12]),  # spec/init.md 3.8
        ((0, 2, 3, 4), (0, 6, 9, 12), [3, 6, 9, 12]),
        ((0, 1, 1, 2), (0, 2, 3, 4), [2, 4]),
        ((0, 6, 9, 12), (0, 6, 9, 12), list(range(1, 13))),
        ((0, 2, 3, 4), (0, 1, 1, 2), [1, 1, 1, 2]),
    ],
)
def test_segments_end_at_the_hooks(ours, theirs, ends):
    runs = segments(ours, theirs)
    assert [run.stop for run in runs] == ends
    assert [run.start for run in runs] == [0, *ends[:-1]]


@pytest.mark.parametrize("theirs, ours", [(16, 16), (16, 32), (32, 16), (16, 48), (16, 64)])
def test_logits_survive_another_head_size(theirs, ours):
    """With the planes of shared frequencies, a head of another size has the same logits."""
    rng = np.random.default_rng(1)
    positions = rng.integers(0, 20, (20, 2))
    planes = plane_sources(theirs, ours)
    used = take(np.eye(theirs), channel_sources(theirs, ours), 0)  # [ours, theirs]
    assert (used.sum(0) <= 1).all() and used.sum() == min(theirs, ours)
    q, k = rng.standard_normal((2, 20, theirs)) @ (used.T @ used)  # other planes are dropped

    def logits(q, k, size):
        turned = [np.asarray(rotate(x, *rotary_table(positions, size, 100.0))) for x in (q, k)]
        return turned[0] @ turned[1].T / size**0.5

    scale = logit_scale(theirs, ours)
    want = logits(q, k, theirs)
    got = logits(q @ used.T * scale, k @ used.T * scale, ours)
    np.testing.assert_allclose(got, want, atol=2e-6 * np.abs(want).max())  # seen 4e-7
    assert np.count_nonzero(planes >= 0) == min(theirs, ours) // 4


def tiny_pair():
    """A teacher of 3 heads and a student of 2 as large, both 2 blocks deep, as flat dicts."""
    rng = np.random.default_rng(2)

    def network(width, hidden):
        out = {}
        for view in (1, 2):
            for block in range(2):
                at = f"decoder/view{view}_block{block}"
                for name, shape in {
                    "attn/qkv": (width, 3 * width),
                    "attn/proj": (width, width),
                    **{f"cross_attn/{m}": (width, width) for m in ("q", "k", "v", "proj")},
                    "mlp/fc1": (width, hidden),
                    "mlp/fc2": (hidden, width),
                }.items():
                    out[f"{at}/{name}/kernel"] = rng.standard_normal(shape, np.float32)
                    out[f"{at}/{name}/bias"] = rng.standard_normal(shape[1], np.float32)
        out["head1/dpt/head0/kernel"] = rng.standard_normal((3, 3, 8, 4), np.float32)
        out["head1/dpt/project1/kernel"] = rng.standard_normal((1, 1, width, 8), np.float32)
        return out

    return network(48, 96), network(32, 32)


def value_entries(flat_params, width):
    """The student's value kernels and biases, of self- and cross-attention."""
    for name, array in flat_params.items():
        if "attn/qkv" in name:
            yield name, array[..., 2 * width :]
        elif "cross_attn/v/" in name:
            yield name, array


def perturbed(teacher, width):
    """The teacher with other queries and keys, in self- and cross-attention."""
    rng, out = np.random.default_rng(3), dict(teacher)
    for name, array in teacher.items():
        if "attn/qkv" in name:
            noise = rng.standard_normal(array.shape, np.float32)
            noise[..., 2 * width :] = 0
            out[name] = array + noise
        elif "cross_attn/q/" in name or "cross_attn/k/" in name:
            out[name] = array + rng.standard_normal(array.shape, np.float32)
    return out


def changed_values(method, teacher, student):
    """Of the student's value tensors, those that depend on the teacher's queries and keys."""
    one, other = (method(t, student)[0] for t in (teacher, perturbed(teacher, 48)))
    pairs = zip(value_entries(one, 32), value_entries(other, 32), strict=True)
    return [name for (name, a), (_, b) in pairs if not np.array_equal(a, b)]


def test_the_papers_values_come_from_queries_and_keys_and_the_fixed_ones_do_not():
    teacher, student = tiny_pair()
    heads = HeadPair(3, 16, 2, 16)
    wrong = changed_values(lambda t, s: paper(t, s, [0, 1]), teacher, student)
    assert len(wrong) == 8 and all("attn/qkv" in name for name in wrong)  # 2 views, 2 blocks, W, b
    assert not changed_values(lambda t, s: paper_fixed(t, s, [0, 1], heads), teacher, student)


def test_whole_heads_keep_their_place_without_compression():
    """Direct truncation of the fixed kind copies channels: the first heads' own."""
    teacher, student = tiny_pair()
    name = "decoder/view1_block1/attn/qkv"
    made, _ = paper_fixed(teacher, student, [0, 1], HeadPair(3, 16, 2, 16), "direct_truncation")
    for third in range(3):
        ours = made[f"{name}/kernel"][:, third * 32 :][:, :32]
        theirs = teacher[f"{name}/kernel"][:32, third * 48 :][:, :32]
        np.testing.assert_array_equal(ours, theirs)
    # One student head of 32 channels for teacher heads of 16: every second plane, in each half.
    made, how = paper_fixed(teacher, student, [0, 1], HeadPair(3, 16, 1, 32), "direct_truncation")
    q = made["decoder/view2_block0/cross_attn/q/kernel"]
    source = teacher["decoder/view2_block0/cross_attn/q/kernel"]
    np.testing.assert_allclose(q[:, 0::2], source[:32, :16] * 2**0.25, rtol=1e-6)
    assert not q[:, 1::2].any()
    proj = made["decoder/view2_block0/cross_attn/proj/kernel"]
    np.testing.assert_array_equal(
        proj[:16], teacher["decoder/view2_block0/cross_attn/proj/kernel"][:16, :32]
    )
    assert not proj[16:].any()
    assert how["decoder/view1_block0/mlp/fc1/kernel"] == "compressed"


def test_heads_only_copies_what_keeps_its_shape():
    teacher, student = tiny_pair()
    made, how = heads_only(teacher, student)
    assert how == {"head1/dpt/head0/kernel": "copied"}
    for name, array in made.items():
        source = teacher if name in how else student
        np.testing.assert_array_equal(array, source[name])


def test_a_vector_that_is_too_long_stays_and_a_matrix_is_refused():
    teacher, student = tiny_pair()
    student["decoder/view1_block0/mlp/fc1/bias"] = np.full(120, 7, np.float32)
    made, how = paper(teacher, student, [0, 1])
    assert "decoder/view1_block0/mlp/fc1/bias" not in how
    assert (made["decoder/view1_block0/mlp/fc1/bias"] == 7).all()
    student["decoder/view1_block0/mlp/fc1/kernel"] = np.zeros((32, 120), np.float32)
    with pytest.raises(InputError, match="fc1/kernel is 120 x 32 .* only 96 x 48.*cannot grow"):
        paper(teacher, student, [0, 1])


def test_by_name_with_a_report():
    teacher = ld.build("moonlet", seed=1)
    student, report = init_student(teacher, "moonlet-student", "paper", seed=4)
    fresh = ld.build("moonlet-student", seed=4)
    assert report["blocks"] == [0, 2] and report["method"] == "paper"
    assert set(report["parameters"]) == set(flat(student))
    assert report["parameters"]["encoder/stem/conv1/kernel"]["how"] == "fresh"
    assert report["parameters"]["decoder/view1_block1/mlp/fc1/kernel"]["how"] == "compressed"
    assert flat(student)["decoder/view2_block1/mlp/fc1/kernel"].shape == (64, 192)
    np.testing.assert_array_equal(
        flat(student)["encoder/block0/mlp/fc1/kernel"], flat(fresh)["encoder/block0/mlp/fc1/kernel"]
    )
    assert student.meta["source"].startswith("paper from moonlet")
    _, own = init_student(teacher, fresh, "heads_only")
    assert own["parameters"]["encoder/stem/conv1/kernel"]["how"] == "given"
    with pytest.raises(InputError, match="no init method 'svd': choose from random"):
        init_student(teacher, "moonlet-student", "svd")
    with pytest.raises(InputError, match="no compression 'pca'"):
        init_student(teacher, "moonlet-student", "paper", compression="pca")
