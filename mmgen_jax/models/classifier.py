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
      pixels: the statistics that normalise an image, see nn/pixels.py.
      dtype: of the computation; parameters are float32.
    """

    tower: nn.Module
    classes: int
    labels: int = 1
    pixels: str = "imagenet"
    dtype: Any = jnp.float32

    def setup(self):
        self.head = nn.Dense(self.labels * self.classes, dtype=self.dtype)

    def features(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """What the tower pools, before the head. image: uint8 [B, H, W, 3] -> [B, D].

        Raises:
          ValueError: the tower gives a grid.
        """
        x = self.tower(pixels.normalise(image, self.pixels, self.dtype), train=train)
        if x.ndim != 2:
            raise ValueError(f'The tower gives a grid, {x.shape}; set its pool, for example to "mean".')
        return x

    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """image: uint8 [B, H, W, 3] -> logits float32 [B, K] where there is one label, else [B, L, K].

        Raises:
          ValueError: the tower gives a grid.
        """
        logits = self.head(self.features(image, train=train)).astype(jnp.float32)
        return logits if self.labels == 1 else rearrange(logits, "b (l k) -> b l k", l=self.labels)
