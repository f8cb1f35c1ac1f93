"""A score of each frame of a video: a video tower with a head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmgen_jax.nn import pixels


class KeyFrames(nn.Module):
    """A tower and one logit a frame.

    Attributes:
      tower: float [B, F, H, W, 3], mask bool [B, F] or None -> [B, F, D]; its pool is "frames".
      pixels: the statistics that normalise a frame, see nn/pixels.py.
      dtype: of the computation; parameters are float32.
    """

    tower: nn.Module
    pixels: str = "half"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, video: jax.Array, mask: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """video: uint8 [B, F, H, W, 3]; mask: bool [B, F], false for frames that pad -> logits float32 [B, F].

        Raises:
          ValueError: the tower gives something else than a vector a frame.
        """
        x = self.tower(pixels.normalise(video, self.pixels, self.dtype), mask, train=train)
        if x.shape[:-1] != video.shape[:2]:
            raise ValueError(
                f'The tower gives {list(x.shape)}, not a vector a frame: set its pool to "frames".'
            )
        return nn.Dense(1, dtype=self.dtype, name="head")(x)[..., 0].astype(jnp.float32)
