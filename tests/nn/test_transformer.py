"""The decoder block against plain numpy in float64; its cache; rows that share an image; LayerNorm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmgen_jax.nn.norm import LayerNorm
from mmgen_jax.nn.transformer import DecoderBlock

B, C, T, F, H, P, D = 2, 2, 4, 8, 2, 5, 6
rng = np.random.default_rng(0)
X, IMAGE = rng.normal(size=(B * C, T, F)), rng.normal(size=(B, P, D))
MASK = np.tril(np.ones((1, T, T), bool))


def make(**fields):
    return DecoderBlock(**{"features": F, "heads": H, "mlp_ratio": 2, **fields})


def run(block, x, image, mask, cache=None, train=False):
    return block(x, block.image(image), mask, cache, train)


@pytest.fixture(scope="module")
def variables():
    variables = make().init(jax.random.key(0), jnp.float32(X), jnp.float32(IMAGE), MASK, method=run)
    # Biases and scales that are not what they start as.
    noise = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + jnp.float32(0.3 * noise.normal(size=x.shape)), variables)


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def norm(x, p, epsilon=1e-6):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def attend(query, key, value, mask):
    """One row: [T, F], [K, F], [K, F], [T, K] -> [T, F], weights [H, T, K]."""
    outs, all_weights = [], []
    for h in range(H):
        part = slice(h * F // H, (h + 1) * F // H)
        scores = np.where(mask, query[:, part] @ key[:, part].T / np.sqrt(F // H), -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        outs.append(weights @ value[:, part])
        all_weights.append(weights)
    return np.concatenate(outs, axis=-1), np.stack(all_weights)


def reference(p, x, image):
    """One row in float64. x: [T, F]; image: [P, D]."""
    query, key, value = np.split(dense(norm(x, p["self_norm"]), p["self_qkv"]), 3, axis=-1)
    x = x + dense(attend(query, key, value, MASK[0])[0], p["self_out"])
    key, value = np.split(dense(image, p["cross_kv"]), 2, axis=-1)
    attended, weights = attend(dense(norm(x, p["cross_norm"]), p["cross_q"]), key, value, True)
    x = x + dense(attended, p["cross_out"])
    hidden = dense(norm(x, p["mlp_norm"]), p["mlp_in"])
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    return x + dense(hidden, p["mlp_out"]), weights


def test_equals_numpy(variables):
    got, weights, cache = make().apply(variables, jnp.float32(X), jnp.float32(IMAGE), MASK, method=run)
    assert cache is None
    params = jax.tree.map(np.float64, variables["params"])
    for n in range(B * C):
        expected = reference(params, X[n], IMAGE[n // C])
        np.testing.assert_allclose(got[n], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(weights[n], expected[1], rtol=1e-5, atol=1e-5)


def test_cache_equals_the_whole(variables):
    block, x, image = make(), jnp.float32(X), jnp.float32(IMAGE)
    expected, expected_weights, _ = block.apply(variables, x, image, MASK, method=run)
    # Two slots more than words: what was never written is never read.
    cache = {name: jnp.full((B * C, T + 2, H, F // H), 1e6) for name in ("key", "value")}
    for t in range(T):
        position = jnp.full(B * C, t, jnp.int32)
        mask = (jnp.arange(T + 2)[None, :] <= position[:, None])[:, None]
        one = {**cache, "position": position}
        got, weights, cache = block.apply(variables, x[:, t : t + 1], image, mask, one, method=run)
        np.testing.assert_allclose(got[:, 0], expected[:, t], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(weights[:, :, 0], expected_weights[:, :, t], rtol=1e-5, atol=1e-5)


def test_bfloat16(variables):
    x, image = jnp.bfloat16(X), jnp.bfloat16(IMAGE)
    got, weights, _ = make(dtype=jnp.bfloat16).apply(variables, x, image, MASK, method=run)
    expected, *_ = make().apply(variables, jnp.float32(X), jnp.float32(IMAGE), MASK, method=run)
    assert (got.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(np.float32(got), expected, rtol=0.1, atol=0.15)


def test_dropout_is_off_without_training(variables):
    block, args = make(dropout=0.5), (jnp.float32(X), jnp.float32(IMAGE), MASK, None)
    still = block.apply(variables, *args, False, method=run)[0]
    np.testing.assert_array_equal(still, make().apply(variables, *args, False, method=run)[0])
    dropped = block.apply(variables, *args, True, method=run, rngs={"dropout": jax.random.key(0)})[0]
    assert not np.allclose(still, dropped)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm(dtype):
    x = 3 + 2 * rng.normal(size=(4, 3, F))
    params = {"scale": rng.normal(size=F), "bias": rng.normal(size=F)}
    variables = {"params": jax.tree.map(jnp.float32, params)}
    got = LayerNorm(dtype).apply(variables, jnp.asarray(x, dtype))
    assert got.dtype == dtype
    expected = norm(np.float64(jnp.asarray(x, dtype)), params)
    np.testing.assert_allclose(
        np.float32(got), expected, atol=1e-5 if dtype == jnp.float32 else 0.02, rtol=1e-2
    )
    if dtype == jnp.float32:
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got, nn.LayerNorm().apply(variables, jnp.float32(x)), rtol=1e-5, atol=1e-5)
