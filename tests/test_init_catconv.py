"""The cheap dense head, initialised: exact at the teacher's size, narrower by its channels."""

import dataclasses

import numpy as np
import pytest
from planted import TEACHER, images, outputs

import lunar_distill_jax as ld
from lunar_distill_jax.init.tree import flatten, unflatten

PAIRS = images(6, seed=1)
CONFIG = dataclasses.replace(
    TEACHER,
    encoder=dataclasses.replace(TEACHER.encoder, patch=8, stem=(8, 8, 16), grid=True),
    head=dataclasses.replace(
        TEACHER.head, kind="catconv", width=16, last=8, plane=True, desc_fine=True, shared=True
    ),
)
NARROW = dataclasses.replace(CONFIG.head, width=8, last=4)


def random_teacher():
    rng = np.random.default_rng(3)
    flat = flatten(ld.build(CONFIG, 0).params)
    for name, array in flat.items():
        if name.endswith(("/bias", "/scale", "/add/kernel")):
            flat[name] = array + rng.normal(0, 0.2, array.shape).astype(np.float32)
    return ld.api.Stereo(CONFIG, unflatten(flat), {})


@pytest.mark.parametrize("method", ["structured", "calibrated"])
def test_a_student_of_the_teachers_size_is_the_teacher(method):
    teacher = random_teacher()
    student, report = ld.init_student(teacher, CONFIG, method, PAIRS, seed=4)
    # seen: 3e-6 of the largest value
    for own, true in zip(outputs(student, PAIRS), outputs(teacher, PAIRS), strict=True):
        np.testing.assert_allclose(own, true, rtol=0, atol=2e-5 * np.abs(true).max())
    assert not [k for k, entry in report["parameters"].items() if entry["how"] == "fresh"]


def test_silent_channels_are_what_a_narrow_head_drops():
    """A teacher that reads only some channels of its head is kept whole by a head of as many."""
    teacher = random_teacher()
    flat = flatten(teacher.params)
    kept = {16: np.arange(1, 16, 2), 8: np.arange(0, 8, 2), 4: np.array([1, 3])}
    for name, array in flat.items():
        module = name.split("/")[-2]
        if "/catconv/" in name and name.endswith("/kernel") or "desc_fine/kernel" in name:
            # What writes the head's channels: none but the kept ones, in each of 16 pixels' blocks.
            blocks = 16 if module == "expand" else 1
            width = array.shape[-1] // blocks
            if module not in ("head2", "desc_fine"):
                silent = np.ones((blocks, width), bool)
                silent[:, kept[width]] = False
                array[..., silent.ravel()] = 0
                bias = flat[name.replace("kernel", "bias")]
                bias[silent.ravel()] = 0
    teacher = ld.api.Stereo(CONFIG, unflatten(flat), {})
    config = dataclasses.replace(CONFIG, name="narrow", head=NARROW)
    student, report = ld.init_student(teacher, config, "structured", seed=4)
    how = {k: v["how"] for k, v in report["parameters"].items() if "catconv" in k}
    assert "fresh" not in how.values() and "channels selected" in how.values()
    # seen: 2e-6 of the largest value
    for own, true in zip(outputs(student, PAIRS), outputs(teacher, PAIRS), strict=True):
        np.testing.assert_allclose(own, true, rtol=0, atol=2e-5 * np.abs(true).max())
