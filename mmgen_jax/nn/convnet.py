"""A small convolutional tower for drawings and thumbnails, quick on a CPU."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmgen_jax.core import registry
from mmgen_jax.nn import pooling
from mmgen_jax.nn.resnet import BLOCKS, Block, convolution, normalise

POOLS = {
    "none": pooling.none,
    "mean": pooling.mean,
    "max": pooling.maximum,
    "flatten": pooling.flatten,
    "pyramid": pooling.pyramid,
}


class ConvNet(nn.Module):
    """Strided 3x3 convolutions, each with batch normalisation, then residual blocks on the last grid.

    The first convolution overlaps its neighbours, unlike a cut into patches, and the batch is normalised, unlike the
    features of one position.

    Attributes:
      widths: features after each convolution; each halves the grid.
      blocks: how many basic residual blocks follow.
      hidden: features of one more 1x1 convolution, or 0: at each position a combination of what is there, before the pool.
      pool: "none" for the grid, "mean" or "max" over its positions, "flatten", all of them side by side, which keeps them
        apart, or "pyramid", the means over the grid, its rows and its columns.
      dtype: of the computation; parameters and batch statistics are float32.
      axis_name: mapped axis over which batch statistics are averaged, in the per-device mode; else None.
    """

    widths: Sequence[int] = (32, 64, 128)
    blocks: int = 1
    hidden: int = 0
    pool: str = "none"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Features of an image. image: float [B, H, W, 3] -> [B, H / s, W / s, widths[-1]], s = 2 ** len(widths), rounded up.

        [B, D] with a pool.
        """
        pool = registry.choose(POOLS, self.pool, "ConvNet pool")
        norm = partial(normalise, train=train, axis_name=self.axis_name, dtype=self.dtype)
        x = image.astype(self.dtype)
        for i, width in enumerate(self.widths):
            x = convolution(width, 3, 2, self.dtype, f"conv{i + 1}")(x)
            x = nn.relu(norm(x, f"norm{i + 1}"))
        for i in range(self.blocks):
            x = Block(BLOCKS["basic"], self.widths[-1], 1, norm, self.dtype, name=f"block{i + 1}")(x)
        if self.hidden:
            x = convolution(self.hidden, 1, 1, self.dtype, "hidden")(x)
            x = nn.relu(norm(x, "hidden_norm"))
        return pool(x)


def make(*, variant: str | None = None, dtype: Any, axis_name: str | None = None, **fields: Any) -> ConvNet:
    """A ConvNet from `fields`.

    Raises:
      ValueError: a variant, of which it has none, or an unknown field; the message names the nearest one.
    """
    if variant is not None:
        raise ValueError(f'The tower "convnet" has no variants such as "{variant}": set widths and blocks.')
    return registry.call(ConvNet, fields, "convnet", dtype=dtype, axis_name=axis_name)
