"""Waves of points: what a net of dense layers sees beside the point itself."""

import jax
import jax.numpy as jnp
import numpy as np

from mmgen_jax.nn.mlp_gan import with_waves

COUNT, FINEST = 12, 0.25


def test_waves_are_sines_and_cosines_of_the_lengths_asked_for():
    """A wave's height is known, so its slope gives its number: from the finest to 32 times as long, evenly in the logarithm."""
    point = np.float32([0.3, -1.1])
    waves = with_waves(point[None], COUNT, FINEST)[0]
    np.testing.assert_array_equal(waves[:2], point)
    slope = jax.jacobian(lambda x: with_waves(x[None], COUNT, FINEST)[0])(jnp.asarray(point))
    sine, cosine = np.split(np.asarray(waves[2:], np.float64), 2)
    of_sine, of_cosine = np.split(np.asarray(slope[2:], np.float64), 2)
    height = np.hypot(sine, cosine)
    direction = (of_sine * cosine[:, None] - of_cosine * sine[:, None]) / height[:, None] ** 2
    number = np.linalg.norm(direction, axis=1)
    lengths = FINEST * np.geomspace(32, 1, COUNT)
    np.testing.assert_allclose(2 * np.pi / number, lengths, rtol=1e-4)
    np.testing.assert_allclose(height, number**-0.5, rtol=1e-4)
    # Each two in a row are at right angles.
    pairs = (direction / number[:, None]).reshape(-1, 2, 2)
    np.testing.assert_allclose(
        pairs @ pairs.swapaxes(1, 2), np.broadcast_to(np.eye(2), pairs.shape), atol=1e-4
    )


def test_no_waves():
    x = np.ones((3, 2), np.float32)
    assert with_waves(x, 0, FINEST) is x
