"""The pre-norm decoder block: self-attention, attention over an image, and a two-layer network."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from mmgen_jax.nn.attention import self_attention
from mmgen_jax.nn.norm import LayerNorm


class DecoderBlock(nn.Module):
    """One layer of a pre-norm Transformer decoder (Xiong et al., 2020).

    Attributes:
      features: F; heads; mlp_ratio: the hidden layer has mlp_ratio x F units; dropout: on every residual branch.
      dtype: of the computation.
    """

    features: int
    heads: int
    mlp_ratio: int = 4
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def setup(self):
        f, dtype = self.features, self.dtype
        self.self_norm, self.cross_norm, self.mlp_norm = (LayerNorm(dtype) for _ in range(3))
        self.self_qkv, self.self_out = nn.Dense(3 * f, dtype=dtype), nn.Dense(f, dtype=dtype)
        self.cross_q, self.cross_kv = nn.Dense(f, dtype=dtype), nn.Dense(2 * f, dtype=dtype)
        self.cross_out = nn.Dense(f, dtype=dtype)
        self.mlp_in, self.mlp_out = nn.Dense(self.mlp_ratio * f, dtype=dtype), nn.Dense(f, dtype=dtype)
        self.drop = nn.Dropout(self.dropout)

    def _heads(self, x: jax.Array) -> jax.Array:
        return rearrange(x, "n t (h d) -> n t h d", h=self.heads)

    def image(self, image: jax.Array) -> dict[str, jax.Array]:
        """Cross-attention's keys and values of an image. image: [B, P, D] -> leaves [B, P, heads, F / heads]."""
        key, value = jnp.split(self.cross_kv(image), 2, axis=-1)
        return {"key": self._heads(key), "value": self._heads(value)}

    def __call__(
        self,
        x: jax.Array,
        image: dict[str, jax.Array],
        mask: jax.Array,
        cache: dict[str, jax.Array] | None,
        train: bool,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array] | None]:
        """x: [N, T, F]; image: from `image`, B rows; mask: bool [1 or N, T, keys], true where a word may look.

        With a cache (leaves [N, L, heads, F / heads], and "position" [N]) T is 1: this word's key and value are written at its
        position, and the mask says which of the L slots are filled.

        Returns:
          x [N, T, F], cross-attention's weights float32 [N, heads, T, P], the new cache.
        """
        qkv = self.self_qkv(self.self_norm(x))
        query, key, value = (self._heads(part) for part in jnp.split(qkv, 3, axis=-1))
        if cache is not None:
            rows, position = jnp.arange(len(x)), cache["position"]
            key = cache["key"].at[rows, position].set(key[:, 0])
            value = cache["value"].at[rows, position].set(value[:, 0])
            cache = {"key": key, "value": value}
        attended = self_attention(query, key, value, mask[:, None])
        x = x + self._drop(self.self_out(rearrange(attended, "n t h d -> n t (h d)")), train)
        attended, weights = self._cross(self._heads(self.cross_q(self.cross_norm(x))), image)
        x = x + self._drop(self.cross_out(attended), train)
        hidden = jax.nn.gelu(self.mlp_in(self.mlp_norm(x)))
        return x + self._drop(self.mlp_out(hidden), train), weights, cache

    def _drop(self, x: jax.Array, train: bool) -> jax.Array:
        return self.drop(x, deterministic=not train)

    def _cross(self, query: jax.Array, image: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """All rows of an image attend over its one copy. query: [N, T, H, D] -> [N, T, F], weights [N, H, T, P]."""
        images, length = len(image["key"]), query.shape[1]
        query = rearrange(query, "(b c) t h d -> b (c t) h d", b=images)
        scores = jnp.einsum("bqhd,bphd->bhqp", query, image["key"]) * query.shape[-1] ** -0.5
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
        out = jnp.einsum("bhqp,bphd->bqhd", weights.astype(query.dtype), image["value"])
        return (
            rearrange(out, "b (c t) h d -> (b c) t (h d)", t=length),
            rearrange(weights, "b h (c t) p -> (b c) h t p", t=length),
        )
