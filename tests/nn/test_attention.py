"""Scores and weighted sums against plain numpy loops; precision; self-attention's mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.nn import attention

B, C, P, A, D = 2, 3, 4, 6, 8
rng = np.random.default_rng(0)
QUERY, KEYS, VALUES = rng.normal(size=(B, C, A)), rng.normal(size=(B, P, A)), rng.normal(size=(B, P, D))


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def f32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_additive_scores(heads):
    v = rng.normal(size=(heads, A // heads))
    expected = np.zeros((B, C, heads, P))
    for b, c, h, p in np.ndindex(expected.shape):
        part = slice(h * A // heads, (h + 1) * A // heads)
        expected[b, c, h, p] = v[h] @ np.tanh(QUERY[b, c, part] + KEYS[b, p, part])
    np.testing.assert_allclose(
        attention.additive_scores(*f32(QUERY, KEYS, v)), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_dot_scores(heads):
    expected = np.zeros((B, C, heads, P))
    for b, c, h, p in np.ndindex(expected.shape):
        part = slice(h * A // heads, (h + 1) * A // heads)
        expected[b, c, h, p] = QUERY[b, c, part] @ KEYS[b, p, part] / np.sqrt(A / heads)
    np.testing.assert_allclose(attention.dot_scores(*f32(QUERY, KEYS), heads), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_weigh(heads):
    scores = 3 * rng.normal(size=(B, C, heads, P))
    context, weights = attention.weigh(*f32(scores, VALUES))
    np.testing.assert_allclose(weights, softmax(scores), rtol=1e-5, atol=1e-6)
    expected = np.zeros((B, C, D))
    for b, c, d in np.ndindex(expected.shape):
        expected[b, c, d] = softmax(scores)[b, c, d * heads // D] @ VALUES[b, :, d]
    np.testing.assert_allclose(context, expected, rtol=1e-5, atol=1e-5)


def test_softmax_is_float32_in_bfloat16():
    scores, values = (jnp.asarray(x, jnp.bfloat16) for x in (rng.normal(size=(B, C, 2, P)), VALUES))
    context, weights = attention.weigh(scores, values)
    assert (context.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_self_attention(dtype):
    query, key, value = rng.normal(size=(3, B, P, 2, D))
    mask = np.tril(np.ones((P, P), bool))[None, None]
    got = attention.self_attention(*(jnp.asarray(x, dtype) for x in (query, key, value)), jnp.asarray(mask))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(D)
    expected = np.einsum("bhqk,bkhd->bqhd", softmax(np.where(mask, scores, -np.inf)), value)
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(np.float32(got), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.05)])
@pytest.mark.parametrize("masked, causal", [(False, False), (True, False), (False, True), (True, True)])
def test_gradient_of_self_attention(masked, causal, dtype, tolerance):
    """Against jax's own attention, differentiated by jax; one query may look nowhere."""
    query, key, value, weight = rng.normal(size=(4, B, P, 2, D))
    mask = None
    if masked:
        mask = rng.random((B, 1, P, P)) < 0.5
        mask[0, 0, 1], mask[1, 0, :, 0] = False, True

    def gradients(attend, dtype):
        def total(*parts):
            out = attend(*parts, mask=None if mask is None else jnp.asarray(mask))
            return jnp.sum(out.astype(jnp.float32) * weight)

        parts = [jnp.asarray(x, dtype) for x in (query, key, value)]
        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*parts)

    own = gradients(functools.partial(attention.self_attention, causal=causal), dtype)
    jaxs = gradients(functools.partial(jax.nn.dot_product_attention, is_causal=causal), jnp.float32)
    for got, expected in zip(jax.tree.leaves(own), jax.tree.leaves(jaxs), strict=True):
        np.testing.assert_allclose(np.float32(got), expected, rtol=tolerance, atol=tolerance)
    assert {x.dtype for x in own[1]} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("length", [4, 5])
@pytest.mark.parametrize("causal", [False, True])
def test_flash_pads_odd_lengths(length, causal):
    """With the plain kernel in place of cuDNN's, whose lengths are even."""
    query, key, value = f32(*rng.normal(size=(3, B, length, 2, D)))
    seen = []

    def value_and_grad(attend):
        def total(*parts):
            out = attend(*parts)
            seen.append(out.shape)
            return jnp.sum(jnp.sin(out))

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(query, key, value)

    got, gradients = value_and_grad(lambda *parts: attention._flash(*parts, causal, implementation="xla"))
    mask = jnp.tril(jnp.ones((length, length), bool))[None, None] if causal else None
    expected, expected_gradients = value_and_grad(lambda *parts: attention.self_attention(*parts, mask))
    assert seen[0] == seen[1]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    for a, b in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_causal_is_a_lower_triangle():
    query, key, value = f32(*rng.normal(size=(3, B, P, 2, D)))
    mask = jnp.tril(jnp.ones((P, P), bool))[None, None]
    np.testing.assert_allclose(
        attention.self_attention(query, key, value, causal=True),
        attention.self_attention(query, key, value, mask),
        rtol=1e-6,
    )
