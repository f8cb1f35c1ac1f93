"""Vision Transformer towers (Dosovitskiy et al. 2021): patches, learned positions, pre-norm blocks; CLIP's and SigLIP's."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn import pooling, transformer
from mmgen_jax.nn.norm import LayerNorm

SIZES = {
    "vit_s": {"width": 384, "depth": 12, "heads": 6},
    "vit_b": {"width": 768, "depth": 12, "heads": 12},
    "vit_l": {"width": 1024, "depth": 24, "heads": 16},
}
# The published classifiers are {"class_token": True, "pool": "class"} with one of the three sizes.
CLIP = {
    "image_size": 224,
    "class_token": True,
    "pre_norm": True,
    "patch_bias": False,
    "activation": "quick_gelu",
    "epsilon": 1e-5,
    "pool": "class",
}
VARIANTS = {
    **SIZES,
    "clip_vit_b32": {**SIZES["vit_b"], **CLIP, "patch": 32},
    "clip_vit_b16": {**SIZES["vit_b"], **CLIP, "patch": 16},
    "clip_vit_l14": {**SIZES["vit_l"], **CLIP, "patch": 14},
    "siglip_vit_b16": {
        **SIZES["vit_b"],
        "patch": 16,
        "image_size": 224,
        "activation": "gelu_tanh",
        "pool": "map",
    },
}
POOLS = {"none": pooling.none, "class": None, "mean": pooling.mean, "map": pooling.MapPool}


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


class ViT(nn.Module):
    """A Vision Transformer without its head.

    Attributes:
      width, depth, heads: features, blocks, attention heads.
      patch: side of a patch in pixels.
      image_size: side in pixels of the (square) images for which positions are learned; for other sizes the
        table is resized bilinearly, so give the size that training uses.
      mlp_ratio: hidden features of an MLP over `width`.
      class_token: a learned token, with a position of its own, goes through the blocks before the patches' tokens.
      pre_norm: a layer norm before the blocks (CLIP).
      patch_bias: the product over a patch's pixels has a bias.
      activation: of the MLPs, one of `transformer.ACTIVATIONS`.
      epsilon: of the layer norms.
      pool: "none" for the grid of patches, which leaves a class token out; "class" for that token; "mean" over the grid; "map",
        attention of a learned query (`pooling.MapPool`). The final norm comes before it.
      remat, scan: see `transformer.stack`: a block's input alone is kept for the backward pass; one block compiled.
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
    class_token: bool = False
    pre_norm: bool = False
    patch_bias: bool = True
    activation: str = "gelu"
    epsilon: float = 1e-6
    pool: str = "none"
    remat: bool = False
    scan: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Features of an image. image: float [B, H, W, 3] -> [B, H / patch, W / patch, width], or [B, width] with a pool.

        Raises:
          ValueError: H or W is no multiple of the patch, `heads` does not divide `width`, unknown activation or pool, or
            pool="class" without a class token.
        """
        pool = registry.choose(POOLS, self.pool, "ViT pool")
        if self.pool == "class" and not self.class_token:
            raise ValueError('pool = "class" needs class_token = True.')
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}.")
        mlp = round(self.width * self.mlp_ratio)
        style = {"activation": self.activation, "epsilon": self.epsilon, "dtype": self.dtype}
        # A matrix product over patches is the convolution of stride `patch`, and faster on CPU.
        init = nn.initializers.lecun_normal()
        embed = nn.Dense(self.width, self.patch_bias, dtype=self.dtype, kernel_init=init, name="embed")
        x = embed(patches(image.astype(self.dtype), self.patch))
        batch, rows, columns, _ = x.shape
        side = self.image_size // self.patch
        position = self._table("position", side, side)
        x = x + pooling.resize_positions(position, rows, columns)[None].astype(self.dtype)
        x = rearrange(x, "b h w d -> b (h w) d")
        if self.class_token:
            first = (self._table("class_token") + self._table("class_position")).astype(self.dtype)
            x = jnp.concatenate([repeat(first, "d -> b 1 d", b=batch), x], axis=1)
        if self.pre_norm:
            x = LayerNorm(self.dtype, self.epsilon, name="pre_norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = transformer.stack(
            x,
            depth=self.depth,
            train=train,
            drop_path=self.drop_path,
            remat=self.remat,
            scan=self.scan,
            heads=self.heads,
            mlp=mlp,
            dropout=self.dropout,
            **style,
        )
        x = LayerNorm(self.dtype, self.epsilon, name="norm")(x)
        if self.pool == "class":
            return x[:, 0]
        grid = rearrange(x[:, int(self.class_token) :], "b (h w) d -> b h w d", h=rows)
        if self.pool == "map":
            pool = pool(heads=self.heads, mlp=mlp, **style, name="pool")
        return pool(grid)

    def _table(self, name: str, *sides: int) -> jax.Array:
        """A learned float32 [*sides, width]."""
        return self.param(name, nn.initializers.normal(0.02), (*sides, self.width), jnp.float32)


def make(*, variant: str | None = None, dtype: Any, axis_name: str | None = None, **fields: Any) -> ViT:
    """A ViT from a variant's fields, overridden by `fields`. `axis_name` has no use: no batch statistics.

    Raises:
      ValueError: unknown variant or field; the message names the nearest one.
    """
    known = registry.choose(VARIANTS, variant, "ViT variant") if variant is not None else {}
    return registry.call(ViT, {**known, **fields}, "vit", dtype=dtype)
