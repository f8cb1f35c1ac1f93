"""Spectral normalisation against numpy's SVD and PyTorch, its gradient, and when its vectors move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmgen_jax.nn.resampling import Convolution
from mmgen_jax.nn.spectral_norm import SpectralDense, normalised


class Normalised(nn.Module):
    """The kernel as a parameter, and what the layers multiply with."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, *, train):
        kernel = self.param("kernel", nn.initializers.normal(), self.shape, jnp.float32)
        return normalised(self, kernel, train=train)


def largest(kernel):
    return np.linalg.svd(np.float64(kernel).reshape(-1, kernel.shape[-1]), compute_uv=False)[0]


def settled(layer, variables, steps, *inputs):
    """The variables after so many forward passes in training."""

    @jax.jit
    def step(spectral):
        run = layer.apply({**variables, "spectral": spectral}, *inputs, train=True, mutable=["spectral"])
        return run[1]["spectral"]

    spectral = variables["spectral"]
    for _ in range(steps):
        spectral = step(spectral)
    return {**variables, "spectral": spectral}


def inputs(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (3, 3, 4, 6), (6, 1)])
def test_sigma_is_the_largest_singular_value(shape):
    layer = Normalised(shape)
    variables = layer.init(jax.random.key(0), train=True)
    kernel = np.asarray(variables["params"]["kernel"])
    variables = settled(layer, variables, 200)
    got = layer.apply(variables, train=False)
    np.testing.assert_allclose(got, kernel / largest(kernel), rtol=1e-5, atol=1e-6)
    u = np.asarray(variables["spectral"]["u"])
    _, _, right = np.linalg.svd(np.float64(kernel).reshape(-1, shape[-1]))
    np.testing.assert_allclose(abs(u @ right[0]), 1.0, rtol=1e-5)


def test_one_step_is_that_of_the_paper():
    layer = Normalised((3, 3, 4, 6))
    variables = layer.init(jax.random.key(0), train=True)
    matrix, u = (
        np.float64(variables["params"]["kernel"]).reshape(36, 6),
        np.float64(variables["spectral"]["u"]),
    )
    left = matrix @ u / np.linalg.norm(matrix @ u)
    # In prediction the vector stays, and half a step gives the other one.
    got = layer.apply(variables, train=False)
    np.testing.assert_allclose(np.reshape(got, (36, 6)), matrix / (left @ matrix @ u), rtol=1e-5, atol=1e-6)
    right = left @ matrix / np.linalg.norm(left @ matrix)
    got, new = layer.apply(variables, train=True, mutable=["spectral"])
    np.testing.assert_allclose(
        np.reshape(got, (36, 6)), matrix / (left @ matrix @ right), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(new["spectral"]["u"], right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train", [False, True])
def test_the_gradient_holds_the_vectors_fixed(train):
    """Against finite differences in float64 of sum(c kernel / (left kernel right))."""
    layer = Normalised((2, 2, 3, 4))
    variables = layer.init(jax.random.key(1), train=True)
    cotangent = np.random.default_rng(0).normal(size=(2, 2, 3, 4))

    @jax.jit
    @jax.grad
    def gradient(params):
        out, _ = layer.apply({**variables, "params": params}, train=train, mutable=["spectral"])
        return jnp.sum(out * jnp.asarray(cotangent, jnp.float32))

    kernel, u = np.float64(variables["params"]["kernel"]), np.float64(variables["spectral"]["u"])
    matrix = kernel.reshape(12, 4)
    left = matrix @ u / np.linalg.norm(matrix @ u)
    right = left @ matrix / np.linalg.norm(left @ matrix) if train else u

    def value(kernel):
        return np.sum(cotangent * kernel) / (left @ kernel.reshape(12, 4) @ right)

    expected = np.zeros_like(kernel)
    for place in np.ndindex(kernel.shape):
        step = np.zeros_like(kernel)
        step[place] = 1e-7
        expected[place] = (value(kernel + step) - value(kernel - step)) / 2e-7
    got = gradient(variables["params"])["kernel"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_second_derivatives_flow():
    """Of a slope with respect to the kernel, as gradient penalties need them; the logit's is kernel / sigma itself."""
    layer, x = SpectralDense(1, use_bias=False), inputs(3, 4)
    variables = layer.init(jax.random.key(0), x, train=True)

    @jax.jit
    @jax.grad
    def penalty(params):
        logit = lambda x: jnp.sum(layer.apply({**variables, "params": params}, x, train=False))
        return jnp.sum(jax.grad(logit)(x) * inputs(3, 4, seed=1))

    kernel, c = np.float64(variables["params"]["kernel"])[:, 0], np.float64(inputs(3, 4, seed=1)).sum(0)
    norm = np.linalg.norm(kernel)
    expected = (c - kernel * (c @ kernel) / norm**2) / norm
    np.testing.assert_allclose(penalty(variables["params"])["kernel"][:, 0], expected, rtol=1e-4, atol=1e-5)


def test_vectors_move_in_training_alone():
    layer, x = SpectralDense(5), inputs(2, 3)
    variables = layer.init(jax.random.key(0), x, train=True)
    again = layer.init(jax.random.key(0), x, train=False)
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    other = layer.init(jax.random.key(1), x, train=False)
    assert not np.array_equal(variables["spectral"]["u"], other["spectral"]["u"])
    np.testing.assert_allclose(np.linalg.norm(variables["spectral"]["u"]), 1.0, rtol=1e-6)

    first, kept = layer.apply(variables, x, train=False, mutable=["spectral"])
    np.testing.assert_array_equal(kept["spectral"]["u"], variables["spectral"]["u"])
    np.testing.assert_array_equal(layer.apply(variables, x, train=False), first)
    _, moved = layer.apply(variables, x, train=True, mutable=["spectral"])
    assert not np.array_equal(moved["spectral"]["u"], variables["spectral"]["u"])


@pytest.mark.parametrize(
    ("kernel", "resample", "use_bias"), [(3, "none", True), (4, "down", False), (1, "none", True)]
)
def test_layers_are_flax_layers_with_another_kernel(kernel, resample, use_bias):
    x = inputs(2, 8, 6, 3)
    layer = Convolution(5, kernel, resample, use_bias, spectral=True)
    variables = layer.init(jax.random.key(0), x, train=True)
    assert variables["params"]["kernel"].shape == (kernel, kernel, 3, 5)
    params = {**variables["params"]}
    if use_bias:
        params["bias"] = inputs(5, seed=2)
    variables = settled(layer, {**variables, "params": params}, 300, x)
    stride = 2 if resample == "down" else 1
    plain = nn.Conv(5, (kernel, kernel), stride, 1 if kernel > 1 else 0, use_bias=use_bias)
    expected = plain.apply({"params": {**params, "kernel": params["kernel"] / largest(params["kernel"])}}, x)
    got = jax.jit(lambda x: layer.apply(variables, x, train=False))(x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_dense_is_flax_dense_with_another_kernel():
    x, layer = inputs(2, 4, 3), SpectralDense(5)
    variables = layer.init(jax.random.key(0), x, train=True)
    params = {**variables["params"], "bias": inputs(5, seed=2)}
    variables = settled(layer, {**variables, "params": params}, 300, x)
    plain = {"params": {**params, "kernel": params["kernel"] / largest(params["kernel"])}}
    np.testing.assert_allclose(
        layer.apply(variables, x, train=False), nn.Dense(5).apply(plain, x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "layer", [SpectralDense(4, dtype=jnp.bfloat16), Convolution(4, 3, spectral=True, dtype=jnp.bfloat16)]
)
def test_bfloat16_computes_on_float32_parameters(layer):
    x = inputs(2, 4, 4, 3)
    out, variables = layer.init_with_output(jax.random.key(0), x, train=True)
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact = layer.clone(dtype=jnp.float32).apply(variables, x, train=False)
    got = layer.apply(variables, x, train=False)
    np.testing.assert_allclose(np.float32(got), exact, atol=0.05)


def test_equal_to_pytorch():
    """Outputs and the kernel's gradient, once the vectors have settled; there too a matrix has one row for each output."""
    torch = pytest.importorskip("torch")
    x = inputs(2, 5, 5, 3)
    layer = Convolution(4, 3, use_bias=True, spectral=True)
    variables = layer.init(jax.random.key(0), x, train=True)
    variables = settled(layer, variables, 300, x)
    peer = torch.nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        peer.weight.copy_(torch.tensor(np.transpose(variables["params"]["kernel"], (3, 2, 0, 1))))
        peer.bias.zero_()
    peer = torch.nn.utils.parametrizations.spectral_norm(peer, n_power_iterations=300).eval()
    expected = peer(torch.tensor(np.transpose(x, (0, 3, 1, 2))))
    torch.sin(expected).sum().backward()
    gradient = peer.parametrizations.weight.original.grad.numpy()

    @jax.jit
    def run(params):
        out = layer.apply({**variables, "params": params}, x, train=False)
        return jnp.sum(jnp.sin(out)), out

    got = jax.grad(run, has_aux=True)(variables["params"])
    np.testing.assert_allclose(
        got[1], np.transpose(expected.detach().numpy(), (0, 2, 3, 1)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(got[0]["kernel"], np.transpose(gradient, (2, 3, 1, 0)), rtol=1e-3, atol=1e-4)
