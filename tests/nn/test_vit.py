"""Parameter counts of the published networks, equality with plain numpy, pools, resized positions, dropout, scan and remat."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf

from mmgen_jax.nn import pooling, vit

# Published counts of the /16 networks with a 1000-class head at 224, minus head, token and its position.
COUNTS = {
    "vit_s": 22_050_664 - 1000 * 385 - 2 * 384,
    "vit_b": 86_567_656 - 1000 * 769 - 2 * 768,
    "vit_l": 304_326_632 - 1000 * 1025 - 2 * 1024,
}
# Vision towers of CLIP (published counts, without the projection into the common space) and of SigLIP.
POOLED = {
    "clip_vit_b32": 87_849_216 - 768 * 512,
    "clip_vit_b16": 86_192_640 - 768 * 512,
    "clip_vit_l14": 303_966_208 - 1024 * 768,
    "siglip_vit_b16": 92_884_224,
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


@pytest.mark.parametrize("variant", POOLED)
def test_counts_of_pooled_variants(variant):
    module = vit.make(variant=variant, dtype=jnp.bfloat16)
    pooled, variables = jax.eval_shape(
        lambda image: module.init_with_output(jax.random.key(0), image, train=False),
        jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32),
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == POOLED[variant]
    assert (pooled.shape, pooled.dtype) == ((2, module.width), jnp.bfloat16)


def test_patches_are_squares_in_reading_order():
    image = np.arange(4 * 6 * 2).reshape(1, 4, 6, 2)
    cut = vit.patches(jnp.asarray(image), 2)
    assert cut.shape == (1, 2, 3, 8)
    np.testing.assert_array_equal(cut[0, 1, 2], image[0, 2:4, 4:6].reshape(-1))


@pytest.mark.parametrize("clip", [False, True])
def test_equals_numpy(clip):
    """`clip`: class token, norm before the blocks, no bias on patches, its own activation and epsilon."""
    image = images()
    module = tiny(**({**vit.CLIP, **TINY} if clip else {}))
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(scale=0.5, size=leaf.shape), shapes)
    assert ("bias" in params["embed"]) != clip
    epsilon = 1e-5 if clip else 1e-6

    def dense(x, p):
        return x @ p["kernel"] + p.get("bias", 0.0)

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]

    x = dense(
        np.float64(image).reshape(2, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 48),
        params["embed"],
    )
    x = x + params["position"].reshape(1, 4, 8)
    if clip:
        first = np.broadcast_to(params["class_token"] + params["class_position"], (2, 1, 8))
        x = norm(np.concatenate([first, x], axis=1), params["pre_norm"])
    for name in ("block1", "block2"):
        p = params[name]
        q, k, v = np.split(dense(norm(x, p["attention_norm"]), p["qkv"]), 3, axis=-1)
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            weights = np.exp(q[..., h] @ k[..., h].transpose(0, 2, 1) / 2)
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[..., h])
        x = x + dense(np.concatenate(heads, -1), p["out"])
        y = dense(norm(x, p["mlp_norm"]), p["mlp_in"])
        y = y / (1 + np.exp(-1.702 * y)) if clip else y * (1 + np.asarray(erf(np.float32(y / 2**0.5)))) / 2
        x = x + dense(y, p["mlp_out"])
    x = norm(x, params["norm"])
    got = module.apply({"params": jax.tree.map(jnp.float32, params)}, image, train=False)
    np.testing.assert_allclose(got, x[:, 0] if clip else x.reshape(2, 2, 2, 8), rtol=1e-5, atol=1e-5)


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


def test_scanned_blocks_are_the_stacked_ones(variables):
    params = dict(variables["params"])
    blocks = [params.pop(name) for name in ("block1", "block2")]
    params["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    module, image = tiny(scan=True), images()
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False))["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    scanned = module.apply({"params": params}, image, train=False)
    plain = tiny().apply(variables, image, train=False)
    np.testing.assert_allclose(scanned, plain, rtol=1e-5, atol=1e-6)


def test_recomputation_changes_nothing(variables, same):
    def gradient(remat):
        def loss(variables):
            return jnp.mean(jnp.sin(tiny(remat=remat).apply(variables, images(), train=True)))

        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(variables))) == remat
        return jax.jit(jax.grad(loss))(variables)

    same(gradient(True), gradient(False), rtol=1e-4, atol=1e-6)


def test_class_token_takes_part_and_is_left_out_of_the_grid(variables):
    """Without blocks the tokens do not meet; with them the grid feels the class token."""
    image = images()
    rng = np.random.default_rng(2)
    extra = {name: jnp.float32(rng.normal(size=8)) for name in ("class_token", "class_position")}
    with_token = {"params": {**variables["params"], **extra}}

    def run(depth, **fields):
        return tiny(depth=depth, class_token=True, **fields).apply(with_token, image, train=False)

    np.testing.assert_array_equal(run(0), tiny(depth=0).apply(variables, image, train=False))
    grid = run(2)
    assert grid.shape == (2, 2, 2, 8)
    assert np.abs(grid - tiny().apply(variables, image, train=False)).max() > 1e-3
    np.testing.assert_allclose(run(2, pool="mean"), np.asarray(grid).mean((1, 2)), rtol=1e-5, atol=1e-6)
    # The token's own position is not resized with the grid's.
    token = run(0, pool="class")
    finer = tiny(depth=0, class_token=True, pool="class").apply(with_token, images(2, 16, 12), train=False)
    np.testing.assert_array_equal(token, finer)
    np.testing.assert_allclose(token[0], token[1])


def test_map_pool_sees_the_grid():
    module, image = tiny(pool="map"), images()
    variables = module.init(jax.random.key(0), image, train=False)
    assert set(variables["params"]["pool"]) == {
        *("probe", "query", "key", "value", "out"),
        *("norm", "mlp_in", "mlp_out"),
    }
    pool = pooling.MapPool(heads=2, mlp=32, activation="gelu", epsilon=1e-6, dtype=jnp.float32)
    params = dict(variables["params"])
    expected = pool.apply(
        {"params": params.pop("pool")}, tiny().apply({"params": params}, image, train=False)
    )
    np.testing.assert_allclose(module.apply(variables, image, train=False), expected, rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="10x8 does not divide into patches of 4: resize it to 8x8"):
        tiny().init(jax.random.key(0), images(1, 10, 8), train=False)
    with pytest.raises(ValueError, match="heads = 3 does not divide width = 8"):
        tiny(heads=3).init(jax.random.key(0), images(), train=False)
    with pytest.raises(ValueError, match='Did you mean "vit_b"'):
        vit.make(variant="vitb", dtype=jnp.float32)
    with pytest.raises(ValueError, match=r'Unknown key \"depht\" in vit\. Did you mean "depth"'):
        vit.make(variant="vit_s", dtype=jnp.float32, depht=3)
    for fields, message in (
        ({"pool": "clas"}, 'Unknown ViT pool "clas". Did you mean "class"'),
        ({"pool": "class"}, "needs class_token = True"),
        ({"activation": "gelo"}, 'Did you mean "gelu"'),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            tiny(**fields).init(jax.random.key(0), images(), train=False)
