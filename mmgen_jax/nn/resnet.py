"""Residual networks, version 1.5 (He et al. 2016, with the stride in the 3x3), as towers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmgen_jax.core import registry

VARIANTS = {
    "resnet18": {"stages": (2, 2, 2, 2), "block": "basic"},
    "resnet34": {"stages": (3, 4, 6, 3), "block": "basic"},
    "resnet50": {"stages": (3, 4, 6, 3), "block": "bottleneck"},
    "resnet101": {"stages": (3, 4, 23, 3), "block": "bottleneck"},
    "resnet152": {"stages": (3, 8, 36, 3), "block": "bottleneck"},
}
# Kernel size and features in units of the stage's width, of each convolution of a block.
BLOCKS = {"basic": ((3, 1), (3, 1)), "bottleneck": ((1, 1), (3, 1), (1, 4))}


def convolution(features: int, kernel: int, stride: int, dtype: Any, name: str) -> Callable:
    """A bias-free convolution [B, H, W, D] -> [B, ceil(H / stride), ceil(W / stride), features].

    A 1x1 kernel is written as a matrix product: several times faster on CPU, no slower on accelerators.
    The padding is the same on both sides (unlike "SAME" under a stride), as published weights expect.
    """
    init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    if kernel == 1:
        product = nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=init, name=name)
        return lambda x: product(x[:, ::stride, ::stride])
    size, pad = (kernel, kernel), kernel // 2
    return nn.Conv(features, size, stride, pad, use_bias=False, dtype=dtype, kernel_init=init, name=name)


def normalise(
    x: jax.Array,
    name: str,
    *,
    train: bool,
    axis_name: str | None,
    dtype: Any,
    scale_init: Callable = nn.initializers.ones,
) -> jax.Array:
    """Batch normalisation in float32 within a computation in `dtype`. [B, H, W, D] -> [B, H, W, D]."""
    norm = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        scale_init=scale_init,
        axis_name=axis_name,
        name=name,
    )
    return norm(x.astype(jnp.float32)).astype(dtype)


class Block(nn.Module):
    """Convolutions with batch normalisation beside a shortcut. [B, H, W, D] -> [B, H', W', D'].

    The last scale starts at zero, which makes a fresh block the identity (Goyal et al. 2017, section 5.1).
    """

    plan: Sequence[tuple[int, int]]
    width: int
    stride: int
    norm: Callable
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        strided = [kernel for kernel, _ in self.plan].index(3)
        for i, (kernel, times) in enumerate(self.plan):
            stride = self.stride if i == strided else 1
            y = convolution(self.width * times, kernel, stride, self.dtype, f"conv{i + 1}")(y)
            if i + 1 < len(self.plan):
                y = nn.relu(self.norm(y, f"norm{i + 1}"))
        y = self.norm(y, f"norm{len(self.plan)}", scale_init=nn.initializers.zeros)
        if x.shape != y.shape:
            x = convolution(y.shape[-1], 1, self.stride, self.dtype, "shortcut_conv")(x)
            x = self.norm(x, "shortcut_norm")
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network without its head.

    Attributes:
      stages: number of blocks at each resolution; every stage after the first halves the grid.
      block: "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1 with four times the width).
      width: features of the first stage; they double at each further one.
      stem: "imagenet" (7x7 of stride 2 and a max-pool: the first stage works at stride 4) or "small" (a
        3x3 of stride 1, for small images).
      dtype: of the computation; parameters and batch statistics are float32.
      axis_name: mapped axis over which batch statistics are averaged, in the per-device mode; None under jit,
        where a batch is whole.
    """

    stages: Sequence[int]
    block: str
    width: int = 64
    stem: str = "imagenet"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Features of an image. image: float [B, H, W, 3] -> [B, H / s, W / s, D].

        The stride s of four stages is 32, or 8 with the small stem.

        With `train`, statistics come from the batch and the collection "batch_stats" is updated.
        """
        norm = partial(normalise, axis_name=self.axis_name, train=train, dtype=self.dtype)
        plan = registry.choose(BLOCKS, self.block, "ResNet block")
        kernel, stride = registry.choose({"imagenet": (7, 2), "small": (3, 1)}, self.stem, "ResNet stem")
        x = convolution(self.width, kernel, stride, self.dtype, "stem_conv")(image.astype(self.dtype))
        x = nn.relu(norm(x, "stem_norm"))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, blocks in enumerate(self.stages):
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                name = f"stage{i + 1}_block{j + 1}"
                x = Block(plan, self.width * 2**i, stride, norm, self.dtype, name=name)(x)
        return x


def make(*, variant: str | None = None, dtype: Any, axis_name: str | None = None, **fields: Any) -> ResNet:
    """A ResNet from a variant's fields, overridden by `fields`.

    Raises:
      ValueError: unknown variant or field; the message names the nearest one.
    """
    known = registry.choose(VARIANTS, variant, "ResNet variant") if variant is not None else {}
    return registry.call(ResNet, {**known, **fields}, "resnet", dtype=dtype, axis_name=axis_name)
