"""Losses of a caption against plain numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.losses import sequence

B, C, T, V, H, P = 2, 3, 4, 7, 2, 5
rng = np.random.default_rng(0)
LOGITS, TARGETS = 3 * rng.normal(size=(B, C, T, V)), rng.integers(0, V, (B, C, T)).astype(np.int32)
LOG_PROBS = LOGITS - np.logaddexp.reduce(LOGITS, axis=-1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy(smoothing):
    goal = (1 - smoothing) * np.eye(V)[TARGETS] + smoothing / V
    expected = -np.sum(goal * LOG_PROBS, axis=-1)
    got = sequence.cross_entropy(jnp.float32(LOGITS), jnp.asarray(TARGETS), smoothing)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_its_gradient_is_the_difference_of_distributions(smoothing):
    goal = (1 - smoothing) * np.eye(V)[TARGETS] + smoothing / V
    gradient = jax.grad(lambda x: sequence.cross_entropy(x, jnp.asarray(TARGETS), smoothing).sum())(
        jnp.float32(LOGITS)
    )
    np.testing.assert_allclose(gradient, np.exp(LOG_PROBS) - goal, rtol=1e-5, atol=1e-5)


def test_large_logits_in_bfloat16_stay_finite():
    logits = jnp.asarray([[2e4, -2e4, 0.0]], jnp.bfloat16)
    losses = sequence.cross_entropy(jnp.repeat(logits, 3, axis=0), jnp.arange(3))
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, [0.0, 4e4, 2e4], rtol=1e-2)


def test_doubly_stochastic():
    weights = rng.dirichlet(np.ones(P), (B, C, T, H))
    mask = np.array([[[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]] * B)
    expected = np.zeros((B, C))
    for b, c in np.ndindex(B, C):
        for h in range(H):
            looked = np.sum(weights[b, c, mask[b, c] > 0, h], axis=0)
            expected[b, c] += np.sum((1 - looked) ** 2) / H
    got = sequence.doubly_stochastic(jnp.float32(weights), jnp.float32(mask))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    # A caption that looks at every position once in all pays nothing.
    once = np.eye(P)[None, None, :, None]
    np.testing.assert_array_equal(sequence.doubly_stochastic(jnp.float32(once), jnp.ones((1, 1, P))), [[0.0]])
