"""Normalised images against NumPy; unknown statistics."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.nn import pixels

IMAGE = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)


@pytest.mark.parametrize("name", pixels.STATISTICS)
def test_equals_numpy(name):
    mean, std = pixels.STATISTICS[name]
    got = pixels.normalise(jnp.asarray(IMAGE), name, jnp.float32)
    np.testing.assert_allclose(got, (IMAGE / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert pixels.normalise(jnp.asarray(IMAGE), name, jnp.bfloat16).dtype == jnp.bfloat16


def test_half_spans_minus_one_to_one():
    ends = pixels.normalise(jnp.asarray([[[[0, 255, 0]]]], jnp.uint8), "half", jnp.float32)
    np.testing.assert_array_equal(ends[0, 0, 0], [-1, 1, -1])


def test_unknown_name():
    with pytest.raises(ValueError, match='Unknown statistics of pixels "clipp"\\. Did you mean "clip"'):
        pixels.normalise(jnp.asarray(IMAGE), "clipp", jnp.float32)
