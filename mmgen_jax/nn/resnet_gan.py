"""Residual generator with conditional batch normalisation and a residual projection discriminator with spectral normalisation.

(SNGAN: Miyato et al., 2018; projection: Miyato and Koyama, 2018; BigGAN: Brock et al., 2019.)
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn.dcgan import grid
from mmgen_jax.nn.resampling import Convolution
from mmgen_jax.nn.resnet import normalise
from mmgen_jax.nn.spectral_norm import SpectralDense
from mmgen_jax.nn.text_conditioning import Generated, Judged, SentenceProjection, Text, standardise

INIT = nn.initializers.xavier_uniform()


class ConditionalNorm(nn.Module):
    """Batch normalisation whose scale and bias come from a vector (Dumoulin et al., 2017). [B, H, W, D] -> [B, H, W, D].

    Attributes:
      dtype: of the result; statistics are float32.
      axis_name: mapped axis over which batch statistics are averaged, in the per-device mode; else None.
    """

    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array, *, train: bool) -> jax.Array:
        """condition: [B, F]."""
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            use_scale=False,
            use_bias=False,
            axis_name=self.axis_name,
            name="norm",
        )
        init = nn.initializers.normal(0.02)
        both = nn.Dense(2 * x.shape[-1], dtype=self.dtype, kernel_init=init, name="modulate")(condition)
        scale, bias = jnp.split(both.astype(jnp.float32)[:, None, None], 2, axis=-1)
        return (norm(x.astype(jnp.float32)) * (1.0 + scale) + bias).astype(self.dtype)


class UpBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, at twice the grid. [B, H, W, D] -> [B, 2 H, 2 W, features]."""

    features: int
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array, *, train: bool) -> jax.Array:
        fields = {"kernel_init": INIT, "dtype": self.dtype}
        y = x
        for i, resample in enumerate(("up", "none"), 1):
            y = ConditionalNorm(self.dtype, self.axis_name, name=f"norm{i}")(y, condition, train=train)
            conv = Convolution(self.features, 3, resample, **fields, name=f"conv{i}")
            y = conv(nn.relu(y), train=train)
        x = Convolution(self.features, 1, **fields, name="shortcut")(x, train=train)
        return y + repeat(x, "b h w d -> b (h p) (w q) d", p=2, q=2)


class ResnetGenerator(nn.Module):
    """Noise and sentence become a small grid and, in each block, set the scales and biases of its batch normalisation.

    Attributes:
      image_size: side in pixels: 4 or 7 times a power of two.
      width: features of the last grid, half of the one before, and so on, but never more than `max_width`.
      channels: of the image.
      z_features: Z, of the noise.
      text_features: what a sentence is projected to.
      dtype: of the computation; parameters, batch statistics and images are float32.
      axis_name: mapped axis over which batch statistics are averaged, in the per-device mode; else None.
    """

    image_size: int = 32
    width: int = 64
    max_width: int = 512
    channels: int = 3
    z_features: int = 100
    text_features: int = 128
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: jax.Array, text: Text | None, *, train: bool) -> Generated:
        """z: [B, Z] -> one stage, [B, image_size, image_size, channels] in [-1, 1].

        Raises:
          ValueError: an image_size that it cannot make.
        """
        side, doublings = grid(self.image_size)
        condition = z.astype(self.dtype)
        if text is not None:
            sentence = SentenceProjection(self.text_features, self.dtype, name="text")(text.sentence)
            condition = jnp.concatenate([condition, sentence], axis=-1)
        widths = [min(self.width * 2**i, self.max_width) for i in reversed(range(doublings))]
        first = nn.Dense(side * side * widths[0], dtype=self.dtype, kernel_init=INIT, name="first")
        x = rearrange(first(condition), "b (h w d) -> b h w d", h=side, w=side)
        for i, features in enumerate(widths, 1):
            block = UpBlock(features, self.dtype, self.axis_name, name=f"block{i}")
            x = block(x, condition, train=train)
        x = nn.relu(normalise(x, "norm", train=train, axis_name=self.axis_name, dtype=self.dtype))
        fields = {"use_bias": True, "kernel_init": INIT, "dtype": self.dtype, "name": "out"}
        x = Convolution(self.channels, 3, **fields)(x, train=train)
        return Generated((jnp.tanh(x.astype(jnp.float32)),), {}, ())


class DownBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, then half the grid if `down`. [B, H, W, D] -> [B, H', W', features].

    Attributes:
      first: this block sees the image, of whose pixels no negative ones are dropped.
    """

    features: int
    down: bool
    first: bool
    spectral: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        fields = {"spectral": self.spectral, "kernel_init": INIT, "dtype": self.dtype}
        resample = "down" if self.down else "none"
        y = x if self.first else nn.relu(x)
        y = Convolution(self.features, 3, use_bias=True, **fields, name="conv1")(y, train=train)
        conv2 = Convolution(self.features, 3, resample, use_bias=True, **fields, name="conv2")
        y = conv2(nn.relu(y), train=train)
        if self.down:
            x = reduce(x, "b (h p) (w q) d -> b h w d", "mean", p=2, q=2)
        if x.shape != y.shape:
            x = Convolution(self.features, 1, **fields, name="shortcut")(x, train=train)
        return x + y


class Trunk(nn.Module):
    """Blocks that halve the image down to the smallest grid, and one that keeps it. [B, H, W, C] -> [B, h, w, D]."""

    width: int
    max_width: int
    spectral: bool
    dtype: Any

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        _, halvings = grid(*image.shape[1:3])
        x = image.astype(self.dtype)
        for i in range(halvings + 1):
            features = min(self.width * 2 ** min(i, halvings - 1), self.max_width)
            block = DownBlock(features, i < halvings, i == 0, self.spectral, self.dtype, name=f"block{i + 1}")
            x = block(x, train=train)
        return nn.relu(x)


class Head(nn.Module):
    """A logit of the positions' sum, plus that sum's product with the sentence (Miyato and Koyama, 2018, eq. 3)."""

    spectral: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, text: Text | None, *, train: bool) -> jax.Array:
        """x: [B, h, w, D] -> float32 [B]."""
        pooled = jnp.sum(x.astype(jnp.float32), axis=(1, 2))

        def product(x: jax.Array, features: int, name: str, use_bias: bool) -> jax.Array:
            fields = {"use_bias": use_bias, "kernel_init": INIT, "dtype": self.dtype, "name": name}
            if self.spectral:
                return SpectralDense(features, **fields)(x, train=train).astype(jnp.float32)
            return nn.Dense(features, **fields)(x).astype(jnp.float32)

        logit = product(pooled, 1, "logit", True)[:, 0]
        if text is not None:
            direction = product(standardise(text.sentence), pooled.shape[-1], "text", False)
            logit = logit + jnp.sum(direction * pooled, axis=-1)
        return logit


class ResnetDiscriminator(nn.Module):
    """Residual blocks without batch normalisation down to the smallest grid, and one logit.

    The images' own size, which must be one that `ResnetGenerator` makes, says how many blocks there are.

    Attributes:
      width: features of the first block; they double at each further one, but are never more than `max_width`.
      spectral: weights are divided by their spectral norm.
      dtype: of the computation; parameters and logits are float32.
    """

    width: int = 64
    max_width: int = 512
    spectral: bool = True
    dtype: Any = jnp.float32

    def setup(self):
        self.trunk = Trunk(self.width, self.max_width, self.spectral, self.dtype)
        self.head = Head(self.spectral, self.dtype)

    def features(self, images: tuple[jax.Array, ...], *, train: bool) -> tuple[jax.Array, ...]:
        """images: one stage, [B, H, W, C] in [-1, 1] -> one map, [B, 4 or 7, 4 or 7, D].

        Raises:
          ValueError: images of a size that it cannot take.
        """
        (image,) = images
        return (self.trunk(image, train=train),)

    def judge(self, features: tuple[jax.Array, ...], text: Text | None, *, train: bool) -> Judged:
        """Logits of what `features` gave: conditional with a text, unconditional without."""
        (x,) = features
        logits = (self.head(x, text, train=train),)
        return Judged((), logits) if text is None else Judged(logits, ())

    def __call__(self, images: tuple[jax.Array, ...], text: Text | None, *, train: bool) -> Judged:
        """Logits of images with their texts."""
        return self.judge(self.features(images, train=train), text, train=train)


def make_generator(*, dtype: Any, axis_name: str | None = None, **fields: Any) -> ResnetGenerator:
    """A generator from `fields`.

    Raises:
      ValueError: an unknown field; the message names the nearest one.
    """
    return registry.call(
        ResnetGenerator, fields, "the resnet_gan generator", dtype=dtype, axis_name=axis_name
    )


def make_discriminator(*, dtype: Any, axis_name: str | None = None, **fields: Any) -> ResnetDiscriminator:
    """A discriminator from `fields`. `axis_name` has no use: no batch statistics.

    Raises:
      ValueError: an unknown field; the message names the nearest one.
    """
    return registry.call(ResnetDiscriminator, fields, "the resnet_gan discriminator", dtype=dtype)
