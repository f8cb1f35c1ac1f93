"""StackGAN (Zhang et al., 2017): a small image from text, then a larger one from it; and StackGAN-v2's tree (Zhang et al., 2018).

Stages are "stage1", "stage2", ... among the parameters, so that optimizer rules and checkpoints can name them.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn import dcgan
from mmgen_jax.nn.resampling import Convolution
from mmgen_jax.nn.resnet import normalise
from mmgen_jax.nn.text_conditioning import (
    ConditioningAugmentation,
    Generated,
    Judged,
    Text,
    glu,
    join,
    leaky_relu,
)


def doublings(image_sizes: Sequence[int]) -> list[int]:
    """How often each stage after the first doubles the image before it.

    Raises:
      ValueError: a side that is not 2, 4, 8 ... times the one before.
    """
    times = []
    for small, large in itertools.pairwise(image_sizes):
        ratio = large // small
        if ratio < 2 or ratio & (ratio - 1) or large % small:
            valid = ", ".join(str(small * 2**i) for i in (1, 2, 3))
            raise ValueError(
                f"image_sizes = {tuple(image_sizes)}: a stage doubles the one before, so {small} px can be followed by "
                f"{valid} ... px, not by {large}."
            )
        times.append(int(math.log2(ratio)))
    return times


class Layer(nn.Module):
    """A 3x3 convolution, batch normalisation and an activation. [B, H, W, D] -> [B, H', W', features].

    Attributes:
      features: of the result.
      resample: "none", "up" or "down", see `resampling.Convolution`; "down" has a kernel of 4x4.
      activation: `glu`, which has twice the features to choose from, or a function of one value; None for none.
      dtype, axis_name: see `StackganGenerator`.
    """

    features: int
    resample: str = "none"
    activation: Callable | None = nn.relu
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        features = self.features * (2 if self.activation is glu else 1)
        kernel = 4 if self.resample == "down" else 3
        conv = Convolution(features, kernel, self.resample, dtype=self.dtype, name="conv")
        x = normalise(
            conv(x, train=train),
            "norm",
            train=train,
            axis_name=self.axis_name,
            dtype=self.dtype,
            scale_init=dcgan.scale_init,
        )
        return x if self.activation is None else self.activation(x)


class Residual(nn.Module):
    """Two layers beside a shortcut. [B, H, W, D] -> [B, H, W, D].

    Attributes:
      activation: of the first layer.
      after: what follows the sum.
      dtype, axis_name: see `StackganGenerator`.
    """

    activation: Callable
    after: Callable | None
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layer = partial(Layer, x.shape[-1], "none", dtype=self.dtype, axis_name=self.axis_name)
        y = layer(activation=self.activation, name="layer1")(x, train=train)
        x = x + layer(activation=None, name="layer2")(y, train=train)
        return x if self.after is None else self.after(x)


class FirstStage(nn.Module):
    """A vector becomes a small grid, which doubles up to the image's size. [B, F] -> [B, image_size, image_size, width].

    Attributes:
      image_size: side in pixels: 4 or 7 times a power of two.
      width: features of the last grid, half of the one before, and so on.
      activation: `glu` or `nn.relu`.
      dtype, axis_name: see `StackganGenerator`.
    """

    image_size: int
    width: int
    activation: Callable
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, vector: jax.Array, *, train: bool) -> jax.Array:
        side, times = dcgan.grid(self.image_size)
        features = self.width * 2**times * (2 if self.activation is glu else 1)
        fields = {"use_bias": False, "dtype": self.dtype, "kernel_init": dcgan.INIT, "name": "first"}
        x = nn.Dense(side * side * features, **fields)(vector)
        x = rearrange(x, "b (h w d) -> b h w d", h=side, w=side)
        more = {"train": train, "axis_name": self.axis_name, "dtype": self.dtype}
        x = self.activation(normalise(x, "norm", scale_init=dcgan.scale_init, **more))
        for i in range(times):
            layer = Layer(self.width * 2 ** (times - 1 - i), "up", self.activation, self.dtype, self.axis_name,
                          name=f"up{i + 1}")  # fmt: skip
            x = layer(x, train=train)
        return x


def draw(x: jax.Array, channels: int, dtype: Any, name: str) -> jax.Array:
    """The image of a stage's last grid, from a compact module. [B, H, W, D] -> float32 [B, H, W, channels] in [-1, 1]."""
    return jnp.tanh(Convolution(channels, 3, dtype=dtype, name=name)(x, train=False).astype(jnp.float32))


class SecondStage(nn.Module):
    """An image is made a quarter as large, joined with the text, refined and drawn again, larger.

    [B, H, W, C], [B, c] -> [B, 2^times H, 2^times W, width / 4].

    Attributes:
      width: features of the first convolution, a quarter of those that meet the text.
      times: how often the side doubles against the image before.
      blocks: residual blocks on the joined features.
      dtype, axis_name: see `StackganGenerator`.
    """

    width: int
    times: int
    blocks: int
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, image: jax.Array, condition: jax.Array | None, *, train: bool) -> jax.Array:
        layer = partial(Layer, dtype=self.dtype, axis_name=self.axis_name)
        x = Convolution(self.width, 3, dtype=self.dtype, name="encode")(image.astype(self.dtype), train=train)
        x = nn.relu(x)
        for i in (1, 2):
            x = layer(self.width * 2**i, "down", name=f"down{i}")(x, train=train)
        if condition is not None:
            x = join(x, condition)
        x = layer(4 * self.width, name="joined")(x, train=train)
        for i in range(self.blocks):
            x = Residual(nn.relu, nn.relu, self.dtype, self.axis_name, name=f"block{i + 1}")(x, train=train)
        for i in range(self.times + 2):
            features = max(4 * self.width // 2 ** (i + 1), self.width // 4)
            x = layer(features, "up", name=f"up{i + 1}")(x, train=train)
        return x


class StackganGenerator(nn.Module):
    """Stage I draws a small image from noise and text; each further stage draws the image before again, larger, with the text.

    Attributes:
      image_sizes: sides in pixels, one a stage.
      width: N_g: a first stage of 64 px starts with 8 times, a further one joins the text to 4 times so many features.
      blocks: residual blocks of a further stage.
      frozen: only the last stage learns; those before, which come from a run of their own, get no gradients and keep their batch
        statistics. (Weight decay would still move them: freeze "stage1" in optimizer.rules as well where there is any.)
      channels: of the images.
      z_features: Z, of the noise.
      augmented: features of the conditioning augmentation, of which each stage has its own.
      dtype: of the computation; parameters, batch statistics and images are float32.
      axis_name: mapped axis over which batch statistics are averaged, in the per-device mode; else None.
    """

    image_sizes: Sequence[int] = (64, 256)
    width: int = 192
    blocks: int = 4
    frozen: bool = False
    channels: int = 3
    z_features: int = 100
    augmented: int = 128
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: jax.Array, text: Text | None, *, train: bool) -> Generated:
        """z: [B, Z] -> one image a stage, [B, image_size, image_size, channels] in [-1, 1].

        The statistics are those of all stages that learn, side by side.

        Raises:
          ValueError: image sizes that it cannot make.
        """
        times = doublings(self.image_sizes)
        images, statistics = [], []
        for i in range(len(self.image_sizes)):
            condition = None
            learns = train and not (self.frozen and i + 1 < len(self.image_sizes))
            if text is not None:
                augmentation = ConditioningAugmentation(self.augmented, self.dtype, name=f"stage{i + 1}_text")
                condition, found = augmentation(text.sentence)
                statistics.append(found)
            fields = {"dtype": self.dtype, "axis_name": self.axis_name, "name": f"stage{i + 1}"}
            if i == 0:
                vector = z.astype(self.dtype)
                vector = vector if condition is None else jnp.concatenate([condition, vector], axis=-1)
                stage = FirstStage(self.image_sizes[0], max(self.width // 2, 1), nn.relu, **fields)
                x = stage(vector, train=learns)
            else:
                before = jax.lax.stop_gradient(images[-1]) if self.frozen else images[-1]
                stage = SecondStage(self.width, times[i - 1], self.blocks, **fields)
                x = stage(before, condition, train=learns)
            images.append(draw(x, self.channels, self.dtype, f"stage{i + 1}_image"))
        if self.frozen:
            statistics = statistics[-1:]
        joined = (
            jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), *statistics) if statistics else {}
        )
        return Generated(tuple(images), joined, ())


class TreeGenerator(nn.Module):
    """StackGAN-v2: one hidden grid grows from stage to stage, joined with the text, and each stage draws an image of it.

    Attributes:
      image_sizes: sides in pixels, one a stage.
      width: features of the first stage's last grid; each further stage halves them.
      blocks: residual blocks of a further stage.
      channels, z_features, dtype, axis_name: as `StackganGenerator`.
      augmented: features of the conditioning augmentation, which all stages share.
    """

    image_sizes: Sequence[int] = (64, 128, 256)
    width: int = 64
    blocks: int = 2
    channels: int = 3
    z_features: int = 100
    augmented: int = 128
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: jax.Array, text: Text | None, *, train: bool) -> Generated:
        """z: [B, Z] -> one image a stage, [B, image_size, image_size, channels] in [-1, 1].

        Raises:
          ValueError: image sizes that it cannot make.
        """
        times = doublings(self.image_sizes)
        vector, statistics, condition = z.astype(self.dtype), {}, None
        if text is not None:
            augmentation = ConditioningAugmentation(self.augmented, self.dtype, name="text")
            condition, statistics = augmentation(text.sentence)
            vector = jnp.concatenate([condition, vector], axis=-1)
        fields = {"dtype": self.dtype, "axis_name": self.axis_name}
        x = FirstStage(self.image_sizes[0], self.width, glu, **fields, name="stage1")(vector, train=train)
        images = [draw(x, self.channels, self.dtype, "stage1_image")]
        for i, doubled in enumerate(times, 2):
            features = x.shape[-1]
            x = x if condition is None else join(x, condition)
            x = Layer(features, "none", glu, **fields, name=f"stage{i}_joined")(x, train=train)
            x = refine(x, self.blocks, doubled, max(features // 2, 1), f"stage{i}", train=train, **fields)
            images.append(draw(x, self.channels, self.dtype, f"stage{i}_image"))
        return Generated(tuple(images), statistics, ())


def refine(
    x: jax.Array, blocks: int, doubled: int, features: int, name: str, *, train: bool, **fields: Any
) -> jax.Array:
    """Residual blocks, then the grid doubled so often; from a compact module. [B, H, W, D] -> [B, H', W', features]."""
    for i in range(blocks):
        x = Residual(glu, None, **fields, name=f"{name}_block{i + 1}")(x, train=train)
    for i in range(doubled):
        x = Layer(features, "up", glu, **fields, name=f"{name}_up{i + 1}")(x, train=train)
    return x


class StageTrunk(nn.Module):
    """DCGAN's trunk, and 3x3 convolutions until no more than 8 times the width is left. [B, H, W, C] -> [B, h, w, D]."""

    width: int
    spectral: bool
    batch_norm: bool
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        shared = (self.spectral, self.batch_norm, self.dtype, self.axis_name)
        x = dcgan.Trunk(self.width, *shared, name="down")(image, train=train)
        while x.shape[-1] > 8 * self.width:
            features = x.shape[-1] // 2
            normed = self.batch_norm and not self.spectral
            fields = {"spectral": self.spectral, "dtype": self.dtype, "name": f"conv{features}"}
            x = Convolution(features, 3, use_bias=not normed, **fields)(x, train=train)
            if normed:
                more = {"train": train, "axis_name": self.axis_name, "dtype": self.dtype}
                x = normalise(x, f"norm{features}", scale_init=dcgan.scale_init, **more)
            x = leaky_relu(x)
        return x


class StackganDiscriminator(nn.Module):
    """A DCGAN discriminator of its own for each stage's image.

    Attributes:
      stages: how many of the generator's images are judged, counted from the largest; 1 where all stages but the last are frozen.
      unconditional: each stage also has a logit of the image alone (StackGAN-v2, AttnGAN).
      width: N_d, features of each first grid.
      text_features: what a sentence is projected to before it is replicated.
      spectral, batch_norm, dtype, axis_name: as `dcgan.DcganDiscriminator`.
    """

    stages: int = 2
    unconditional: bool = False
    width: int = 64
    text_features: int = 128
    spectral: bool = False
    batch_norm: bool = True
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def setup(self):
        shared = (self.spectral, self.batch_norm, self.dtype, self.axis_name)
        # Lists would number the stages from 0.
        for i in range(1, self.stages + 1):
            setattr(self, f"stage{i}", StageTrunk(self.width, *shared))
            setattr(self, f"stage{i}_both", dcgan.Head("replicate", self.text_features, *shared, kernel=3))
            setattr(self, f"stage{i}_alone", dcgan.Head("replicate", self.text_features, *shared))

    def features(self, images: tuple[jax.Array, ...], *, train: bool) -> tuple[jax.Array, ...]:
        """images: [B, H, W, C] in [-1, 1], the smallest first -> a map [B, 4 or 7, 4 or 7, D] for each judged stage.

        Raises:
          ValueError: fewer images than stages, or images of a size that it cannot take.
        """
        if len(images) < self.stages:
            raise ValueError(
                f"The discriminator judges {self.stages} stages, but the generator makes {len(images)}: "
                f"set task.discriminator.stages to {len(images)}, or add sizes to task.generator.image_sizes."
            )
        judged = images[len(images) - self.stages :]
        return tuple(getattr(self, f"stage{i}")(x, train=train) for i, x in enumerate(judged, 1))

    def judge(self, features: tuple[jax.Array, ...], text: Text | None, *, train: bool) -> Judged:
        """Logits of what `features` gave: conditional ones with a text, unconditional ones without or by choice."""

        def logits(kind: str, text: Text | None) -> tuple[jax.Array, ...]:
            heads = (getattr(self, f"stage{i}_{kind}") for i in range(1, self.stages + 1))
            return tuple(head(x, text, train=train) for head, x in zip(heads, features, strict=True))

        alone = self.unconditional or text is None
        return Judged(
            () if text is None else logits("both", text),
            logits("alone", None) if alone else (),
        )

    def __call__(self, images: tuple[jax.Array, ...], text: Text | None, *, train: bool) -> Judged:
        """Logits of images with their texts."""
        return self.judge(self.features(images, train=train), text, train=train)


def make_generator(
    *, joint: bool = False, dtype: Any, axis_name: str | None = None, **fields: Any
) -> StackganGenerator | TreeGenerator:
    """StackGAN's generator from `fields`, or with `joint` the tree of StackGAN-v2, whose stages are trained together.

    Raises:
      ValueError: an unknown field; the message names the nearest one.
    """
    generator = TreeGenerator if joint else StackganGenerator
    return registry.call(generator, fields, "the stackgan generator", dtype=dtype, axis_name=axis_name)


def make_discriminator(
    *, joint: bool = False, dtype: Any, axis_name: str | None = None, **fields: Any
) -> StackganDiscriminator:
    """A discriminator from `fields`; with `joint` of three stages, each with unconditional logits too, unless they say otherwise.

    Raises:
      ValueError: an unknown field; the message names the nearest one.
    """
    fields = {**({"stages": 3, "unconditional": True} if joint else {}), **fields}
    what = "the stackgan discriminator"
    return registry.call(StackganDiscriminator, fields, what, dtype=dtype, axis_name=axis_name)
