"""From an image's grid of features to one vector: fixed pools, and those that attend with one learned query."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn.attention import self_attention
from mmgen_jax.nn.norm import LayerNorm
from mmgen_jax.nn.transformer import ACTIVATIONS


def none(grid: jax.Array) -> jax.Array:
    """The grid as it is, for models that look at places. [B, H, W, D] -> [B, H, W, D]."""
    return grid


def mean(grid: jax.Array) -> jax.Array:
    """The mean over positions. [B, H, W, D] -> [B, D]."""
    return jnp.mean(grid, axis=(1, 2))


def maximum(grid: jax.Array) -> jax.Array:
    """The largest of each feature, wherever it is. [B, H, W, D] -> [B, D]."""
    return jnp.max(grid, axis=(1, 2))


def flatten(grid: jax.Array) -> jax.Array:
    """All positions side by side in reading order, so that places stay apart. [B, H, W, D] -> [B, H * W * D]."""
    return rearrange(grid, "b h w d -> b (h w d)")


def pyramid(grid: jax.Array) -> jax.Array:
    """Means over the whole grid, over each row and over each column, side by side, each divided by its share's root.

    Spatial pyramid pooling (He et al., 2014) with bands in place of squares. What is said of a thing wherever it is, is
    learnt once; what is said of its place can still be told; and all levels are about equally large.
    [B, H, W, D] -> [B, (1 + H + W) * D].
    """
    _, height, width, _ = grid.shape
    rows = rearrange(jnp.mean(grid, axis=2), "b h d -> b (h d)") / height**0.5
    columns = rearrange(jnp.mean(grid, axis=1), "b w d -> b (w d)") / width**0.5
    return jnp.concatenate([mean(grid), rows, columns], axis=-1)


def resize_positions(table: jax.Array, rows: int, columns: int) -> jax.Array:
    """Learned positions for a grid of another size, bilinearly. [H, W, D] -> [rows, columns, D]."""
    if table.shape[:2] == (rows, columns):
        return table
    return jax.image.resize(table, (rows, columns, table.shape[-1]), "bilinear")


def _attend(query: jax.Array, tokens: jax.Array, *, heads: int, features: int, dtype: Any) -> jax.Array:
    """Multi-head attention of one query; the parameters (query, key, value, out) are the calling module's.

    query: [B, D]; tokens: [B, T, D] -> [B, features].
    """
    width = tokens.shape[-1]
    if width % heads:
        raise ValueError(f"The pool's {heads} heads do not divide the {width} features of the grid.")

    def project(x: jax.Array, name: str) -> jax.Array:
        return rearrange(nn.Dense(width, dtype=dtype, name=name)(x), "b t (h d) -> b t h d", h=heads)

    query, key, value = project(query[:, None], "query"), project(tokens, "key"), project(tokens, "value")
    attended = rearrange(self_attention(query, key, value), "b 1 h d -> b (h d)")
    return nn.Dense(features, dtype=dtype, name="out")(attended)


class AttentionPool(nn.Module):
    """The mean of the grid attends over itself and all positions (CLIP; Radford et al., 2021, section 2.4).

    Attributes:
      heads: attention heads; they divide D. 0: one for every 64 features.
      features: of the result; 0: as many as the grid has.
      side: the grid's side for which positions are learned; other grids get them resized.
      dtype: of the computation; parameters are float32.
    """

    heads: int
    features: int
    side: int
    dtype: Any

    @nn.compact
    def __call__(self, grid: jax.Array) -> jax.Array:
        """[B, H, W, D] -> [B, features].

        Raises:
          ValueError: the heads do not divide D.
        """
        rows, columns, width = grid.shape[1:]
        init = nn.initializers.normal(width**-0.5)
        position = self.param("position", init, (self.side**2 + 1, width), jnp.float32)
        places = rearrange(position[1:], "(h w) d -> h w d", h=self.side)
        places = rearrange(resize_positions(places, rows, columns), "h w d -> (h w) d")
        position = jnp.concatenate([position[:1], places])
        tokens = jnp.concatenate([mean(grid)[:, None], rearrange(grid, "b h w d -> b (h w) d")], axis=1)
        tokens = tokens + position[None].astype(self.dtype)
        return _attend(
            tokens[:, 0],
            tokens,
            heads=self.heads or max(width // 64, 1),
            features=self.features or width,
            dtype=self.dtype,
        )


class MapPool(nn.Module):
    """A learned query attends over all positions, and an MLP follows beside a shortcut (Zhai et al., 2022, section 3.4; SigLIP).

    Attributes:
      heads: attention heads; they divide D.
      mlp: hidden features of the MLP.
      activation: of the MLP, one of `transformer.ACTIVATIONS`.
      epsilon: of the layer norm.
      dtype: of the computation; parameters are float32.
    """

    heads: int
    mlp: int
    activation: str
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, grid: jax.Array) -> jax.Array:
        """[B, H, W, D] -> [B, D].

        Raises:
          ValueError: the heads do not divide D.
        """
        width = grid.shape[-1]
        activation = registry.choose(ACTIVATIONS, self.activation, "activation")
        probe = self.param("probe", nn.initializers.normal(0.02), (width,), jnp.float32).astype(self.dtype)
        tokens = rearrange(grid, "b h w d -> b (h w) d")
        query = repeat(probe, "d -> b d", b=len(grid))
        x = _attend(query, tokens, heads=self.heads, features=width, dtype=self.dtype)
        y = LayerNorm(self.dtype, self.epsilon, name="norm")(x)
        y = activation(nn.Dense(self.mlp, dtype=self.dtype, name="mlp_in")(y))
        return x + nn.Dense(width, dtype=self.dtype, name="mlp_out")(y)
