"""Where what is seen at a place has come from and where it goes: matching between frames, place with place."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn


class Matching(nn.Module):
    """Displacements, by comparing a place of one frame with all places of the frames beside it.

    Xu et al., GMFlow, 2022, eq. 1 to 3. A place's displacement is that of its matches' mean, weighted by a softmax over how
    alike their features are, less a learned multiple of their squared distance: where everything is alike, nothing moves.

    Attributes:
      width: features that are compared.
      dtype: of the computation; parameters are float32.
    """

    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, grid: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """(rows, columns) from the frame before, then to the frame after, in cells of the grid; 0 where there is no such frame.

        grid: [B, T, h, w, E]; mask: bool [B, T], or None -> [B, T, h, w, 4].
        """
        rows, columns = grid.shape[2:4]
        x = rearrange(grid, "b t h w e -> b t (h w) e")
        x = x - jnp.mean(x, axis=2, keepdims=True)  # what all places of a frame share tells none from another
        x = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="compare")(x).astype(jnp.float32)
        x = x / jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        sharpness = self.param("sharpness", nn.initializers.constant(10.0), (), jnp.float32)
        nearness = self.param("nearness", nn.initializers.constant(0.3), (), jnp.float32)
        place = np.stack(np.mgrid[:rows, :columns], axis=-1).reshape(-1, 2).astype(np.float32)
        squared = np.sum(np.square(place[:, None] - place[None]), axis=-1)
        alike = jnp.einsum("btpe,btqe->btpq", x[:, :-1], x[:, 1:])
        scores = sharpness * alike - nearness * squared[None, None]
        after = jnp.einsum("btpq,qc->btpc", jax.nn.softmax(scores, axis=-1), place) - place[None, None]
        before = place[None, None] - jnp.einsum("btpq,pc->btqc", jax.nn.softmax(scores, axis=-2), place)
        if mask is not None:
            there = (mask[:, :-1] & mask[:, 1:])[:, :, None, None]
            before, after = jnp.where(there, before, 0.0), jnp.where(there, after, 0.0)
        still = jnp.zeros_like(before[:, :1])
        before, after = jnp.concatenate([still, before], axis=1), jnp.concatenate([after, still], axis=1)
        moved = jnp.concatenate([before, after], axis=-1).astype(self.dtype)
        return rearrange(moved, "b t (h w) c -> b t h w c", h=rows)
