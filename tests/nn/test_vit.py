"""Parameter counts of the published networks, equality with plain numpy, resized positions, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf

from mmgen_jax.nn import vit

# Published counts of the /16 networks with a 1000-class head at 224, minus head, token and its position.
COUNTS = {
    "vit_s": 22_050_664 - 1000 * 385 - 2 * 384,
    "vit_b": 86_567_656 - 1000 * 769 - 2 * 768,
    "vit_l": 304_326_632 - 1000 * 1025 - 2 * 1024,
}
TINY = {"width": 8, "depth": 2, "heads": 2, "patch": 4, "image_size": 8}


def tiny(**fields):
    return vit.make(**{"dtype": jnp.float32, **TINY, **fields})


def images(batch=2, height=8, width=8):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, height, width, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    return tiny().init(jax.random.key(0), images(), train=False)


@pytest.mark.parametrize("variant", COUNTS)
def test_counts_and_grid(variant):
    module = vit.make(variant=variant, dtype=jnp.bfloat16)
    grid, variables = jax.eval_shape(
        lambda image: module.init_with_output(jax.random.key(0), image, train=False),
        jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32),
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == COUNTS[variant]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert grid.shape == (2, 14, 14, vit.VARIANTS[variant]["width"])
    assert grid.dtype == jnp.bfloat16


def test_patches_are_squares_in_reading_order():
    image = np.arange(4 * 6 * 2).reshape(1, 4, 6, 2)
    cut = vit.patches(jnp.asarray(image), 2)
    assert cut.shape == (1, 2, 3, 8)
    np.testing.assert_array_equal(cut[0, 1, 2], image[0, 2:4, 4:6].reshape(-1))


def test_equals_numpy(variables):
    image = images()
    params = jax.tree.map(np.float64, variables["params"])

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    x = dense(
        np.float64(image).reshape(2, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 48),
        params["embed"],
    )
    x = x + params["position"].reshape(1, 4, 8)
    for name in ("block1", "block2"):
        p = params[name]
        q, k, v = np.split(dense(norm(x, p["attention_norm"]), p["qkv"]), 3, axis=-1)
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            weights = np.exp(q[..., h] @ k[..., h].transpose(0, 2, 1) / 2)
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[..., h])
        x = x + dense(np.concatenate(heads, -1), p["out"])
        y = dense(norm(x, p["mlp_norm"]), p["mlp_in"])
        y = y * (1 + np.asarray(erf(np.float32(y / np.sqrt(2))))) / 2
        x = x + dense(y, p["mlp_out"])
    got = tiny().apply(variables, image, train=False)
    np.testing.assert_allclose(got.reshape(2, 4, 8), norm(x, params["norm"]), rtol=1e-5, atol=1e-5)


def test_other_resolution_resizes_positions(variables):
    grid = tiny().apply(variables, images(1, 8, 16), train=False)
    assert grid.shape == (1, 2, 4, 8)
    # A constant table stays constant, so on a constant image every position gives the same features.
    flat = {"params": {**variables["params"], "position": jnp.ones((2, 2, 8))}}
    grid = tiny().apply(flat, jnp.ones((1, 12, 16, 3)), train=False)
    np.testing.assert_allclose(grid, jnp.broadcast_to(grid[:, :1, :1], (1, 3, 4, 8)), rtol=1e-5, atol=1e-6)


def test_dropout_only_in_training(variables):
    module, image = tiny(dropout=0.5), images()
    noise = {"dropout": jax.random.key(1)}
    plain = tiny().apply(variables, image, train=True)
    assert jnp.array_equal(module.apply(variables, image, train=False), plain)
    assert not jnp.array_equal(module.apply(variables, image, train=True, rngs=noise), plain)


def test_stochastic_depth_drops_whole_examples():
    block = vit.Block(heads=2, mlp=8, dropout=0.0, drop_path=0.5, dtype=jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3, 4)), jnp.float32)
    variables = block.init(jax.random.key(0), x, train=False)
    y = block.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})
    unchanged = np.asarray(jnp.all(x == y, axis=-1))  # both branches left out
    assert np.all(unchanged.all(1) == unchanged.any(1))
    assert 5 < unchanged.all(1).sum() < 30  # of 64; 16 expected


def test_errors():
    with pytest.raises(ValueError, match="10x8 does not divide into patches of 4: resize it to 8x8"):
        tiny().init(jax.random.key(0), images(1, 10, 8), train=False)
    with pytest.raises(ValueError, match="heads = 3 does not divide width = 8"):
        tiny(heads=3).init(jax.random.key(0), images(), train=False)
    with pytest.raises(ValueError, match='Did you mean "vit_b"'):
        vit.make(variant="vitb", dtype=jnp.float32)
    with pytest.raises(ValueError, match=r'Unknown key \"depht\" in vit\. Did you mean "depth"'):
        vit.make(variant="vit_s", dtype=jnp.float32, depht=3)
