"""Image classification: a pooled tower and one layer of logits, for one label of an image or for several."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from mmgen_jax.nn import pixels


class Classifier(nn.Module):
    """A tower and a head.

    Attributes:
      tower: float [B, H, W, 3] -> pooled [B, D].
      classes: K; where there are several labels, the most that one of them has.
      labels: L, how many labels an image has, each with logits of its own.
      apart: each colour is a grey picture of its own with a label of its own, all read by the same tower and head; L is 3.
      pixels: the statistics that normalise an image, see nn/pixels.py.
      dtype: of the computation; parameters are float32.
    """

    tower: nn.Module
    classes: int
    labels: int = 1
    apart: bool = False
    pixels: str = "imagenet"
    dtype: Any = jnp.float32

    def setup(self):
        self.head = nn.Dense(self.classes * (1 if self.apart else self.labels), dtype=self.dtype)

    def features(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """What the tower pools, before the head. image: uint8 [B, H, W, 3] -> [B, D], of three colours apart side by side.

        Raises:
          ValueError: the tower gives a grid.
        """
        x = pixels.normalise(image, self.pixels, self.dtype)
        if self.apart:
            x = rearrange(x, "b h w c -> (b c) h w 1")
        x = self.tower(x, train=train)
        if x.ndim != 2:
            raise ValueError(f'The tower gives a grid, {x.shape}; set its pool, for example to "mean".')
        return rearrange(x, "(b c) d -> b (c d)", b=len(image))

    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """image: uint8 [B, H, W, 3] -> logits float32 [B, K] where there is one label, else [B, L, K].

        Raises:
          ValueError: the tower gives a grid.
        """
        x = self.features(image, train=train)
        if self.apart:
            x = rearrange(x, "b (l d) -> b l d", l=self.labels)
        logits = self.head(x).astype(jnp.float32)
        return logits if self.labels == 1 else logits.reshape(len(image), self.labels, self.classes)
