"""DAMSM's two towers: an image as regions and as a whole, a text as words and as a sentence, all in one space (AttnGAN)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from mmgen_jax.core import registry
from mmgen_jax.losses import damsm as losses
from mmgen_jax.models.text_to_image import TextEncoder
from mmgen_jax.nn import pixels, pooling
from mmgen_jax.nn.text_conditioning import Text

POOLS: dict[str, Callable] = {"mean": pooling.mean, "flatten": pooling.flatten}


class Image(NamedTuple):
    """regions: float32 [B, P, F], an image's places in reading order; whole: float32 [B, F]."""

    regions: jax.Array
    whole: jax.Array


class Damsm(nn.Module):
    """Image regions and words in one space (Xu et al., 2018, sections 3.2 and 4; the text tower's space, F features).

    Attributes:
      image: a tower without a pool, float [B, H, W, 3] -> [B, h, w, D]; or one that gives a tuple which begins with a grid and
        features [B, D'] of the whole image, such as Inception-v3's middle and end.
      text: int32 [B, T] -> words and sentence of F features.
      embed_dim: F.
      image_pool: what makes the grid a whole image: "mean", or "flatten", which keeps places apart; unused with a tuple.
      image_size: side in pixels to which images are brought (bilinearly, antialiased where they shrink); 0: as they are.
      image_frozen: the image tower's batch statistics and parameters stay as they are; only its projections learn.
      pixels: how images are normalised, see nn/pixels.py.
      dtype: of the computation; the results are float32.
    """

    image: nn.Module
    text: TextEncoder
    embed_dim: int
    image_pool: str = "mean"
    image_size: int = 0
    image_frozen: bool = False
    pixels: str = "half"
    dtype: Any = jnp.float32

    def setup(self):
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

        def project(use_bias):
            return nn.Dense(self.embed_dim, use_bias=use_bias, dtype=self.dtype, kernel_init=init)

        self.region_projection, self.image_projection = project(use_bias=False), project(use_bias=True)

    def grid(self, image: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """What the image tower gives, before the projections.

        image: uint8 [B, H, W, 3], or float of the same shape in [-1, 1] -> [B, h, w, D], [B, D'].

        Raises:
          ValueError: unknown image_pool or pixels; the tower pools.
        """
        pool = registry.choose(POOLS, self.image_pool, "image_pool")
        x = image.astype(jnp.float32) if image.dtype == jnp.uint8 else 127.5 * (image.astype(jnp.float32) + 1)
        x = pixels.normalise(pixels.resized(x, self.image_size), self.pixels, self.dtype)
        found = self.image(x, train=train and not self.image_frozen)
        grid, whole = found[:2] if isinstance(found, tuple) else (found, None)
        if grid.ndim != 4:
            raise ValueError(
                f'The image tower gives {list(grid.shape)}; set its pool="none", for a grid [B, h, w, D].'
            )
        whole = pool(grid) if whole is None else whole
        # With train=False gradients do pass: a generator learns from what a finished matcher says of its images.
        return jax.lax.stop_gradient((grid, whole)) if train and self.image_frozen else (grid, whole)

    def embed_image(self, image: jax.Array, train: bool = False) -> Image:
        """image: uint8 [B, H, W, 3], or float of the same shape in [-1, 1] -> regions [B, P, F], whole [B, F]."""
        grid, whole = self.grid(image, train)
        regions = self.region_projection(rearrange(grid, "b h w d -> b (h w) d"))
        return Image(regions.astype(jnp.float32), self.image_projection(whole).astype(jnp.float32))

    def embed_text(self, tokens: jax.Array, train: bool = False) -> Text:
        """tokens: int32 [B, T] -> sentence [B, F], words [B, T, F], float32, and the words' mask [B, T].

        Raises:
          ValueError: the text tower has other than embed_dim features.
        """
        text = self.text(tokens, train=train)
        if text.words.shape[-1] != self.embed_dim:
            raise ValueError(
                f"The text tower gives {text.words.shape[-1]} features (two times `features` where it reads both ways), which "
                f"are not projected: set embed_dim={text.words.shape[-1]} instead of {self.embed_dim}."
            )
        return Text(text.sentence.astype(jnp.float32), text.words.astype(jnp.float32), text.mask)

    def __call__(self, image: jax.Array, tokens: jax.Array, train: bool = False) -> tuple[Image, Text]:
        """image: uint8 [B, H, W, 3]; tokens: int32 [B, C, T] -> the images; the texts, one after the other [B C, ...]."""
        return self.embed_image(image, train), self.embed_text(rearrange(tokens, "b c t -> (b c) t"), train)


def make(
    *,
    image: Mapping[str, Any],
    text: Mapping[str, Any],
    embed_dim: int,
    image_pool: str = "mean",
    image_size: int = 0,
    image_frozen: bool = False,
    pixels: str = "half",
    tokenizer: Any,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
) -> Damsm:
    """Build the matcher that a config describes: `name` says which tower, a file in nn/; the text's `pool` is the sentence's."""
    image = registry.build("nn", image, dtype=dtype, axis_name=axis_name)
    tower, pool = {**text, "pool": "none"}, text.get("pool", "last")
    tower = registry.build("nn", tower, dtype=dtype, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos)
    return Damsm(
        image, TextEncoder(tower, pool), embed_dim, image_pool, image_size, image_frozen, pixels, dtype
    )


def match(
    matcher: Damsm, variables: Mapping[str, Any], image: jax.Array, text: Text, **options: Any
) -> jax.Array:
    """How badly images and texts match, by a finished matcher: gradients flow to the images, as a generator wants.

    Args:
      matcher, variables: the network and its {"params": ..., "batch_stats": ...}.
      image: float [B, H, W, 3] in [-1, 1], or uint8; text: of the same rows, as `embed_text` gives it.
      options: see `losses.damsm.terms`: weight, image_id, text_id, gamma1, gamma2, gamma3, block_size, axis.

    Returns:
      nats, float32 [B]: the loss of `losses.damsm.damsm`.
    """
    regions, whole = matcher.apply(variables, image, method="embed_image")
    return losses.damsm(regions, whole, text.words, text.mask, text.sentence, **options)
