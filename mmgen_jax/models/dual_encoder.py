"""The dual encoder: an image tower and a text tower whose outputs meet in one space of unit vectors."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from mmgen_jax.core import registry
from mmgen_jax.nn import pixels

HEADS = {"none": None, "linear": False, "affine": True}  # whether the projection has a bias


def unit(x: jax.Array) -> jax.Array:
    """Vectors of length one, float32; a zero vector stays. [..., F] -> [..., F]."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


class DualEncoder(nn.Module):
    """Images and texts as unit vectors (Radford et al., 2021, CLIP; Zhai et al., 2023, SigLIP; Faghri et al., 2018, VSE++).

    Attributes:
      image: a tower that pools, float [B, H, W, 3] -> [B, D].
      text: a tower that pools, int32 [B, T] -> [B, D].
      embed_dim: F; with heads of "none" the towers' own features.
      image_head, text_head: the projection to F: "linear" (CLIP), "affine" (with a bias) or "none" (the tower's pool does it).
      temperature: the first value of 1 / scale, where the scale is learned; 0: there is no learned scale.
      bias: the first value of a learned logit bias (SigLIP: -10); 0: there is none.
      pixels: how images are normalised, see nn/pixels.py.
      dtype: of the computation; embeddings are float32.
    """

    image: nn.Module
    text: nn.Module
    embed_dim: int
    image_head: str = "linear"
    text_head: str = "linear"
    temperature: float = 0.07
    bias: float = 0.0
    pixels: str = "imagenet"
    dtype: Any = jnp.float32

    def setup(self):
        self.image_projection = self._head(self.image_head, "image_head")
        self.text_projection = self._head(self.text_head, "text_head")
        constant = nn.initializers.constant
        self.logit_scale = self.logit_bias = None
        if self.temperature:
            self.logit_scale = self.param("logit_scale", constant(-math.log(self.temperature)), ())
        if self.bias:
            self.logit_bias = self.param("logit_bias", constant(self.bias), ())

    def _head(self, name: str, what: str) -> nn.Dense | None:
        use_bias = registry.choose(HEADS, name, what)
        # Of the size that keeps the variance, as CLIP has it.
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        return (
            None
            if use_bias is None
            else nn.Dense(self.embed_dim, use_bias=use_bias, dtype=self.dtype, kernel_init=init)
        )

    def features(self, image: jax.Array, train: bool = False) -> jax.Array:
        """What the image tower pools, before the projection. image: uint8 [B, H, W, 3] -> [B, D].

        Raises:
          ValueError: the tower does not pool.
        """
        x = self.image(pixels.normalise(image, self.pixels, self.dtype), train=train)
        if x.ndim != 2:
            raise ValueError(
                f'The image tower gives {list(x.shape)}; set its pool, such as pool="mean", for [B, D].'
            )
        return x

    def embed_image(self, image: jax.Array, train: bool = False) -> jax.Array:
        """image: uint8 [B, H, W, 3] -> float32 [B, F], unit length."""
        x = self.features(image, train)
        return unit(x if self.image_projection is None else self.image_projection(x))

    def embed_text(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """tokens: int32 [B, C, T] -> float32 [B, C, F], unit length."""
        x = self.text(rearrange(tokens, "b c t -> (b c) t"), train=train)
        x = unit(x if self.text_projection is None else self.text_projection(x))
        return rearrange(x, "(b c) f -> b c f", b=len(tokens))

    def __call__(
        self, image: jax.Array, tokens: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Both embeddings. image: uint8 [B, H, W, 3]; tokens: int32 [B, C, T] -> [B, F], [B, C, F].

        Raises:
          ValueError: the two towers do not meet in one size.
        """
        image, text = self.embed_image(image, train), self.embed_text(tokens, train)
        if image.shape[-1] != text.shape[-1]:
            raise ValueError(
                f"Image embeddings have {image.shape[-1]} features, text embeddings {text.shape[-1]}; where a head is "
                f'"none" its tower must give embed_dim={self.embed_dim} features itself.'
            )
        return image, text
