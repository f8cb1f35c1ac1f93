"""Layer normalisation in float32 within a computation of another type."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class LayerNorm(nn.Module):
    """Zero mean and unit variance over the features, then a learned scale and bias. [..., D] -> [..., D].

    Statistics and parameters are float32 whatever the computation's type: flax's own layer in bfloat16 mixes
    the two, which JAX refuses under strict promotion. (Ba et al., 2016.)

    Attributes:
      dtype: of the result.
      epsilon: added to the variance.
    """

    dtype: Any = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones_init(), features, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), features, jnp.float32)
        x = x.astype(jnp.float32)
        x = x - x.mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.epsilon)
        return (
            x * jnp.expand_dims(scale, range(x.ndim - 1)) + jnp.expand_dims(bias, range(x.ndim - 1))
        ).astype(self.dtype)
