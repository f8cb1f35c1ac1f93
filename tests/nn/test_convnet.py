"""The small tower: shapes, values against NumPy, a fresh block as the identity, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.nn import convnet


def tiny(**fields):
    return convnet.make(**{"dtype": jnp.float32, "widths": (4, 8), "blocks": 1, **fields})


def images(batch=2, height=16, width=12):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, height, width, 3)), jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_default_size_and_grid(dtype):
    module = convnet.make(dtype=dtype)
    grid, variables = jax.eval_shape(
        lambda image: module.init_with_output(jax.random.key(0), image, train=True),
        jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32),
    )
    assert grid.shape == (2, 8, 12, 128)
    assert grid.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    # 3x3 kernels 3-32-64-128 and a block of two 128-128; scale and offset of five norms.
    kernels = 9 * (3 * 32 + 32 * 64 + 64 * 128 + 2 * 128 * 128)
    norms = 2 * (32 + 64 + 128 + 2 * 128)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == kernels + norms


def test_equals_numpy_and_fresh_blocks_are_the_identity():
    image = images()
    module = tiny()
    variables = module.init(jax.random.key(0), image, train=True)
    got, _ = module.apply(variables, image, train=True, mutable=["batch_stats"])
    x = np.float64(image)
    for i in (1, 2):
        kernel = np.float64(variables["params"][f"conv{i}"]["kernel"])
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = x.shape[1] // 2, x.shape[2] // 2
        x = sum(
            padded[:, a : a + 2 * height : 2, b : b + 2 * width : 2] @ kernel[a, b]
            for a in range(3)
            for b in range(3)
        )
        x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
        x = np.maximum(x, 0)
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-5)


def test_pools_keep_the_parameters():
    image = images()
    variables = tiny().init(jax.random.key(0), image, train=False)
    grid = np.asarray(tiny().apply(variables, image, train=False))
    for pool, expected in (("mean", grid.mean((1, 2))), ("flatten", grid.reshape(2, 4 * 3 * 8))):
        got = tiny(pool=pool).apply(variables, image, train=False)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_hidden_is_one_more_1x1_convolution():
    image = images()
    module = tiny(hidden=5, pool="mean")
    variables = module.init(jax.random.key(0), image, train=False)
    grid = np.float64(tiny().apply(without(variables, "hidden", "hidden_norm"), image, train=False))
    kernel = np.float64(variables["params"]["hidden"]["kernel"])
    expected = np.maximum(grid @ kernel / np.sqrt(1 + 1e-5), 0).mean((1, 2))  # young statistics: 0 and 1
    np.testing.assert_allclose(module.apply(variables, image, train=False), expected, rtol=1e-4, atol=1e-5)


def without(variables, *names):
    return {
        kind: {key: value for key, value in tree.items() if key not in names}
        for kind, tree in variables.items()
    }


def test_unknown_field_variant_and_pool():
    with pytest.raises(ValueError, match='Did you mean "widths"'):
        tiny(width=(4,))
    with pytest.raises(ValueError, match="has no variants"):
        tiny(variant="resnet18")
    with pytest.raises(ValueError, match='Unknown ConvNet pool "flat"\\. Did you mean "flatten"'):
        tiny(pool="flat").init(jax.random.key(0), images(), train=False)
