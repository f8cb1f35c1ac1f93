"""Every form of the convolutions against numpy in float64 and PyTorch, with gradients; CPU and accelerator forms alike."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmgen_jax.nn import resampling

rng = np.random.default_rng(0)
X = rng.normal(size=(2, 4, 6, 3))


def kernel(size):
    return rng.normal(size=(size, size, 3, 5))


def convolve(x, kernel, stride):
    """Float64, one row and column of zeros around, as an explicit sum over the kernel's places."""
    size = len(kernel)
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = ((side - size) // stride + 1 for side in x.shape[1:3])
    return sum(
        x[:, i : i + stride * rows : stride, j : j + stride * columns : stride] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )


def transpose(x, kernel):
    """Each input adds its multiple of the kernel to the output, whose border is cut off."""
    batch, height, width, _ = x.shape
    y = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            y[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("bi,hwio->bhwo", x[:, i, j], kernel)
    return y[:, 1:-1, 1:-1]


FORMS = {
    "kept": (resampling.convolution, 3, lambda x, k: convolve(x, k, 1)),
    "strided": (resampling.FORMS[4, "down"], 4, lambda x, k: convolve(x, k, 2)),
    "transposed": (resampling.transposed_convolution, 4, transpose),
    "pooled": (
        resampling.FORMS[3, "down"],
        3,
        lambda x, k: convolve(x, k, 1).reshape(2, 2, 2, 3, 2, 5).mean(axis=(2, 4)),
    ),
    "upsampled": (
        resampling.FORMS[3, "up"],
        3,
        lambda x, k: convolve(x.repeat(2, axis=1).repeat(2, axis=2), k, 1),
    ),
    "single": (resampling.FORMS[1, "none"], 1, lambda x, k: x @ k[0, 0]),
}


@pytest.mark.parametrize("name", FORMS)
def test_equals_numpy(name):
    function, size, reference = FORMS[name]
    k = kernel(size)
    y = function(jnp.float32(X), jnp.float32(k))
    np.testing.assert_allclose(y, reference(X, k), rtol=1e-5, atol=1e-5)


def test_both_forms_are_equal_with_their_gradients(monkeypatch):
    k = jnp.float32(kernel(4))

    def value(x, k):
        return jnp.sum(jnp.sin(resampling.transposed_convolution(x, k)))

    on_cpu = jax.value_and_grad(value, (0, 1))(jnp.float32(X), k)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *inputs, cpu, default: default(*inputs))
    elsewhere = jax.value_and_grad(value, (0, 1))(jnp.float32(X), k)
    for a, b in zip(jax.tree.leaves(on_cpu), jax.tree.leaves(elsewhere), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("grid", "size", "stride"),
    [((1, 1), 3, 1), ((2, 3), 3, 1), ((5, 4), 3, 2), ((9, 3), 7, 2), ((7, 8), 5, 3)],
)
def test_a_small_grid_is_a_product_of_matrices(grid, size, stride):
    """On CPU alone, with the value and the gradients of a convolution; also as flax's layer."""
    x, k = jnp.float32(rng.normal(size=(2, *grid, 3))), jnp.float32(rng.normal(size=(size, size, 3, 5)))
    strides, padding = (stride, stride), ((size // 2,) * 2,) * 2

    def value(function, x, k):
        y = function(x, k, strides, padding, dimension_numbers=resampling.DIMS)
        return jnp.sum(jnp.sin(y)), y

    def slopes(function):
        return jax.jit(jax.value_and_grad(partial(value, function), (0, 1), has_aux=True))

    ours, plain = (slopes(f) for f in (resampling.convolve, jax.lax.conv_general_dilated))
    for a, b in zip(jax.tree.leaves(ours(x, k)), jax.tree.leaves(plain(x, k)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert " convolution(" not in ours.lower(x, k).compile().as_text()
    assert "stablehlo.convolution" in ours.trace(x, k).lower(lowering_platforms=("tpu",)).as_text()
    layer = nn.Conv(5, (size, size), stride, size // 2, conv_general_dilated=resampling.convolve)
    y = layer.apply({"params": {"kernel": k, "bias": jnp.zeros(5)}}, x)
    np.testing.assert_allclose(y, plain(x, k)[0][1], rtol=1e-4, atol=1e-5)


def test_a_grid_as_large_as_the_kernel_stays_a_convolution():
    text = jax.jit(resampling.convolution).lower(jnp.float32(X[:, :3, :3]), jnp.float32(kernel(3)))
    assert "stablehlo.convolution" in text.as_text()


def test_equals_pytorch():
    torch = pytest.importorskip("torch")
    k = np.float32(kernel(4))
    x = torch.tensor(np.float32(X)).permute(0, 3, 1, 2)
    up = torch.nn.functional.conv_transpose2d(x, torch.tensor(k).permute(2, 3, 0, 1), stride=2, padding=1)
    down = torch.nn.functional.conv2d(x, torch.tensor(k).permute(3, 2, 0, 1), stride=2, padding=1)
    for y, function in ((up, resampling.FORMS[4, "up"]), (down, resampling.FORMS[4, "down"])):
        expected = y.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(function(jnp.float32(X), jnp.asarray(k)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "resample", "shape"), [(4, "up", (2, 8, 12, 5)), (3, "down", (2, 2, 3, 5))])
def test_layer(size, resample, shape):
    layer = resampling.Convolution(5, size, resample, use_bias=True, spectral=True, dtype=jnp.bfloat16)
    y, variables = layer.init_with_output(jax.random.key(0), jnp.float32(X), train=True)
    assert (y.shape, y.dtype) == (shape, jnp.bfloat16)
    assert variables["params"]["kernel"].shape == (size, size, 3, 5)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    _, changed = layer.apply(variables, jnp.float32(X), train=True, mutable="spectral")
    assert not np.array_equal(changed["spectral"]["u"], variables["spectral"]["u"])
    again = layer.apply(variables, jnp.float32(X), train=False)
    assert again.shape == shape
