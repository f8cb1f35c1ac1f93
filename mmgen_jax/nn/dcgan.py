"""DCGAN (Radford et al., 2016) with or without text (Reed et al., 2016): 4x4 convolutions that double and halve the grid."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn.resampling import Convolution
from mmgen_jax.nn.resnet import normalise
from mmgen_jax.nn.spectral_norm import SpectralDense
from mmgen_jax.nn.text_conditioning import (
    Generated,
    Judged,
    SentenceProjection,
    Text,
    join,
    leaky_relu,
    standardise,
)

# Side in pixels -> the smallest grid and how often it doubles.
SIZES = {side * 2**times: (side, times) for side in (4, 7) for times in range(1, 7)}
CONDITIONS = ("replicate", "projection")
INIT = nn.initializers.normal(0.02)
# Without batch normalisation such small weights would let the signal die out from layer to layer.
BARE_INIT = nn.initializers.he_normal()


def scale_init(rng: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Scales of batch normalisation: normal around 1 with a standard deviation of 0.02."""
    return 1.0 + 0.02 * jax.random.normal(rng, shape, dtype)


def grid(*image_size: int) -> tuple[int, int]:
    """The side of the smallest grid and how often it doubles, of images with these sides in pixels.

    Raises:
      ValueError: no number of doublings makes such images; the message names those that can be made.
    """
    if len(set(image_size)) > 1 or image_size[0] not in SIZES:
        sizes = ", ".join(map(str, sorted(SIZES)))
        raise ValueError(
            f"This network makes square images of {sizes} pixels, not of {'x'.join(map(str, image_size))}: "
            "resize the data, and set image_size to match."
        )
    return SIZES[image_size[0]]


class DcganGenerator(nn.Module):
    """Noise, beside a projected sentence, becomes a small grid, which transposed convolutions double up to the image.

    Attributes:
      image_size: side in pixels: 4 or 7 times a power of two.
      width: features of the grid of half the image's size, half of the one before, and so on (ngf).
      channels: of the image.
      z_features: Z, of the noise.
      text_features: what a sentence is projected to.
      resize: each doubling copies a pixel to 2x2, for a 3x3 convolution in place of the transposed 4x4 one (Odena et al.,
        Deconvolution and Checkerboard Artifacts, 2016), and the image is drawn from a hidden grid of its own size.
      dtype: of the computation; parameters, batch statistics and images are float32.
      axis_name: mapped axis over which batch statistics are averaged, in the per-device mode; else None.
    """

    image_size: int = 64
    width: int = 64
    channels: int = 3
    z_features: int = 100
    text_features: int = 128
    resize: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: jax.Array, text: Text | None, *, train: bool) -> Generated:
        """z: [B, Z] -> one stage, [B, image_size, image_size, channels] in [-1, 1].

        Raises:
          ValueError: an image_size that it cannot make.
        """
        side, doublings = grid(self.image_size)
        norm = partial(
            normalise, train=train, axis_name=self.axis_name, dtype=self.dtype, scale_init=scale_init
        )
        x = z.astype(self.dtype)
        if text is not None:
            sentence = SentenceProjection(self.text_features, self.dtype, name="text")(text.sentence)
            x = jnp.concatenate([x, sentence], axis=-1)
        width = self.width * 2 ** (doublings - 1)
        # The transposed convolution of a single pixel.
        first = nn.Dense(
            side * side * width, use_bias=False, dtype=self.dtype, kernel_init=INIT, name="first"
        )
        x = rearrange(first(x), "b (h w d) -> b h w d", h=side, w=side)
        kernel = 3 if self.resize else 4
        for i in range(doublings):
            x = nn.relu(norm(x, f"norm{i}"))
            draws = i + 1 == doublings and not self.resize
            features = self.channels if draws else width // 2 ** (i + 1)
            x = Convolution(features, kernel, "up", dtype=self.dtype, name=f"up{i + 1}")(x, train=train)
        if self.resize:
            x = nn.relu(norm(x, f"norm{doublings}"))
            x = Convolution(self.channels, 3, dtype=self.dtype, name="out")(x, train=train)
        return Generated((jnp.tanh(x.astype(jnp.float32)),), {}, ())


class Trunk(nn.Module):
    """4x4 convolutions of stride 2 down to the smallest grid. [B, H, W, C] -> [B, h, w, D].

    The first has no batch normalisation; the features double at each further one.
    """

    width: int
    spectral: bool
    batch_norm: bool
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        _, halvings = grid(*image.shape[1:3])
        norm = partial(
            normalise, train=train, axis_name=self.axis_name, dtype=self.dtype, scale_init=scale_init
        )
        normed = self.batch_norm and not self.spectral
        x = image.astype(self.dtype)
        for i in range(halvings):
            fields = {"spectral": self.spectral, "dtype": self.dtype, "name": f"down{i + 1}"}
            fields |= {"use_bias": not normed, "kernel_init": INIT if normed else BARE_INIT}
            x = Convolution(self.width * 2**i, 4, "down", **fields)(x, train=train)
            if i and normed:
                x = norm(x, f"norm{i + 1}")
            x = leaky_relu(x)
        return x


class Head(nn.Module):
    """One logit from the smallest grid, of the image alone or of image and text. [B, h, w, D] -> float32 [B].

    Attributes:
      condition: "replicate": the projected sentence beside every position, then a convolution (Reed et al., 2016); "projection":
        the unconditional logit plus the product of sentence and summed positions (Miyato and Koyama, 2018, eq. 3).
      text_features: what a sentence is projected to before it is replicated.
      kernel: of the convolution after that.
      spectral, batch_norm, dtype, axis_name: see `DcganDiscriminator`.
    """

    condition: str
    text_features: int
    spectral: bool
    batch_norm: bool
    dtype: Any
    axis_name: str | None
    kernel: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, text: Text | None, *, train: bool) -> jax.Array:
        if self.condition not in CONDITIONS:
            nearest = registry.nearest(self.condition, CONDITIONS)
            raise ValueError(f'Unknown discriminator condition "{self.condition}".{nearest}')
        normed = self.batch_norm and not self.spectral
        if text is not None and self.condition == "replicate":
            joined = join(x, SentenceProjection(self.text_features, self.dtype, name="text")(text.sentence))
            fields = {"spectral": self.spectral, "dtype": self.dtype, "name": "joined_conv"}
            fields |= {"use_bias": not normed, "kernel_init": INIT if normed else BARE_INIT}
            x = Convolution(x.shape[-1], self.kernel, **fields)(joined, train=train)
            if normed:
                fields = {"train": train, "axis_name": self.axis_name, "dtype": self.dtype}
                x = normalise(x, "joined_norm", scale_init=scale_init, **fields)
            x = leaky_relu(x)
        flat = rearrange(x, "b h w d -> b (h w d)")
        fields = {"dtype": self.dtype, "kernel_init": INIT}
        if self.spectral:
            logit = SpectralDense(1, **fields, name="logit")(flat, train=train)
        else:
            logit = nn.Dense(1, use_bias=not normed, **fields, name="logit")(flat)
        logit = logit[:, 0].astype(jnp.float32)
        if text is not None and self.condition == "projection":
            direction = nn.Dense(x.shape[-1], use_bias=False, **fields, name="text")
            direction = direction(standardise(text.sentence))
            pooled = jnp.sum(x.astype(jnp.float32), axis=(1, 2))
            logit = logit + jnp.sum(direction.astype(jnp.float32) * pooled, axis=-1)
        return logit


class DcganDiscriminator(nn.Module):
    """Strided convolutions down to the smallest grid, and one logit.

    The images' own size, which must be one that `DcganGenerator` makes, says how many convolutions there are.

    Attributes:
      width: features of the first grid; they double at each further one (ndf).
      condition: how a sentence enters, "replicate" or "projection"; see `Head`.
      unconditional: beside the logit of image and text, one of the image alone: what is real is then learnt apart from what
        matches, instead of against it where real images with wrong texts are refused.
      text_features: what a sentence is projected to before it is replicated.
      spectral: weights are divided by their spectral norm, in place of batch normalisation (Miyato et al., 2018).
      batch_norm: batch normalisation, without which layers have biases; switch it off under a gradient penalty, which is of one
        image (Gulrajani et al., 2017).
      dtype: of the computation; parameters, batch statistics and logits are float32.
      axis_name: mapped axis over which batch statistics are averaged, in the per-device mode; else None.
    """

    width: int = 64
    condition: str = "replicate"
    unconditional: bool = False
    text_features: int = 128
    spectral: bool = False
    batch_norm: bool = True
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def setup(self):
        shared = (self.spectral, self.batch_norm, self.dtype, self.axis_name)
        self.trunk = Trunk(self.width, *shared)
        self.head = Head(self.condition, self.text_features, *shared)
        if self.unconditional:
            self.alone = Head(self.condition, self.text_features, *shared)

    def features(self, images: tuple[jax.Array, ...], *, train: bool) -> tuple[jax.Array, ...]:
        """images: one stage, [B, H, W, C] in [-1, 1] -> one map, [B, 4 or 7, 4 or 7, D].

        Raises:
          ValueError: images of a size that no DCGAN makes.
        """
        (image,) = images
        return (self.trunk(image, train=train),)

    def judge(self, features: tuple[jax.Array, ...], text: Text | None, *, train: bool) -> Judged:
        """Logits of what `features` gave: conditional with a text, unconditional without, or both.

        Raises:
          ValueError: unknown condition; `unconditional` where no text makes the other logit conditional.
        """
        (x,) = features
        logits = (self.head(x, text, train=train),)
        if text is None:
            if self.unconditional:
                raise ValueError("unconditional=True is for models with text; without, the one logit is it.")
            return Judged((), logits)
        return Judged(logits, (self.alone(x, None, train=train),) if self.unconditional else ())

    def __call__(self, images: tuple[jax.Array, ...], text: Text | None, *, train: bool) -> Judged:
        """Logits of images with their texts."""
        return self.judge(self.features(images, train=train), text, train=train)


def make_generator(*, dtype: Any, axis_name: str | None = None, **fields: Any) -> DcganGenerator:
    """A generator from `fields`.

    Raises:
      ValueError: an unknown field; the message names the nearest one.
    """
    return registry.call(DcganGenerator, fields, "the dcgan generator", dtype=dtype, axis_name=axis_name)


def make_discriminator(*, dtype: Any, axis_name: str | None = None, **fields: Any) -> DcganDiscriminator:
    """A discriminator from `fields`.

    Raises:
      ValueError: an unknown field; the message names the nearest one.
    """
    return registry.call(
        DcganDiscriminator, fields, "the dcgan discriminator", dtype=dtype, axis_name=axis_name
    )
