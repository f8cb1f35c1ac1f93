"""Image classification: a pooled tower and one layer of logits."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmgen_jax.nn import pixels


class Classifier(nn.Module):
    """A tower and a head.

    Attributes:
      tower: float [B, H, W, 3] -> pooled [B, D].
      classes: K.
      pixels: the statistics that normalise an image, see nn/pixels.py.
      dtype: of the computation; parameters are float32.
    """

    tower: nn.Module
    classes: int
    pixels: str = "imagenet"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """image: uint8 [B, H, W, 3] -> logits float32 [B, K].

        Raises:
          ValueError: the tower gives a grid.
        """
        x = self.tower(pixels.normalise(image, self.pixels, self.dtype), train=train)
        if x.ndim != 2:
            raise ValueError(f'The tower gives a grid, {x.shape}; set its pool, for example to "mean".')
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)
