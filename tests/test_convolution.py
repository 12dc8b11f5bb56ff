"""The 3 x 3 convolution whose kernel's gradient is matrix products: the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lunar_distill_jax.models import convolution


@pytest.mark.parametrize(
    ("shape", "out"),
    [
        ((2, 9, 14, 5), 7),
        ((1, 1, 3, 2), 4),
        ((2, 40, 60, 3), 2),  # four blocks of rows
        ((1, 37, 120, 3), 2),  # three, the last one not full
    ],
)
def test_gradients_are_those_of_the_plain_convolution(shape, out):
    rng = np.random.default_rng(0)
    x, g = (rng.normal(size=(*shape[:3], c)).astype(np.float32) for c in (shape[3], out))
    kernel = rng.normal(size=(3, 3, shape[3], out)).astype(np.float32)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=convolution.LAYOUT, precision="highest"
        )

    ours, theirs = (jax.vjp(f, x, kernel) for f in (convolution.conv3x3, plain))
    np.testing.assert_allclose(ours[0], theirs[0], atol=2e-5)
    for a, b in zip(ours[1](g), theirs[1](g), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * np.abs(b).max())  # seen 1.1e-6
    stacked = jax.vmap(convolution.kernel_gradient)(
        *(jnp.stack([t, 2 * t]) for t in (x, kernel, g))
    )
    np.testing.assert_allclose(stacked[1], 4 * stacked[0], rtol=1e-5, atol=1e-5)


def test_halving_is_every_other_pixel_of_the_plain_convolution():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 10, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 5)).astype(np.float32)
    want = jax.lax.conv_general_dilated(
        x,
        kernel,
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=convolution.LAYOUT,
        precision="highest",
    )
    np.testing.assert_allclose(convolution.halve3x3(x, kernel), want, atol=5e-6)  # seen 2e-6


def test_other_convolutions_are_left_alone(monkeypatch):
    def never(*_):
        raise AssertionError

    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    layout = {"dimension_numbers": convolution.LAYOUT}
    monkeypatch.setattr(convolution, "conv3x3", never)
    monkeypatch.setattr(convolution, "halve3x3", never)
    ones = ((1, 1), (1, 1))
    for options in (
        {"window_strides": (1, 2), "padding": ones},
        {"window_strides": (1, 1), "padding": "VALID"},
        {"window_strides": (1, 1), "padding": ones, "rhs_dilation": (2, 2)},
        {"window_strides": (1, 1), "padding": ones, "precision": "highest"},
    ):
        convolution.convolution(x, kernel, **options, **layout)
    grouped = {"window_strides": (1, 1), "padding": ones, "feature_group_count": 4}
    convolution.convolution(x, kernel[:, :, :1], **grouped, **layout)
    with pytest.raises(AssertionError):
        convolution.convolution(x, kernel, window_strides=(1, 1), padding=ones, **layout)
