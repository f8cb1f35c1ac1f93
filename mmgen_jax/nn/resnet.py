"""Residual networks as towers: version 1.5 (He et al. 2016, with the stride in the 3x3), and CLIP's (Radford et al. 2021)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import reduce
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn import pooling
from mmgen_jax.nn.resampling import convolve

CLIP = {"block": "bottleneck", "stem": "deep", "antialias": True, "pool": "attention", "image_size": 224}
VARIANTS = {
    "resnet18": {"stages": (2, 2, 2, 2), "block": "basic"},
    "resnet34": {"stages": (3, 4, 6, 3), "block": "basic"},
    "resnet50": {"stages": (3, 4, 6, 3), "block": "bottleneck"},
    "resnet101": {"stages": (3, 4, 23, 3), "block": "bottleneck"},
    "resnet152": {"stages": (3, 8, 36, 3), "block": "bottleneck"},
    "clip_rn50": {**CLIP, "stages": (3, 4, 6, 3), "pool_features": 1024},
    "clip_rn101": {**CLIP, "stages": (3, 4, 23, 3), "pool_features": 512},
}
# Kernel size and features in units of the stage's width, of each convolution of a block.
BLOCKS = {"basic": ((3, 1), (3, 1)), "bottleneck": ((1, 1), (3, 1), (1, 4))}

POOLS = {"none": pooling.none, "mean": pooling.mean, "attention": pooling.AttentionPool}


def average_pool(x: jax.Array, stride: int) -> jax.Array:
    """Means of squares side by side, whose last ones repeat an odd grid's edge. [B, H, W, D] -> [B, ceil(H / stride), ..., D]."""
    if stride == 1:
        return x
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, -height % stride), (0, -width % stride), (0, 0)), "edge")
    return reduce(x, "b (h p) (w q) d -> b h w d", "mean", p=stride, q=stride)


# A stem's convolutions (kernel size, stride, divisor of the first stage's width), what follows them, and the stride of it all.
STEMS = {
    "imagenet": (
        ((7, 2, 1),),
        partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1),) * 2),
        4,
    ),
    "small": (((3, 1, 1),), lambda x: x, 1),
    "deep": (((3, 2, 2), (3, 1, 2), (3, 1, 1)), partial(average_pool, stride=2), 4),
}


def convolution(features: int, kernel: int, stride: int, dtype: Any, name: str) -> Callable:
    """A bias-free convolution [B, H, W, D] -> [B, ceil(H / stride), ceil(W / stride), features].

    A 1x1 kernel is written as a matrix product: several times faster on CPU, no slower on accelerators.
    The padding is the same on both sides (unlike "SAME" under a stride), as published weights expect.
    """
    init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    if kernel == 1:
        product = nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=init, name=name)
        return lambda x: product(x[:, ::stride, ::stride])
    form = dict(use_bias=False, conv_general_dilated=convolve, dtype=dtype, kernel_init=init, name=name)
    return nn.Conv(features, (kernel, kernel), stride, kernel // 2, **form)


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

    With `antialias`, a stride is an average pool after the convolution that has it otherwise, and before the shortcut's.
    The last scale starts at zero, which makes a fresh block the identity (Goyal et al. 2017, section 5.1).
    """

    plan: Sequence[tuple[int, int]]
    width: int
    stride: int
    norm: Callable
    dtype: Any
    antialias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        strided = [kernel for kernel, _ in self.plan].index(3)
        for i, (kernel, times) in enumerate(self.plan):
            stride = self.stride if i == strided and not self.antialias else 1
            y = convolution(self.width * times, kernel, stride, self.dtype, f"conv{i + 1}")(y)
            if i + 1 < len(self.plan):
                y = nn.relu(self.norm(y, f"norm{i + 1}"))
            if i == strided and self.antialias:
                y = average_pool(y, self.stride)
        y = self.norm(y, f"norm{len(self.plan)}", scale_init=nn.initializers.zeros)
        if x.shape != y.shape:
            x, stride = (average_pool(x, self.stride), 1) if self.antialias else (x, self.stride)
            x = convolution(y.shape[-1], 1, stride, self.dtype, "shortcut_conv")(x)
            x = self.norm(x, "shortcut_norm")
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network without its head.

    Attributes:
      stages: number of blocks at each resolution; every stage after the first halves the grid.
      block: "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1 with four times the width).
      width: features of the first stage; they double at each further one.
      stem: "imagenet" (7x7 of stride 2 and a max-pool: the first stage works at stride 4), "small" (a
        3x3 of stride 1, for small images) or "deep" (three 3x3, the first of stride 2, and an average pool; CLIP).
      antialias: a stride is an average pool, in blocks and shortcuts (CLIP).
      pool: "none" for the grid, "mean" over its positions, or "attention", from its mean (`pooling.AttentionPool`).
      pool_features, pool_heads: of the attention pool; 0 for the grid's features, and for a head every 64 of them.
      image_size: side in pixels of the images for which the attention pool learns positions.
      remat: keep only each block's input for the backward pass, which computes the block again.
      dtype: of the computation; parameters and batch statistics are float32.
      axis_name: mapped axis over which batch statistics are averaged, in the per-device mode; None under jit,
        where a batch is whole.
    """

    stages: Sequence[int]
    block: str
    width: int = 64
    stem: str = "imagenet"
    antialias: bool = False
    pool: str = "none"
    pool_features: int = 0
    pool_heads: int = 0
    image_size: int = 224
    remat: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Features of an image. image: float [B, H, W, 3] -> [B, H / s, W / s, D].

        The stride s of four stages is 32, or 8 with the small stem; [B, D] with a pool.

        With `train`, statistics come from the batch and the collection "batch_stats" is updated.

        Raises:
          ValueError: unknown block, stem or pool, or the pool's heads do not divide D.
        """
        pool = registry.choose(POOLS, self.pool, "ResNet pool")
        norm = partial(normalise, axis_name=self.axis_name, train=train, dtype=self.dtype)
        plan = registry.choose(BLOCKS, self.block, "ResNet block")
        stem, stem_pool, stem_stride = registry.choose(STEMS, self.stem, "ResNet stem")
        block = nn.remat(Block) if self.remat else Block
        x = image.astype(self.dtype)
        for i, (kernel, stride, divisor) in enumerate(stem):
            number = i + 1 if len(stem) > 1 else ""
            x = convolution(self.width // divisor, kernel, stride, self.dtype, f"stem_conv{number}")(x)
            x = nn.relu(norm(x, f"stem_norm{number}"))
        x = stem_pool(x)
        for i, blocks in enumerate(self.stages):
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                name = f"stage{i + 1}_block{j + 1}"
                x = block(plan, self.width * 2**i, stride, norm, self.dtype, self.antialias, name=name)(x)
        if pool is pooling.AttentionPool:
            side = -(-self.image_size // (stem_stride * 2 ** (len(self.stages) - 1)))
            pool = pool(
                heads=self.pool_heads, features=self.pool_features, side=side, dtype=self.dtype, name="pool"
            )
        return pool(x)


def make(*, variant: str | None = None, dtype: Any, axis_name: str | None = None, **fields: Any) -> ResNet:
    """A ResNet from a variant's fields, overridden by `fields`.

    Raises:
      ValueError: unknown variant or field; the message names the nearest one.
    """
    known = registry.choose(VARIANTS, variant, "ResNet variant") if variant is not None else {}
    return registry.call(ResNet, {**known, **fields}, "resnet", dtype=dtype, axis_name=axis_name)
