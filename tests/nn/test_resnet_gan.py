"""Conditional batch normalisation and residual blocks of both networks against numpy; widths; impossible sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.nn import resnet_gan

rng = np.random.default_rng(0)


def random(module, *inputs):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, train=False))
    return jax.tree.map(lambda leaf: jnp.float32(rng.uniform(0.1, 1, leaf.shape)), shapes)


def test_conditional_norm():
    x, condition = rng.normal(2, 3, size=(4, 2, 2, 3)), rng.normal(size=(4, 5))
    module = resnet_gan.ConditionalNorm(jnp.float32, None)
    variables = random(module, jnp.float32(x), jnp.float32(condition))
    y, _ = module.apply(
        variables, jnp.float32(x), jnp.float32(condition), train=True, mutable=["batch_stats"]
    )
    tree = jax.tree.map(np.float64, variables["params"]["modulate"])
    scale, bias = np.split((condition @ tree["kernel"] + tree["bias"])[:, None, None], 2, axis=-1)
    normal = (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(y, normal * (1 + scale) + bias, rtol=1e-4, atol=1e-4)


def convolve(x, kernel):
    pad = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    return sum(pad[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))


@pytest.mark.parametrize("down", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_down_block(down, first):
    x = rng.normal(size=(2, 4, 4, 3))
    module = resnet_gan.DownBlock(5, down, first, spectral=False, dtype=jnp.float32)
    variables = random(module, jnp.float32(x))
    tree = jax.tree.map(np.float64, variables["params"])
    y = x if first else np.maximum(x, 0)
    for name in ("conv1", "conv2"):
        y = np.maximum(y, 0) if name == "conv2" else y
        y = convolve(y, tree[name]["kernel"]) + tree[name]["bias"]
    y = y + x @ tree["shortcut"]["kernel"][0, 0]
    if down:
        y = y.reshape(2, 2, 2, 2, 2, 5).mean(axis=(2, 4))
    np.testing.assert_allclose(module.apply(variables, jnp.float32(x), train=False), y, rtol=1e-4, atol=1e-4)


def test_up_block():
    x, condition = rng.normal(size=(2, 2, 2, 3)), rng.normal(size=(2, 4))
    module = resnet_gan.UpBlock(5, jnp.float32, None)
    variables = random(module, jnp.float32(x), jnp.float32(condition))
    tree, statistics = (jax.tree.map(np.float64, variables[kind]) for kind in ("params", "batch_stats"))

    def norm(y, name):
        part, moments = tree[name]["modulate"], statistics[name]["norm"]
        scale, bias = np.split((condition @ part["kernel"] + part["bias"])[:, None, None], 2, axis=-1)
        return (y - moments["mean"]) / np.sqrt(moments["var"] + 1e-5) * (1 + scale) + bias

    def double(y):
        return y.repeat(2, axis=1).repeat(2, axis=2)

    y = convolve(double(np.maximum(norm(x, "norm1"), 0)), tree["conv1"]["kernel"])
    y = convolve(np.maximum(norm(y, "norm2"), 0), tree["conv2"]["kernel"])
    y = y + double(x @ tree["shortcut"]["kernel"][0, 0])
    out = module.apply(variables, jnp.float32(x), jnp.float32(condition), train=False)
    np.testing.assert_allclose(out, y, rtol=1e-4, atol=1e-3)


def test_widths_are_bounded():
    generator = resnet_gan.make_generator(dtype=jnp.float32, image_size=64, width=8, max_width=16)
    discriminator = resnet_gan.make_discriminator(dtype=jnp.float32, width=8, max_width=16)

    def init():
        out, variables = generator.init_with_output(jax.random.key(0), jnp.zeros((2, 100)), None, train=True)
        return variables, discriminator.init(jax.random.key(0), out.images, None, train=True)

    first, second = (tree["params"] for tree in jax.eval_shape(init))
    assert [first[f"block{i}"]["conv2"]["kernel"].shape[-1] for i in (1, 2, 3, 4)] == [16, 16, 16, 8]
    blocks = [second["trunk"][f"block{i}"]["conv2"]["kernel"].shape[-1] for i in (1, 2, 3, 4, 5)]
    assert blocks == [8, 16, 16, 16, 16]
    assert "shortcut" not in second["trunk"]["block5"]


def test_impossible_size():
    generator = resnet_gan.make_generator(dtype=jnp.float32, image_size=33)
    with pytest.raises(ValueError, match=r"square images of 8, 14, 16, .* not of 33"):
        jax.eval_shape(lambda: generator.init(jax.random.key(0), jnp.zeros((2, 100)), None, train=False))
