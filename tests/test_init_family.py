"""Every method for pairs of all kinds: what fits is initialised, what cannot be is said."""

import dataclasses

import numpy as np
import pytest
from planted import HEAD, STUDENT, TEACHER, images, random_teacher, stereo

import lunar_distill_jax as ld
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.init.tree import flatten
from lunar_distill_jax.models.fresh import parameter_shapes

PAIRS = images(6, seed=1)
SLIM = dict(width=4, layers=(4, 4, 6, 8), last=2, desc_ratio=0.25)


def decoder(**changes):
    return dataclasses.replace(
        TEACHER, decoder=dataclasses.replace(STUDENT.decoder, **changes), name="student"
    )


def head(**changes):
    return dataclasses.replace(STUDENT, head=dataclasses.replace(HEAD, **changes), name="student")


OTHER_ENCODER = dataclasses.replace(TEACHER.encoder, width=24, heads=3)
# (student, what the decoder's methods leave fresh beside an encoder of another size)
FAMILY = {
    "equal": (TEACHER, ()),
    "fewer units": (decoder(mlp_ratio=1.0), ()),
    "more units": (decoder(mlp_ratio=8.0), ()),
    "heads of 16": (decoder(width=32, heads=2), ()),
    "heads of 4": (decoder(heads=6), ()),
    "heads of 12": (decoder(heads=2), ()),
    "shallower": (decoder(depth=1), ()),
    "deeper": (decoder(depth=3), ()),
    "wider": (decoder(width=48, heads=6), ()),
    "slim head": (head(**SLIM), ()),
    "shared head": (head(shared=True), ()),
    "slim shared head": (head(shared=True, **SLIM), ()),
    "other hooks": (head(hooks=(1, 1, 2, 0)), ()),
    "a plane": (head(plane=True), ("plane/",)),
    "a norm": (head(last_norm=True), ("dpt/norm/",)),
    "another head": (head(kind="catconv"), ("catconv/",)),
    "other descriptors": (head(desc=5), ("local_features/",)),
    "another encoder": (dataclasses.replace(STUDENT, encoder=OTHER_ENCODER), ("encoder/",)),
}
TOO_LARGE = ("more units", "wider", "other hooks", "other descriptors", "another encoder")


def check(student, report, config):
    shapes, tensors = parameter_shapes(config), flatten(student.params)
    assert {k: v.shape for k, v in tensors.items()} == {k: tuple(s) for k, s in shapes.items()}
    assert all(np.isfinite(a).all() for a in tensors.values())
    assert set(report["parameters"]) == set(shapes)
    assert sum(report["numbers"].values()) == sum(a.size for a in tensors.values())
    fresh = [k for k, entry in report["parameters"].items() if entry["how"] == "fresh"]
    own = flatten(ld.build(config, 4).params)
    assert all(np.array_equal(tensors[k], own[k]) for k in fresh)
    return fresh


IN_A_HURRY = ("heads of 4", "deeper", "slim shared head")  # others compile one more encoder each
CASES = [pytest.param(kind, "structured") for kind in FAMILY] + [
    pytest.param(kind, "calibrated", marks=() if kind in IN_A_HURRY else pytest.mark.slow)
    for kind in FAMILY
]


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_any_student_of_the_family(kind, method):
    config, left = FAMILY[kind]
    student, report = ld.init_student(stereo(random_teacher()), config, method, PAIRS, seed=4)
    fresh = check(student, report, config)
    assert {any(part in k for part in left) for k in fresh} <= {True}
    assert all(any(part in k for k in fresh) for part in left)
    widths = report["energy"]["student_width"], report["energy"]["teacher_width"]
    assert widths == (config.decoder.width, TEACHER.decoder.width)


@pytest.mark.parametrize("kind", FAMILY)
def test_the_papers_methods_cut_or_say_that_they_cannot_grow(kind):
    config, _ = FAMILY[kind]
    teacher = stereo(random_teacher())
    for method in ("paper", "paper_fixed", "heads_only"):
        if kind in TOO_LARGE and method != "heads_only":
            with pytest.raises(InputError, match=r"is \d+ x \d+ as a matrix and the teacher's"):
                ld.init_student(teacher, config, method)
        else:
            fresh = check(*ld.init_student(teacher, config, method, seed=4), config)
            assert all(k.startswith(("encoder/", "head")) for k in fresh) or method == "heads_only"


def test_a_shared_head_takes_after_the_first_views():
    teacher = stereo(random_teacher())
    theirs = flatten(teacher.params)
    for method in ("heads_only", "paper"):
        student, report = ld.init_student(teacher, head(shared=True), method)
        name = "dpt/head0/kernel"
        np.testing.assert_array_equal(
            flatten(student.params)[f"head/{name}"], theirs[f"head1/{name}"]
        )
        entry = report["parameters"][f"head/{name}"]
        assert entry["how"] == "copied" and entry["from"] == [f"head1/{name}"]


@pytest.mark.parametrize("method", ["paper_fixed", "structured", "calibrated"])
def test_other_rotary_frequencies_are_refused(method):
    other = dataclasses.replace(STUDENT, rope_base=10.0)
    with pytest.raises(InputError, match="rope_base 10 and its teacher .* with 100"):
        ld.init_student(stereo(random_teacher()), other, method, PAIRS)
