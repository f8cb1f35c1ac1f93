"""A small residual convolutional tower for small images, made to be fast on a CPU."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn.vit import patches

NORMS = {"layer": nn.LayerNorm, "group": partial(nn.GroupNorm, num_groups=8)}


class ConvNet(nn.Module):
    """Pre-activation residual stages (He et al. 2016b) down to a coarse grid, brought back to stride 8.

    The first stage works on patches of 4x4, each further one on a grid half as fine. Stages after the second
    see most of the image; their features are repeated over the grid of stride 8 and added (Lin et al. 2017).
    A coarse stage holds many parameters for little arithmetic, and matrix products over patches replace
    strided convolutions: this is what makes the tower fast. There are no batch statistics.

    Attributes:
      widths: features of each stage.
      blocks: residual blocks (two 3x3 convolutions) of each stage. On CPU a block at stride 4 costs as
        much as all the rest, hence none by default.
      norm: "layer" (over the features of a position) or "group" (over a group of features at all positions:
        faster on CPU by a sixth, but learns the shapes of small objects much more slowly).
      dtype: of the computation; parameters are float32.
    """

    widths: Sequence[int] = (32, 96, 192)
    blocks: Sequence[int] = (0, 1, 1)
    norm: str = "layer"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Features of an image. image: float [B, H, W, 3] -> [B, H / 8, W / 8, widths[1]].

        Nothing here depends on `train`. With one stage alone the grid has stride 4.

        Raises:
          ValueError: H or W is no multiple of the coarsest stage's stride, or `widths` and `blocks` differ in
            length.
        """
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"widths {self.widths} and blocks {self.blocks} must have one entry for each stage."
            )
        stride = 4 * 2 ** (len(self.widths) - 1)
        if image.shape[1] % stride or image.shape[2] % stride:
            height, width = (max(side // stride, 1) * stride for side in image.shape[1:3])
            raise ValueError(
                f"{len(self.widths)} stages need images whose sides are multiples of {stride}, not "
                f"{image.shape[1]}x{image.shape[2]}: resize them to {height}x{width} or take fewer stages."
            )
        stages: list[jax.Array] = []
        x = image.astype(self.dtype)
        for i, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            if i > 0:
                x = nn.relu(self.normalise(x, f"down{i + 1}_norm"))
            x = nn.Dense(width, dtype=self.dtype, name=f"down{i + 1}")(patches(x, 2 if i else 4))
            for j in range(blocks):
                x = x + self.residual(x, f"stage{i + 1}_block{j + 1}")
            stages.append(x)
        for i in reversed(range(2, len(stages))):
            y = nn.Dense(self.widths[i - 1], dtype=self.dtype, name=f"up{i + 1}")(
                nn.relu(self.normalise(x, f"up{i + 1}_norm"))
            )
            x = stages[i - 1] + y.repeat(2, axis=1).repeat(2, axis=2)
        return self.normalise(x, "norm")

    def residual(self, x: jax.Array, name: str) -> jax.Array:
        """A block's branch, zero at first so that a fresh block is the identity. [B, H, W, D] -> same."""

        def conv(suffix: str, init: Callable) -> nn.Conv:
            return nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype, kernel_init=init, name=f"{name}_{suffix}")

        y = nn.relu(self.normalise(x, f"{name}_norm"))
        y = nn.relu(conv("conv1", nn.initializers.he_normal())(y))
        return conv("conv2", nn.initializers.zeros)(y)

    def normalise(self, x: jax.Array, name: str) -> jax.Array:
        """Zero mean and unit variance in float32, then a learned scale and bias. [B, H, W, D] -> same."""
        norm = registry.choose(NORMS, self.norm, "ConvNet norm")
        return norm(name=name)(x.astype(jnp.float32)).astype(self.dtype)


def make(*, variant: str | None = None, dtype: Any, axis_name: str | None = None, **fields: Any) -> ConvNet:
    """A ConvNet from `fields`. It has no variants, and `axis_name` has no use: no batch statistics.

    Raises:
      ValueError: a variant, or an unknown field; the message names the nearest one.
    """
    if variant is not None:
        raise ValueError(f'The tower "convnet" has no variants such as "{variant}": set widths and blocks.')
    return registry.call(ConvNet, fields, "convnet", dtype=dtype)
