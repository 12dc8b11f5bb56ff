"""View 2 at its four quarter turns: the best is found, and turned back exactly."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import lunar_distill_jax as ld
from lunar_distill_jax.errors import InputError
from lunar_distill_jax.twoview import turns
from lunar_distill_jax.types import Prediction


def upright_only(image1, image2):
    """Descriptors that match where both pictures show the same thing at the same place."""

    def view(image):
        desc = image / jnp.linalg.norm(image, axis=-1, keepdims=True)
        ones = jnp.ones(image.shape[:3])
        return Prediction(image * 2, ones, desc, ones)

    one, two = view(image1), view(image2)
    same = jnp.mean(jnp.abs(image1 - image2), (1, 2, 3)) < 1e-3
    scrambled = jnp.where(same[:, None, None, None], two.desc, two.desc[..., ::-1])
    return one, two.replace(desc=scrambled)


@pytest.mark.parametrize("quarters", range(4))
def test_the_turn_that_matches_is_kept_and_undone(quarters):
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(0.1, 1, (3, 16, 16, 8)).astype(np.float32))
    rolled = turns.turned(image, quarters)
    one, two, found = turns.predict_turned(upright_only, image, rolled)
    assert found.tolist() == [-quarters % 4] * 3
    np.testing.assert_array_equal(one.pts3d, 2 * image)
    np.testing.assert_array_equal(two.pts3d, 2 * rolled)  # pixel by pixel of the picture as given
    np.testing.assert_array_equal(two.desc, turns.turned(one.desc, quarters))


def test_predict_with_turns_is_the_prediction_of_the_turned_picture():
    stereo = ld.build(tiny.CONFIG, seed=3)
    rng = np.random.default_rng(1)
    image1, image2 = (rng.uniform(-1, 1, (2, 32, 48, 3)).astype(np.float32) for _ in range(2))
    one, two = ld.predict(stereo, image1, image2, turns=4)
    assert two.pts3d.shape == (2, 32, 48, 3)
    each = [ld.predict(stereo, image1, np.rot90(image2, k, (1, 2))) for k in range(4)]
    for row in range(2):
        scores = [float(turns.likeness(a.desc, b.desc)[row]) for a, b in each]
        best = int(np.argmax(scores))
        np.testing.assert_allclose(one.pts3d[row], each[best][0].pts3d[row], rtol=1e-4, atol=1e-5)
        back = np.rot90(np.asarray(each[best][1].pts3d[row]), -best)
        np.testing.assert_allclose(two.pts3d[row], back, rtol=1e-4, atol=1e-5)


def test_turns_say_what_they_do_not_go_with():
    stereo, image = ld.build(tiny.CONFIG), np.zeros((1, 32, 32, 3), np.float32)
    with pytest.raises(InputError, match="turns is 3: give 1, or 4"):
        ld.predict(stereo, image, image, turns=3)
    with pytest.raises(InputError, match="neither features nor true_shapes"):
        ld.predict(stereo, image, image, turns=4, features=True)
