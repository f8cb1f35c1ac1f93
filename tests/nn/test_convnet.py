"""The small tower: shapes, its start as the identity, its reach over the image, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.nn import convnet


def tiny(**fields):
    return convnet.make(**{"dtype": jnp.float32, "widths": (8, 8, 16), "blocks": (1, 1, 1), **fields})


def images(batch=2, height=32, width=32):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, height, width, 3)), jnp.float32)


@pytest.mark.parametrize(("norm", "dtype"), [("layer", jnp.bfloat16), ("group", jnp.float32)])
def test_default_size_and_grid(norm, dtype):
    module = convnet.make(dtype=dtype, norm=norm)
    grid, variables = jax.eval_shape(
        lambda image: module.init_with_output(jax.random.key(0), image, train=True),
        jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32),
    )
    assert grid.shape == (2, 8, 12, 96)
    assert grid.dtype == dtype
    assert set(variables) == {"params"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert 0.5e6 < sum(leaf.size for leaf in jax.tree.leaves(variables)) < 1e6


def test_fresh_blocks_are_the_identity():
    image = images()
    with_blocks = tiny().init(jax.random.key(0), image, train=True)
    kept = {k: v for k, v in with_blocks["params"].items() if "block" not in k}
    got = tiny(blocks=(0, 0, 0)).apply({"params": kept}, image, train=True)
    np.testing.assert_allclose(tiny().apply(with_blocks, image, train=True), got, rtol=1e-6, atol=1e-6)


def test_equals_numpy_without_blocks():
    image = images()
    module = tiny(blocks=(0, 0, 0))
    variables = module.init(jax.random.key(0), image, train=True)
    p = jax.tree.map(np.float64, variables["params"])

    def dense(x, name):
        return x @ p[name]["kernel"] + p[name]["bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p[name]["scale"] + p[name]["bias"]

    def cut(x, s):
        b, h, w, c = x.shape
        return (
            x.reshape(b, h // s, s, w // s, s, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // s, w // s, -1)
        )

    x1 = dense(cut(np.float64(image), 4), "down1")
    x2 = dense(cut(np.maximum(norm(x1, "down2_norm"), 0), 2), "down2")
    x3 = dense(cut(np.maximum(norm(x2, "down3_norm"), 0), 2), "down3")
    up = np.kron(dense(np.maximum(norm(x3, "up3_norm"), 0), "up3"), np.ones((1, 2, 2, 1)))
    got = module.apply(variables, image, train=True)
    np.testing.assert_allclose(got, norm(x2 + up, "norm"), rtol=1e-4, atol=1e-5)


def test_coarse_stage_reaches_across_the_image():
    module = tiny(blocks=(0, 0, 1))
    image = images(1)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, module.init(jax.random.key(0), image, train=True))
    apply = jax.jit(lambda x: module.apply(variables, x, train=True))
    changed = jnp.abs(apply(image) - apply(image.at[0, 0, 0].add(1.0))).sum(-1)[0]
    assert bool((changed > 0).all())


def test_errors():
    with pytest.raises(ValueError, match="multiples of 16, not 40x64: resize them to 32x64"):
        tiny().init(jax.random.key(0), images(1, 40, 64), train=True)
    with pytest.raises(ValueError, match="one entry for each stage"):
        tiny(blocks=(1,)).init(jax.random.key(0), images(), train=True)
    with pytest.raises(ValueError, match='Did you mean "layer"'):
        tiny(norm="layr").init(jax.random.key(0), images(), train=True)
    with pytest.raises(ValueError, match="no variants"):
        convnet.make(variant="small", dtype=jnp.float32)
    with pytest.raises(ValueError, match='Did you mean "widths"'):
        convnet.make(dtype=jnp.float32, width=(3,))
