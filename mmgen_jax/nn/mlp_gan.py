"""Generator and discriminator of dense layers, for points and other data without neighbourhoods."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn.spectral_norm import SpectralDense
from mmgen_jax.nn.text_conditioning import Generated, Judged, SentenceProjection, Text, leaky_relu


def with_waves(x: jax.Array, count: int, finest: float) -> jax.Array:
    """Points with sines and cosines of them along random directions: random Fourier features (Tancik et al., 2020).

    Dense layers alone are slow to learn what changes over a hundredth of their inputs' range. The wavelengths lie evenly, by
    their logarithm, between 32 times the finest and the finest; a wave's height is the root of its length, so that the coarse is
    learned first. The directions are always the same, each D in a row at right angles, so that none is left out at any scale.

    Args:
      x: [B, D].
      count: of waves; 0 gives x as it is.
      finest: the shortest wavelength, in units of x.

    Returns:
      [B, D + 2 count].
    """
    if not count:
        return x
    size = x.shape[-1]
    frames = np.linalg.qr(np.random.default_rng(0).normal(size=(math.ceil(count / size), size, size)))[0]
    direction = frames.reshape(-1, size)[:count].T
    number = 2 * np.pi / (finest * 32.0 ** np.linspace(1.0, 0.0, count))
    angle = x.astype(jnp.float32) @ jnp.asarray(direction * number, jnp.float32)
    height = jnp.asarray(number**-0.5, jnp.float32)[None]
    return jnp.concatenate(
        [x, *((height * wave(angle)).astype(x.dtype) for wave in (jnp.sin, jnp.cos))], axis=-1
    )


class MlpGenerator(nn.Module):
    """Dense layers from noise to a point, whose values have no bounds.

    Attributes:
      shape: height, width and channels of what it makes.
      width, depth: features and number of the hidden layers.
      z_features: Z, of the noise.
      waves, finest: of the noise, with which points close together in it can go to modes far apart, see `with_waves`.
      text_features: what a sentence is projected to.
      dtype: of the computation; parameters and points are float32.
    """

    shape: Sequence[int] = (1, 1, 2)
    width: int = 128
    depth: int = 3
    z_features: int = 100
    waves: int = 0
    finest: float = 1.0
    text_features: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, text: Text | None, *, train: bool) -> Generated:
        """z: [B, Z] -> one stage, [B, *shape]."""
        del train
        x = with_waves(z, self.waves, self.finest).astype(self.dtype)
        if text is not None:
            sentence = SentenceProjection(self.text_features, self.dtype, name="text")(text.sentence)
            x = jnp.concatenate([x, sentence], axis=-1)
        for i in range(self.depth):
            x = nn.Dense(
                self.width, dtype=self.dtype, kernel_init=nn.initializers.he_normal(), name=f"dense{i + 1}"
            )(x)
            x = nn.relu(x)
        x = nn.Dense(math.prod(self.shape), dtype=self.dtype, name="out")(x)
        return Generated((x.astype(jnp.float32).reshape(len(z), *self.shape),), {}, ())


class Layers(nn.Module):
    """Dense layers, each with a leaky ReLU. [B, D] -> [B, width]."""

    width: int
    depth: int
    spectral: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for i in range(self.depth):
            name = f"dense{i + 1}"
            if self.spectral:
                x = SpectralDense(self.width, dtype=self.dtype, name=name)(x, train=train)
            else:
                init = nn.initializers.he_normal()
                x = nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name=name)(x)
            x = leaky_relu(x)
        return x


class MlpDiscriminator(nn.Module):
    """Dense layers from a point to a logit; a text's sentence enters before the last hidden layer.

    Attributes:
      width, depth: features and number of the hidden layers, the last of which belongs to the judgement.
      waves, finest: of the point, which show it what is close together, see `with_waves`.
      text_features: what a sentence is projected to.
      spectral: hidden weights are divided by their spectral norm (Miyato et al., 2018).
      dtype: of the computation; parameters and logits are float32.
    """

    width: int = 128
    depth: int = 3
    waves: int = 0
    finest: float = 1.0
    text_features: int = 128
    spectral: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        self.trunk = Layers(self.width, self.depth - 1, self.spectral, self.dtype)
        self.joined = Layers(self.width, 1, self.spectral, self.dtype)
        self.text = SentenceProjection(self.text_features, self.dtype)
        self.logit = nn.Dense(1, dtype=self.dtype)

    def features(self, images: tuple[jax.Array, ...], *, train: bool) -> tuple[jax.Array, ...]:
        """images: one stage, [B, H, W, C] -> one map, [B, width]."""
        (image,) = images
        x = with_waves(rearrange(image, "b h w c -> b (h w c)"), self.waves, self.finest)
        return (self.trunk(x.astype(self.dtype), train=train),)

    def judge(self, features: tuple[jax.Array, ...], text: Text | None, *, train: bool) -> Judged:
        """Logits of what `features` gave."""
        (x,) = features
        if text is not None:
            x = jnp.concatenate([x, self.text(text.sentence)], axis=-1)
        logit = self.logit(self.joined(x, train=train))[:, 0].astype(jnp.float32)
        return Judged((), (logit,)) if text is None else Judged((logit,), ())

    def __call__(self, images: tuple[jax.Array, ...], text: Text | None, *, train: bool) -> Judged:
        """Logits of images with their texts."""
        return self.judge(self.features(images, train=train), text, train=train)


def make_generator(*, dtype: Any, axis_name: str | None = None, **fields: Any) -> MlpGenerator:
    """A generator from `fields`. `axis_name` has no use: no batch statistics.

    Raises:
      ValueError: an unknown field; the message names the nearest one.
    """
    return registry.call(MlpGenerator, fields, "the mlp_gan generator", dtype=dtype)


def make_discriminator(*, dtype: Any, axis_name: str | None = None, **fields: Any) -> MlpDiscriminator:
    """A discriminator from `fields`. `axis_name` has no use: no batch statistics.

    Raises:
      ValueError: an unknown field; the message names the nearest one.
    """
    return registry.call(MlpDiscriminator, fields, "the mlp_gan discriminator", dtype=dtype)
