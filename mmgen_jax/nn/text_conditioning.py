"""What generators and discriminators of images exchange, and how a sentence's vector enters them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import repeat
from flax import linen as nn


class Text(NamedTuple):
    """Texts as a generator sees them.

    sentence: [B, F], a vector a text; words: [B, T, F], a vector a token; mask: bool [B, T], false on padding.
    """

    sentence: jax.Array
    words: jax.Array
    mask: jax.Array


class Generated(NamedTuple):
    """What a generator makes.

    images: float32 [B, H, W, C] in [-1, 1], one a stage, the smallest first.
    statistics: {"mean": [B, c], "log_variance": [B, c]} of the conditioning augmentation, float32; {} where there is none.
    attention: weights of the words at each position, float32 [B, h, w, T], one a stage that has them.
    """

    images: tuple[jax.Array, ...]
    statistics: dict[str, jax.Array]
    attention: tuple[jax.Array, ...]


class Judged(NamedTuple):
    """A discriminator's logits, float32 [B], one a stage: of image and text together, and of the image alone.

    A tuple is empty where the discriminator has no such logits.
    """

    conditional: tuple[jax.Array, ...]
    unconditional: tuple[jax.Array, ...]


def leaky_relu(x: jax.Array) -> jax.Array:
    """x, or 0.2 x where that is larger (the slope of DCGAN; Radford et al., 2016)."""
    return nn.leaky_relu(x, 0.2)


def glu(x: jax.Array) -> jax.Array:
    """One half of the features, gated by the other (Dauphin et al., 2017). [..., 2 D] -> [..., D]."""
    value, gate = jnp.split(x, 2, axis=-1)
    return value * nn.sigmoid(gate)


def standardise(sentence: jax.Array) -> jax.Array:
    """Zero mean and unit variance over the features. [B, F] -> [B, F].

    Towers give vectors of any size, and one that is small beside an image's features is hardly noticed.
    """
    x = sentence.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
    return x.astype(sentence.dtype)


class SentenceProjection(nn.Module):
    """A sentence's vector made small before it is joined to something (Reed et al., 2016, section 4.1). [B, F] -> [B, features].

    Attributes:
      features: of the result.
      dtype: of the computation.
    """

    features: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, sentence: jax.Array) -> jax.Array:
        init = nn.initializers.he_normal()
        project = nn.Dense(self.features, dtype=self.dtype, kernel_init=init, name="project")
        return leaky_relu(project(standardise(sentence)))


class ConditioningAugmentation(nn.Module):
    """A draw from a normal distribution that the sentence sets (StackGAN: Zhang et al., 2017, section 3.2).

    Attributes:
      features: c, of the draw.
      dtype: of the draw; mean and logarithm of the variance are float32.
    """

    features: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, sentence: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """sentence: [B, F] -> c [B, features], {"mean", "log_variance"} each [B, features].

        The noise is of the rng "noise"; without that rng c is the mean.
        """
        both = nn.Dense(2 * self.features, dtype=self.dtype, name="statistics")(standardise(sentence))
        mean, log_variance = jnp.split(both.astype(jnp.float32), 2, axis=-1)
        draw = mean
        if self.has_rng("noise"):
            noise = jax.random.normal(self.make_rng("noise"), mean.shape, jnp.float32)
            draw = mean + jnp.exp(0.5 * log_variance) * noise
        return draw.astype(self.dtype), {"mean": mean, "log_variance": log_variance}


def join(grid: jax.Array, vector: jax.Array) -> jax.Array:
    """A vector beside the features of every position. [B, h, w, D], [B, F] -> [B, h, w, D + F]."""
    _, height, width, _ = grid.shape
    everywhere = repeat(vector.astype(grid.dtype), "b f -> b h w f", h=height, w=width)
    return jnp.concatenate([grid, everywhere], axis=-1)
