"""What tools/aot_tpu.py counts in a program: operations, and bytes that devices send."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tools"))
from aot_counts import Program, collectives, cycles, memory_traffic, operations


def count(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    return operations(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_products_loops_and_branches_are_counted_as_often_as_they_run():
    product = 2 * 3 * 4 * 5
    assert count(lambda a, b: a @ b, (3, 4), (4, 5)) == product
    # Forward, and a product for each side's gradient.
    gradient = jax.grad(lambda a, b: jnp.sum((a @ b) ** 2), (0, 1))
    assert count(gradient, (3, 4), (4, 5)) == 3 * product

    def loop(a, b):
        return jax.lax.scan(lambda c, _: (c, c @ b), a, None, length=7)[1]

    assert count(loop, (3, 4), (4, 5)) == 7 * product

    def branches(x, a, b):
        return jax.lax.cond(x[0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 5)))

    assert count(branches, (1,), (3, 4), (4, 5)) == product


def test_convolutions_do_not_count_products_with_zeros():
    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=LAYOUT)

    forward = 2 * 9 * 4 * 6 * (8 * 8)
    assert count(conv, (1, 16, 16, 4), (3, 3, 4, 6)) == forward
    gradient = jax.grad(lambda x, w: jnp.sum(conv(x, w) ** 2), (0, 1))
    both = count(gradient, (1, 16, 16, 4), (3, 3, 4, 6))
    assert both == pytest.approx(3 * forward, rel=0.15)  # but for products with the border


LAYOUT = ("NHWC", "HWIO", "NHWC")
PROGRAM = """\
HloModule step

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %sum = f32[8]{0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%condition (p: (s32[], f32[8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[2,4]) -> f32[8] {
  %gathered = (f32[2,4]{1,0}, f32[16,4]{1,0}) all-gather-start(%a), replica_groups=[1,8]<=[8]
  %done = f32[16,4]{1,0} all-gather-done(%gathered)
  %loop = (s32[], f32[8]) while(%init), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %pairs = (bf16[6]{0}, bf16[6]{0}) all-to-all(%u, %v), replica_groups={{0,1}}
}
"""


def test_bytes_sent_are_those_of_rings_and_of_every_round_of_a_loop():
    assert collectives(Program(PROGRAM), 8) == {
        "all-reduce": (5, 5 * 2 * 32 * 3 // 4),
        "all-gather": (1, 256 * 7 // 8),
        "all-to-all": (1, 12),
    }


# Of a TPU: S(1) is the chip's own memory; the loop says how often it runs by its condition only.
ON_CHIP = """\
HloModule step

%take (a: f32[4,8], b: f32[8]) -> f32[4,8] {
  %a = f32[4,8]{1,0:T(8,128)} parameter(0)
  %b = f32[8]{0:T(128)S(1)} parameter(1)
  %whole = f32[4,8]{1,0:T(8,128)} bitcast(%a)
  ROOT %put = f32[4,8]{1,0:T(8,128)} dynamic-update-slice(%whole, %b, %i)
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) parameter(0)
  %x = f32[4,8]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %row = f32[1,8]{1,0:T(8,128)S(1)} dynamic-slice(%x, %i), dynamic_slice_sizes={1,8}
  %square = f32[8]{0:T(128)S(1)} multiply(%row, %row)
  %out = f32[4,8]{1,0:T(8,128)} fusion(%x, %square), kind=kLoop, calls=%take, \
backend_config={"estimated_cycles":"70"}
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(4)
  ROOT %less = pred[]{:T(512)} compare(%j, %n), direction=LT
}

ENTRY %main (w: bf16[100]) -> f32[4,8] {
  %w = bf16[100]{0:T(128)} parameter(0)
  %part = ((bf16[100]{0:T(128)}), bf16[40]{0:T(128)S(1)}, s32[]{:S(2)}) \
slice-start(%w), slice={[0:40]}
  %held = bf16[40]{0:T(128)S(1)} slice-done(%part)
  %start = f32[4,8]{1,0:T(8,128)} broadcast(%held)
  %loop = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) while(%init), condition=%condition, body=%body
}
"""


def test_memory_is_counted_where_it_leaves_the_chip_and_in_every_round():
    whole, row = 4 * 8 * 4, 8 * 4
    prefetched = 40 * 2  # of 100
    # A round reads a row and writes one in place; its square stays on the chip.
    assert memory_traffic(Program(ON_CHIP)) == prefetched + whole + 4 * (row + row)
    assert cycles(Program(ON_CHIP)) == 4 * 70
    outside = ON_CHIP.replace("%square = f32[8]{0:T(128)S(1)}", "%square = f32[8]{0:T(128)}")
    # The square is written, and read again as what the fusion puts into its array.
    assert memory_traffic(Program(outside)) == prefetched + whole + 4 * (row + row + 2 * row)
