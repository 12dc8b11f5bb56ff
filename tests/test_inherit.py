"""What a student takes over from its teacher."""

import dataclasses

import jax
import numpy as np
import pytest

import lunar_distill_jax as ld
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.init.inherit import first_student, inherit, teacher_name
from lunar_distill_jax.models.zoo import MOONLET


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [(2, 4, [1, 3]), (1, 4, [3]), (4, 4, [0, 1, 2, 3]), (3, 12, [3, 7, 11]), (4, 6, [0, 2, 3, 5])],
)
def test_blocks_keep_their_relative_depth(ours, theirs, expected):
    depths = {"encoder": (ours, theirs), "decoder": (1, 1)}
    names = [teacher_name(f"encoder/block{i}/norm1/scale", depths) for i in range(ours)]
    assert names == [f"encoder/block{i}/norm1/scale" for i in expected]
    assert teacher_name("head1/dpt/head0/kernel", depths) == "head1/dpt/head0/kernel"


def test_the_same_architecture_inherits_everything():
    teacher = ld.build("moonlet", seed=1)
    params, share = inherit(teacher, ld.build("moonlet", seed=2))
    assert share == 1
    np.testing.assert_array_equal(
        params["decoder"]["view2_block3"]["mlp"]["fc1"]["kernel"],
        teacher.params["decoder"]["view2_block3"]["mlp"]["fc1"]["kernel"],
    )


def test_a_shallower_student_inherits_what_fits_and_knows_how_much():
    config = dataclasses.replace(
        MOONLET,
        name="shallow",
        encoder=dataclasses.replace(MOONLET.encoder, depth=1),
        decoder=dataclasses.replace(MOONLET.decoder, depth=2),
    )
    teacher, fresh = ld.build("moonlet", seed=1), ld.build(config, seed=2)
    student, share = first_student(config, "inherit", teacher, seed=2)
    assert 0.95 < share <= 1
    mine = student.params["decoder"]["view1_block1"]["attn"]["qkv"]["kernel"]
    np.testing.assert_array_equal(
        mine, teacher.params["decoder"]["view1_block3"]["attn"]["qkv"]["kernel"]
    )
    assert np.any(mine != fresh.params["decoder"]["view1_block1"]["attn"]["qkv"]["kernel"])


@pytest.mark.parametrize("method", ["fresh", "inherit", "structured"])
def test_a_given_encoder_stays_whatever_the_method(method):
    teacher, given = ld.build("moonlet", seed=1), ld.build("moonlet-student", seed=3)
    student, _ = first_student("moonlet-student", method, teacher, seed=2, encoder=given)
    jax.tree.map(np.testing.assert_array_equal, student.params["encoder"], given.params["encoder"])
    with pytest.raises(InputError, match="encoder of test is .* same encoder"):
        first_student("moonlet-student", method, teacher, encoder=ld.build("test"))


def test_other_shapes_stay_fresh():
    teacher, fresh = ld.build("moonlet", seed=1), ld.build("test", seed=2)
    params, share = inherit(teacher, fresh)
    assert share < 0.01
    np.testing.assert_array_equal(
        params["encoder"]["block0"]["attn"]["qkv"]["kernel"],
        fresh.params["encoder"]["block0"]["attn"]["qkv"]["kernel"],
    )


def test_unknown_method_and_missing_teacher():
    with pytest.raises(InputError, match="no init 'svd': choose from fresh, inherit"):
        first_student("test", "svd", None)
    with pytest.raises(InputError, match="no teacher to inherit from"):
        first_student("test", "inherit", None)
