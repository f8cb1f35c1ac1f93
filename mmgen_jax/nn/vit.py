"""Vision Transformer towers (Dosovitskiy et al. 2021): patches, learned positions, pre-norm blocks."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn.attention import self_attention
from mmgen_jax.nn.norm import LayerNorm

VARIANTS = {
    "vit_s": {"width": 384, "depth": 12, "heads": 6},
    "vit_b": {"width": 768, "depth": 12, "heads": 12},
    "vit_l": {"width": 1024, "depth": 24, "heads": 16},
}


def patches(image: jax.Array, size: int) -> jax.Array:
    """Cut into squares of size x size. [B, H, W, C] -> [B, H / size, W / size, size * size * C].

    Raises:
      ValueError: height or width is no multiple of `size`.
    """
    height, width = image.shape[1:3]
    if height % size or width % size:
        fits = "x".join(str(max(side // size, 1) * size) for side in (height, width))
        raise ValueError(
            f"An input of {height}x{width} does not divide into patches of {size}: "
            f"resize it to {fits} or change the patch."
        )
    return rearrange(image, "b (h p) (w q) c -> b h w (p q c)", p=size, q=size)


class Block(nn.Module):
    """Pre-norm self-attention and MLP, each beside a shortcut. [B, T, D] -> [B, T, D].

    Attributes:
      heads: attention heads; they divide D.
      mlp: hidden features of the MLP.
      dropout: rate on both branches' outputs and on the MLP's hidden layer.
      drop_path: rate at which a branch is left out for a whole example (Huang et al. 2016).
      dtype: of the computation.
    """

    heads: int
    mlp: int
    dropout: float
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1]

        def branch(y: jax.Array) -> jax.Array:
            y = nn.Dropout(self.dropout, deterministic=not train)(y)
            return nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)(y)

        def dense(features: int, name: str) -> nn.Dense:
            init = nn.initializers.xavier_uniform()
            return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)

        y = dense(3 * width, "qkv")(LayerNorm(self.dtype, name="attention_norm")(x))
        q, k, v = rearrange(y, "b t (n h d) -> n b t h d", n=3, h=self.heads)
        y = rearrange(self_attention(q, k, v), "b t h d -> b t (h d)")
        x = x + branch(dense(width, "out")(y))
        y = nn.gelu(dense(self.mlp, "mlp_in")(LayerNorm(self.dtype, name="mlp_norm")(x)), approximate=False)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return x + branch(dense(width, "mlp_out")(y))


class ViT(nn.Module):
    """A Vision Transformer without class token and head.

    Attributes:
      width, depth, heads: features, blocks, attention heads.
      patch: side of a patch in pixels.
      image_size: side in pixels of the (square) images for which positions are learned; for other sizes the
        table is resized bilinearly, so give the size that training uses.
      mlp_ratio: hidden features of an MLP over `width`.
      dropout: rate; needs the rng "dropout" in training.
      drop_path: stochastic depth: rate of the last block; it grows linearly from 0 at the first.
      dtype: of the computation; parameters are float32.
    """

    width: int
    depth: int
    heads: int
    patch: int = 16
    image_size: int = 224
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Features of an image. image: float [B, H, W, 3] -> [B, H / patch, W / patch, width].

        Raises:
          ValueError: H or W is no multiple of the patch, or `heads` does not divide `width`.
        """
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}.")
        # A matrix product over patches is the convolution of stride `patch`, and faster on CPU.
        embed = nn.Dense(
            self.width, dtype=self.dtype, kernel_init=nn.initializers.lecun_normal(), name="embed"
        )
        x = embed(patches(image.astype(self.dtype), self.patch))
        _, rows, columns, _ = x.shape
        side = self.image_size // self.patch
        position = self.param("position", nn.initializers.normal(0.02), (side, side, self.width), jnp.float32)
        if (rows, columns) != (side, side):
            position = jax.image.resize(position, (rows, columns, self.width), "bilinear")
        x = x + position[None].astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(rearrange(x, "b h w d -> b (h w) d"))
        for i in range(self.depth):
            drop_path = self.drop_path * i / max(self.depth - 1, 1)
            block = Block(
                heads=self.heads,
                mlp=round(self.width * self.mlp_ratio),
                dropout=self.dropout,
                drop_path=drop_path,
                dtype=self.dtype,
                name=f"block{i + 1}",
            )
            x = block(x, train=train)
        x = LayerNorm(self.dtype, name="norm")(x)
        return rearrange(x, "b (h w) d -> b h w d", h=rows)


def make(*, variant: str | None = None, dtype: Any, axis_name: str | None = None, **fields: Any) -> ViT:
    """A ViT from a variant's fields, overridden by `fields`. `axis_name` has no use: no batch statistics.

    Raises:
      ValueError: unknown variant or field; the message names the nearest one.
    """
    known = registry.choose(VARIANTS, variant, "ViT variant") if variant is not None else {}
    return registry.call(ViT, {**known, **fields}, "vit", dtype=dtype)
