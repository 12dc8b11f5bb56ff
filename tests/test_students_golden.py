"""The paper's students against the original PyTorch code: full size, end to end, by formula.

Their tensors go by the names of the paper's code, where token positions are (x, y); ours are
(row, column), and reading exchanges the axes. That code feeds its encoders pixels in [-1, 1].
"""

import dataclasses
import functools
import math
import pathlib

import jax
import numpy as np
import pytest
from conftest import optimized
from golden_models import recipe
from test_encoders import assert_close, golden

import lunar_distill_jax.api as ld
from lunar_distill_jax.convert.checkpoint import from_pytorch
from lunar_distill_jax.convert.students import student_lines
from lunar_distill_jax.convert.torch_file import Checkpoint
from lunar_distill_jax.convert.torch_names import torch_name, torch_shape
from lunar_distill_jax.models.fresh import array_shapes
from lunar_distill_jax.models.zoo import architecture

CASES = {"S3_recon_pad": ("s3", 4054), "S1": ("s1", 4052), "S4": ("s4", 4053)}
# 14 s each, of which most is the formula.
SLOW = [pytest.param(c, marks=pytest.mark.slow) for c in CASES]


def by_formula(name: str, seed: int) -> Checkpoint:
    """A file of the paper's student as its code would save it; nothing says which one it is."""
    config = dataclasses.replace(architecture(name), keep_unused=True)
    lines, tensors = student_lines(config), {}
    for ours, shape in array_shapes(config).items():
        axes = next(line.axes for line in lines if line.ours.fullmatch(ours))
        torch = torch_name(ours, lines)
        tensors[torch] = recipe.recipe_array(torch, torch_shape(shape, axes), seed)
    return Checkpoint(pathlib.Path(f"{name}.pth"), tensors)


@functools.lru_cache(maxsize=1)
def predicted(case: str):
    """-> (golden arrays, both predictions) of a case."""
    name, seed = CASES[case]
    arrays = golden("students_e2e")
    config, params, meta = from_pytorch(by_formula(name, seed))
    assert config.name == name and config.keep_unused
    network = ld.Stereo(config, params, meta, params.pop("batch_stats", {}))
    assert (
        sum(math.prod(p.shape) for p in jax.tree.leaves(params))
        == {
            "s1": 135_712_440,
            "s3": 94_907_144,
            "s4": 138_464_840,
        }[name]
    )
    images = [arrays[f"{case}/in/img{view}"].transpose(0, 2, 3, 1) for view in (1, 2)]
    with optimized(), jax.default_matmul_precision("highest"):
        return arrays, jax.device_get(ld.predict(network, *images, features=True))


@pytest.mark.parametrize("case", SLOW)
def test_whole_students_match_the_original(case):
    arrays, predictions = predicted(case)
    for view, ours in zip((1, 2), predictions, strict=True):
        f, points = ours.features, ("pts3d_1", "pts3d_in_other_view_2")[view - 1]
        for name, mine, bound in (  # in forward order
            (f"enc{view}", f["encoder"], 3e-5),
            (f"dec{view}_first_last", np.stack([f["decoder"][0], f["decoder"][-1]]), 3e-5),
            (f"raw_pts{view}_call0", f["raw"][..., :4].transpose(0, 3, 1, 2), 3e-5),
            (f"out/{points}", ours.pts3d, 1e-4),
            (f"out/conf_{view}", ours.conf, 1e-4),
            (f"out/desc_{view}_stride4", ours.desc[:, ::4, ::4], 1e-4),
            (f"out/desc_conf_{view}", ours.desc_conf, 1e-4),
        ):
            assert_close(mine, arrays[f"{case}/{name}"], bound, f"{case} {name}")
        positions = arrays[f"{case}/pos{view}"][..., ::-1]
        np.testing.assert_array_equal(f["positions"], positions[0])
