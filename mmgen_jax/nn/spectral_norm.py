"""Kernels divided by their largest singular value (Miyato et al., 2018); a convolution's is in nn/resampling.py."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

KERNEL_INIT = nn.initializers.lecun_normal()


def normalised(layer: nn.Module, kernel: jax.Array, *, train: bool) -> jax.Array:
    """kernel / sigma, sigma being an estimate of the largest singular value of the kernel as a matrix (eq. 8 and algorithm 1).

    A kernel [..., O] is the matrix [product of the others, O], as in the paper: a convolution's [h, w, I, O] is [h * w * I, O].
    The estimate comes from one step of power iteration, in float32. Its vector outlives a call as the variable "u" [O] of
    the flax collection "spectral", which has to be mutable where `train` is set. Derivatives go through sigma to the kernel,
    and not into the vectors. A zero kernel has no direction to divide by.

    Args:
      layer: the (compact) flax module that calls; it gets the variable.
      kernel: float32 [..., O].
      train: keep the vector that the step led to. Without it nothing changes, and two calls give the same.

    Returns:
      float32 [..., O].
    """
    u = layer.variable("spectral", "u", _first_vector, layer, kernel.shape[-1])
    matrix = jax.lax.stop_gradient(kernel).reshape(-1, kernel.shape[-1])
    left = _unit(_product(matrix, u.value))
    right = u.value
    if train:
        right = _unit(_product(left, matrix))
        if not layer.is_initializing():
            u.value = right
    sigma = _product(_product(left, kernel.reshape(matrix.shape)), right)
    return kernel / sigma


def _first_vector(layer: nn.Module, features: int) -> jax.Array:
    return _unit(jax.random.normal(layer.make_rng("params"), (features,), jnp.float32))


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x)), 1e-24))


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """In float32 all through; what devices do by default costs sigma more digits than the computation has."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


class SpectralDense(nn.Module):
    """A matrix product with the normalised kernel. [..., I] -> [..., features].

    Attributes:
      features: of the output.
      use_bias: add a bias, which is not normalised.
      kernel_init: of the kernel [I, features].
      dtype: of the computation; parameters and vectors are float32.
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable = KERNEL_INIT
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """train: update the collection "spectral", see `normalised`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        kernel = normalised(self, kernel, train=train)
        x = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            x = x + jnp.expand_dims(bias.astype(self.dtype), range(x.ndim - 1))
        return x
