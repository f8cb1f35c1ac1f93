"""Means as (total, count): padding never counts, merging is exact."""

import jax.numpy as jnp
import numpy as np

from mmgen_jax.core import metrics
from mmgen_jax.core.metrics import Mean

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(5, 4)).astype(np.float32)
MASK = RNG.integers(0, 2, (5, 4)).astype(np.float32)


def test_against_numpy():
    np.testing.assert_allclose(Mean.of(jnp.asarray(VALUES)).compute(), VALUES.mean(), rtol=1e-5)
    masked = Mean.of(jnp.asarray(VALUES), jnp.asarray(MASK)).compute()
    np.testing.assert_allclose(masked, np.average(VALUES, weights=MASK), rtol=1e-5)


def test_masked_values_change_nothing():
    for junk in (1e30, np.nan, np.inf):
        spoilt = np.where(MASK > 0, VALUES, np.float32(junk))
        left, right = (Mean.of(jnp.asarray(x), jnp.asarray(MASK)) for x in (VALUES, spoilt))
        assert left.total == right.total and left.count == right.count


def test_a_nan_that_counts_shows():
    assert np.isnan(Mean.of(jnp.array([1.0, jnp.nan])).compute())


def test_merging_parts_equals_the_whole():
    whole = Mean.of(jnp.asarray(VALUES), jnp.asarray(MASK))
    parts = [Mean.of(jnp.asarray(VALUES[s]), jnp.asarray(MASK[s])) for s in (slice(0, 1), slice(1, 5))]
    np.testing.assert_allclose(parts[0].merge(parts[1]).compute(), whole.compute(), rtol=1e-6)
    merged = metrics.merge({"a": parts[0], "b": parts[1]}, {"a": parts[1], "b": parts[0]})
    computed = metrics.compute(merged)
    np.testing.assert_allclose(computed["a"], computed["b"], rtol=1e-6)
    assert isinstance(computed["a"], float)


def test_nothing_counted_is_zero():
    assert Mean.of(jnp.asarray(VALUES), jnp.zeros((5, 4))).compute() == 0.0


def test_numbers_of_other_types():
    assert Mean.of(jnp.array([True, False, True, True])).compute() == 0.75
    assert Mean.of(jnp.int32(3)).compute() == 3.0
    mean = Mean.of(jnp.ones((300, 300), jnp.bfloat16))
    assert mean.total == 90000 and mean.total.dtype == jnp.float32
