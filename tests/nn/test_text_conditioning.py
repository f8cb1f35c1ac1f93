"""The projected sentence and the conditioning augmentation against numpy; where its noise comes from."""

import jax
import jax.numpy as jnp
import numpy as np

from mmgen_jax.nn import text_conditioning

rng = np.random.default_rng(0)
SENTENCE = 3.0 + 2.0 * rng.normal(size=(300, 6))
# What both modules read: each sentence with zero mean and unit variance over its features.
STANDARD = (SENTENCE - SENTENCE.mean(axis=1, keepdims=True)) / SENTENCE.std(axis=1, keepdims=True)


def init(module):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.float32(SENTENCE)))
    return jax.tree.map(lambda leaf: jnp.float32(rng.normal(0, 0.5, leaf.shape)), shapes)


def test_projection():
    module = text_conditioning.SentenceProjection(4)
    variables = init(module)
    tree = jax.tree.map(np.float64, variables["params"]["project"])
    expected = STANDARD @ tree["kernel"] + tree["bias"]
    expected = np.where(expected > 0, expected, 0.2 * expected)
    np.testing.assert_allclose(module.apply(variables, jnp.float32(SENTENCE)), expected, rtol=1e-4, atol=1e-5)


def test_augmentation():
    module = text_conditioning.ConditioningAugmentation(4, jnp.bfloat16)
    variables = init(module)
    tree = jax.tree.map(np.float64, variables["params"]["statistics"])
    mean, log_variance = np.split(STANDARD @ tree["kernel"] + tree["bias"], 2, axis=1)
    # Without noise it is the mean.
    quiet, statistics = module.apply(variables, jnp.float32(SENTENCE))
    assert quiet.dtype == jnp.bfloat16 and statistics["mean"].dtype == jnp.float32
    np.testing.assert_allclose(statistics["mean"], mean, rtol=0.05, atol=0.05)
    np.testing.assert_allclose(statistics["log_variance"], log_variance, rtol=0.05, atol=0.05)
    np.testing.assert_array_equal(quiet, statistics["mean"].astype(jnp.bfloat16))
    # With it, standard normal numbers come out once mean and deviation are taken away.
    draws = [
        module.apply(variables, jnp.float32(SENTENCE), rngs={"noise": jax.random.key(i)})[0]
        for i in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    noise = (np.float64(draws[0]) - statistics["mean"]) / np.exp(0.5 * statistics["log_variance"])
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_glu_and_join():
    x = rng.normal(size=(2, 3, 3, 4))
    gated = text_conditioning.glu(jnp.float32(x))
    np.testing.assert_allclose(gated, x[..., :2] / (1 + np.exp(-x[..., 2:])), rtol=1e-5, atol=1e-6)
    joined = text_conditioning.join(jnp.float32(x), jnp.float32([[1, 2], [3, 4]]))
    np.testing.assert_array_equal(joined[..., :4], jnp.float32(x))
    np.testing.assert_array_equal(joined[1, ..., 4:], np.broadcast_to([3.0, 4.0], (3, 3, 2)))
