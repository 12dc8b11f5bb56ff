"""Where the other view shows a token's ground: targets of exact geometry, and their losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lunar_distill_jax.data import augment, batches
from lunar_distill_jax.evaluation.flow import true_flow as exact_flow
from lunar_distill_jax.losses import correspondence
from lunar_distill_jax.losses.targets import symmetrised
from lunar_distill_jax.moon import make_pair


@pytest.fixture(scope="module")
def pair():
    return make_pair(7, "dynamic", 64)


def batch_of(*pairs):
    return batches.make_batch(pairs, [None] * len(pairs), augmented=False, matching=0)


def test_flow_is_that_of_the_evaluation(pair):
    one, two = correspondence.true_flow(batch_of(pair))
    for flow, own in ((one, pair), (two, augment.swap_views(pair))):
        exact = exact_flow(own)
        both = np.asarray(flow.seen[0]) & exact.seen
        # Rims and depth steps are decided a little differently (seen 0.4 % of the pixels).
        assert (np.asarray(flow.seen[0]) != exact.seen).mean() < 0.02
        np.testing.assert_allclose(flow.pixels[0][both], exact.uv[both], atol=2e-3)  # seen 4e-4


def test_flow_of_swapped_views_is_the_other_one(pair):
    batch = batch_of(pair)
    one, two = correspondence.true_flow(batch)
    both = correspondence.true_flow(symmetrised({k: jnp.asarray(v) for k, v in batch.items()}))
    for flow, (first, second) in zip(both, ((one, two), (two, one)), strict=True):
        for row, want in enumerate((first, second)):
            seen = np.asarray(want.seen[0])
            np.testing.assert_array_equal(flow.seen[row], seen)
            np.testing.assert_allclose(
                np.asarray(flow.pixels[row])[seen], np.asarray(want.pixels[0])[seen], atol=2e-3
            )


def test_tokens_of_a_shifted_picture_lie_where_it_was_shifted_to():
    grid, p = (4, 6), 8
    y, x = np.mgrid[: grid[0] * p, : grid[1] * p].astype(np.float32)
    pixels = np.stack([x + 12, y - 8], -1)[None]  # 1.5 tokens to the right, one up
    seen = np.ones(pixels.shape[:3], bool)
    seen[0, :8] = False
    places, known = correspondence.token_places(correspondence.Flow(pixels, seen), grid)
    rows, columns = np.divmod(np.arange(24), 6)
    np.testing.assert_allclose(places[0], np.stack([columns + 1.5, rows - 1], -1), atol=1e-6)
    np.testing.assert_array_equal(known[0], rows > 0)
    weights = np.asarray(correspondence.bilinear_weights(places, grid))[0]
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert (
        weights[6, 1] == 0.5 and weights[6, 2] == 0.5
    )  # row 1, column 0 -> row 0, between 1 and 2
    assert weights[11, 5] == 1  # beyond the rim


def test_cross_entropy_is_least_at_the_target_and_blind_to_what_is_not_seen():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(5), (2, 3)).astype(np.float32)
    seen = np.array([[True, False, True], [True, True, False]])
    logits = jnp.log(weights)
    least = correspondence.cross_entropy(logits, weights, seen).value()
    entropy = -(weights * np.log(weights)).sum(-1)[seen].mean()
    assert float(least) == pytest.approx(entropy, rel=1e-5)
    moved = logits.at[0, 1].add(rng.normal(size=5))
    assert float(correspondence.cross_entropy(moved, weights, seen).value()) == float(least)
    gradient = jax.grad(lambda x: correspondence.cross_entropy(x, weights, seen).value())(logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_least_roll_leaves_at_most_45_degrees():
    pair = tiny.plane_pair(2, holes=0.0)
    for quarters in range(4):
        rolled = augment.rotate_view(pair, 1, quarters)
        back = augment.least_roll(rolled)
        assert back == -quarters % 4
        assert abs(augment.roll_deg(augment.rotate_view(rolled, 1, back))) <= 45
