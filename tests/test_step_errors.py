"""What is wrong with a step's devices is said before it runs, with both numbers."""

import jax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from lunar_distill_jax.errors import InputError
from lunar_distill_jax.train import sharding
from lunar_distill_jax.train.step import Step


def mesh(trial, data, model):
    return AbstractMesh((trial, data, model), sharding.AXES)


def test_meshes_larger_than_the_devices():
    many = 2 * len(jax.devices())
    with pytest.raises(InputError, match=rf"needs {many} devices but there are {many // 2}"):
        sharding.make_mesh(1, many, 1)
    with pytest.raises(InputError, match=rf"needs {many} devices but there are {many // 2}"):
        sharding.make_mesh(many, -1, 1)
    with pytest.raises(InputError, match=r"mesh.model is 0: give 1 or more"):
        sharding.make_mesh(1, 1, 0)


def test_batches_that_devices_and_micro_batches_do_not_divide():
    sharding.check_batch(24, mesh(1, 4, 1), 3)
    with pytest.raises(InputError, match=r"has 20 pairs, .* \(4\) times accumulate \(3\).* of 12"):
        sharding.check_batch(20, mesh(1, 4, 1), 3)


def test_parameters_that_the_model_axis_does_not_divide():
    eight = mesh(1, 1, 8)
    assert sharding.spec_of("encoder/block0/attn/qkv/kernel", (16, 48), eight) == P(None, "model")
    with pytest.raises(InputError, match=r"Cannot shard .*qkv/bias \(36,\).*multiple of .* \(8\)"):
        sharding.spec_of("encoder/block0/attn/qkv/bias", (36,), eight)


class Failing:
    """A jitted function that fails when it is compiled, or only when it runs."""

    def __init__(self, said: str, *, compiles: bool):
        self.said, self.compiles = said, compiles

    def lower(self, *_):
        return self

    def compile(self):
        if not self.compiles:
            self()

    def __call__(self, *_):
        raise jax.errors.JaxRuntimeError(self.said)


@pytest.mark.parametrize("compiles", [False, True])
def test_too_little_memory(compiles):
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 92.12G of 15.75G hbm."
    with pytest.raises(InputError, match=r"memory of .*92\.12G, 15\.75G.*raise accumulate"):
        Step(Failing(said, compiles=compiles))(1)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        Step(Failing("INTERNAL: something else", compiles=compiles))(1)


def test_a_step_is_compiled_once():
    calls = []

    @jax.jit
    def count(x):
        calls.append(x)  # as often as it is traced
        return x + 1

    step = Step(count)
    assert [int(step(1)), int(step(2))] == [2, 3] and len(calls) == 1
