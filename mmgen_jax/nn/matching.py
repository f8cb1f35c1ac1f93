"""Where what is seen at a place has come from and where it goes, and what becomes of it: matching between frames, place with
place."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn


class Matching(nn.Module):
    """Displacements and changes, by comparing a place of one frame with all places of the frames beside it.

    Xu et al., GMFlow, 2022, eq. 1 to 3. A place's displacement is that of its matches' mean, weighted by a softmax over how
    alike their features are, less a learned multiple of their squared distance: where everything is alike, nothing moves.

    Attributes:
      width: features that are compared.
      dtype: of the computation; parameters are float32.
    """

    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, grid: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """What moves and what changes since the frame before, and till the frame after; 0 where there is no such frame.

        grid: [B, T, h, w, E]; mask: bool [B, T], or None -> two arrays: (rows, columns) in cells of the grid, from the frame
        before and then to the frame after, [B, T, h, w, 4]; and by how much the features of the matches differ, likewise,
        [B, T, h, w, 2 E].
        """
        rows, columns = grid.shape[2:4]
        seen = rearrange(grid, "b t h w e -> b t (h w) e")
        # What all places of a frame share tells none from another.
        x = seen - jnp.mean(seen, axis=2, keepdims=True)
        x = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="compare")(x).astype(jnp.float32)
        x = x / jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        sharpness = self.param("sharpness", nn.initializers.constant(10.0), (), jnp.float32)
        nearness = self.param("nearness", nn.initializers.constant(0.3), (), jnp.float32)
        place = np.stack(np.mgrid[:rows, :columns], axis=-1).reshape(-1, 2).astype(np.float32)
        squared = np.sum(np.square(place[:, None] - place[None]), axis=-1)
        alike = jnp.einsum("btpe,btqe->btpq", x[:, :-1], x[:, 1:])
        scores = sharpness * alike - nearness * squared[None, None]
        onward, back = jax.nn.softmax(scores, axis=-1), jax.nn.softmax(scores, axis=-2)
        after = jnp.einsum("btpq,qc->btpc", onward, place) - place[None, None]
        before = place[None, None] - jnp.einsum("btpq,pc->btqc", back, place)
        later = jnp.einsum("btpq,btqe->btpe", onward.astype(self.dtype), seen[:, 1:]) - seen[:, :-1]
        since = seen[:, 1:] - jnp.einsum("btpq,btpe->btqe", back.astype(self.dtype), seen[:, :-1])

        def both(before: jax.Array, after: jax.Array) -> jax.Array:
            """Between each two frames -> at each frame."""
            if mask is not None:
                there = (mask[:, :-1] & mask[:, 1:])[:, :, None, None]
                before, after = jnp.where(there, before, 0), jnp.where(there, after, 0)
            none = jnp.zeros_like(before[:, :1])
            before, after = jnp.concatenate([none, before], axis=1), jnp.concatenate([after, none], axis=1)
            x = jnp.concatenate([before, after], axis=-1).astype(self.dtype)
            return rearrange(x, "b t (h w) c -> b t h w c", h=rows)

        return both(before, after), both(since, later)
