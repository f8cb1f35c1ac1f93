"""Pools against plain NumPy in float64; positions of other grids; half precision; heads that do not divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf

from mmgen_jax.nn import pooling

B, H, W, D = 2, 3, 3, 8
GRID = np.random.default_rng(0).normal(size=(B, H, W, D))


def attention_pool(**fields):
    return pooling.AttentionPool(**{"heads": 2, "features": 5, "side": 3, "dtype": jnp.float32, **fields})


def map_pool(**fields):
    defaults = {"heads": 2, "mlp": 12, "activation": "gelu", "epsilon": 1e-6, "dtype": jnp.float32}
    return pooling.MapPool(**{**defaults, **fields})


def random_params(module, grid=GRID):
    """Parameters of which none is what it starts as, in float64."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.float32(grid))
    return jax.tree.map(lambda leaf: rng.normal(scale=0.5, size=leaf.shape), shapes["params"])


def run(module, params, grid=GRID):
    return module.apply({"params": jax.tree.map(jnp.float32, params)}, jnp.float32(grid))


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def attend(query, tokens, params, heads):
    """query: [B, D]; tokens: [B, T, D] -> [B, features]."""
    q, k, v = dense(query, params["query"]), dense(tokens, params["key"]), dense(tokens, params["value"])
    out = []
    for part in np.split(np.arange(q.shape[-1]), heads):
        scores = np.einsum("bd,btd->bt", q[:, part], k[:, :, part]) / np.sqrt(len(part))
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out.append(np.einsum("bt,btd->bd", weights / weights.sum(1, keepdims=True), v[:, :, part]))
    return dense(np.concatenate(out, 1), params["out"])


def test_pools_without_parameters():
    grid = jnp.float32(GRID)
    assert pooling.none(grid) is grid
    np.testing.assert_allclose(pooling.mean(grid), GRID.mean((1, 2)), rtol=1e-5, atol=1e-6)
    flat = np.asarray(pooling.flatten(grid))
    np.testing.assert_array_equal(flat.reshape(B, H, W, D)[1, 2, 0], grid[1, 2, 0])
    levels = np.split(np.asarray(pooling.pyramid(grid)), [D, (1 + H) * D], axis=1)
    np.testing.assert_allclose(levels[0], GRID.mean((1, 2)), rtol=1e-5, atol=1e-6)
    rows = levels[1].reshape(B, H, D)
    np.testing.assert_allclose(rows[:, 1], GRID[:, 1].mean(1) / np.sqrt(H), rtol=1e-5, atol=1e-6)
    columns = levels[2].reshape(B, W, D)
    np.testing.assert_allclose(columns[:, 0], GRID[:, :, 0].mean(1) / np.sqrt(W), rtol=1e-5, atol=1e-6)


def test_attention_pool_equals_numpy():
    module = attention_pool()
    params = random_params(module)
    assert params["position"].shape == (H * W + 1, D)
    tokens = GRID.reshape(B, H * W, D)
    tokens = np.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1) + params["position"]
    expected = attend(tokens[:, 0], tokens, params, heads=2)
    np.testing.assert_allclose(run(module, params), expected, rtol=1e-5, atol=1e-5)


def test_attention_pool_keeps_the_grids_features_unless_told():
    module = attention_pool(features=0, heads=0)  # fewer than 64 features: one head
    params = random_params(module)
    tokens = GRID.reshape(B, H * W, D)
    tokens = np.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1) + params["position"]
    expected = attend(tokens[:, 0], tokens, params, heads=1)
    np.testing.assert_allclose(run(module, params), expected, rtol=1e-5, atol=1e-5)


def test_attention_pool_resizes_the_grids_positions_alone():
    """A grid twice as fine, each feature four times: with equal positions but for the mean's nothing changes."""
    module = attention_pool()
    params = random_params(module)
    params["position"][1:] = params["position"][1]
    fine = GRID.repeat(2, axis=1).repeat(2, axis=2)
    # The mean token weighs a quarter as much among the fine grid's; take it out of the attention's reach.
    params["key"] = {"kernel": np.zeros((D, D)), "bias": np.zeros(D)}
    params["value"]["kernel"] *= 0
    np.testing.assert_allclose(run(module, params, fine), run(module, params), rtol=1e-5, atol=1e-5)


def test_map_pool_equals_numpy():
    module = map_pool()
    params = random_params(module)
    x = attend(np.tile(params["probe"], (B, 1)), GRID.reshape(B, H * W, D), params, heads=2)
    y = x - x.mean(1, keepdims=True)
    y = y / np.sqrt((y**2).mean(1, keepdims=True) + 1e-6) * params["norm"]["scale"] + params["norm"]["bias"]
    y = dense(y, params["mlp_in"])
    y = y * (1 + np.asarray(erf(np.float32(y / np.sqrt(2))))) / 2
    expected = x + dense(y, params["mlp_out"])
    np.testing.assert_allclose(run(module, params), expected, rtol=1e-5, atol=1e-5)


def test_resize_positions():
    table = jnp.float32(GRID[0])
    assert pooling.resize_positions(table, H, W) is table
    constant = pooling.resize_positions(jnp.ones((H, W, D)), 5, 2)
    np.testing.assert_allclose(constant, np.ones((5, 2, D)), rtol=1e-6)


@pytest.mark.parametrize("make", [attention_pool, map_pool])
def test_half_precision_and_heads(make):
    grid = jax.ShapeDtypeStruct((B, H, W, D), jnp.bfloat16)
    module = make(dtype=jnp.bfloat16)

    def loss(variables, grid):
        return jnp.sum(module.apply(variables, grid).astype(jnp.float32))

    pooled, variables = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), grid)
    assert pooled.dtype == jnp.bfloat16
    gradient = jax.eval_shape(jax.grad(loss), variables, grid)
    assert {x.dtype for x in jax.tree.leaves((variables, gradient))} == {jnp.dtype(jnp.float32)}
    with pytest.raises(ValueError, match="3 heads do not divide the 8 features"):
        jax.eval_shape(make(heads=3, dtype=jnp.bfloat16).init, jax.random.key(0), grid)
