"""Transformer blocks: the encoder's, pre- or post-norm, with a stack of them; the decoder's, which also attends over an image."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from mmgen_jax.core import registry, sharding
from mmgen_jax.nn.attention import hide, self_attention, split_heads
from mmgen_jax.nn.norm import LayerNorm

# CLIP's quick_gelu is the sigmoid approximation of Hendrycks and Gimpel (2016), section 2; gelu_tanh is their other one.
ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class EncoderBlock(nn.Module):
    """Self-attention and MLP, each beside a shortcut. [B, T, D] -> [B, T, D].

    Attributes:
      heads: attention heads; they divide D.
      mlp: hidden features of the MLP.
      norm: "pre" (Xiong et al., 2020), before each branch, or "post" (Vaswani et al., 2017), after each sum.
      activation: one of `ACTIVATIONS`.
      epsilon: of the layer norms.
      causal: a position looks at itself and at those before it only.
      dropout: rate on both branches' outputs and on the MLP's hidden layer; needs the rng "dropout" in training.
      drop_path: rate at which a branch is left out for a whole example (Huang et al., 2016); needs the same rng.
      flat: the shortcut runs along [B * T, D] (see `stack`).
      dtype: of the computation.
    """

    heads: int
    mlp: int
    norm: str = "pre"
    activation: str = "gelu"
    epsilon: float = 1e-6
    causal: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    flat: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        share: jax.Array | None = None,
        *,
        between: Callable[[jax.Array], jax.Array] | None = None,
        train: bool,
    ) -> jax.Array:
        """x: [B, T, D]; mask: bool [1 or B, 1 or H, 1 or T, T], true where a position may look -> [B, T, D].

        share: float32 [], what part of `drop_path` is this block's rate: one program for blocks of different rates. None: all.
        between: what x goes through after the attention and before the MLP, [B, T, D] -> [B, T, D]: a look at other tokens.

        Raises:
          ValueError: `heads` does not divide D; unknown norm or activation.
        """
        shape, width = x.shape, x.shape[-1]
        if width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {width}.")
        pre = registry.choose({"pre": True, "post": False}, self.norm, "norm")
        activation = registry.choose(ACTIVATIONS, self.activation, "activation")
        attention_norm = LayerNorm(self.dtype, self.epsilon, name="attention_norm")
        mlp_norm = LayerNorm(self.dtype, self.epsilon, name="mlp_norm")

        def dense(features: int, name: str) -> nn.Dense:
            init = nn.initializers.xavier_uniform()
            return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)

        def drop(y: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout, deterministic=not train)(y)

        def attend(y: jax.Array) -> jax.Array:
            q, k, v = split_heads(dense(3 * width, "qkv")(y).reshape(*shape[:-1], -1), self.heads)
            attended = self_attention(q, k, v, mask, causal=self.causal)
            return drop(dense(width, "out")(attended.reshape(y.shape)))

        def mlp(y: jax.Array) -> jax.Array:
            return drop(dense(width, "mlp_out")(drop(activation(dense(self.mlp, "mlp_in")(y)))))

        def leave_out(y: jax.Array) -> jax.Array:
            """Stochastic depth: zero for some examples, scaled up for the others, so that the mean stays."""
            if not train or self.drop_path == 0.0:
                return y
            # By hand: flax's dropout takes no rate that is an array.
            keep = 1.0 - self.drop_path * (1.0 if share is None else share)
            kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (shape[0], 1, 1))
            return (y.reshape(shape) * jnp.where(kept, 1.0 / keep, 0.0).astype(y.dtype)).reshape(y.shape)

        if self.flat:
            x = x.reshape(-1, width)
        for norm, branch in ((attention_norm, attend), (mlp_norm, mlp)):
            if pre:
                x = x + leave_out(branch(norm(x)))
            else:
                x = norm(x + leave_out(branch(x)))
            if branch is attend and between is not None:
                x = between(x.reshape(shape)).reshape(x.shape)
        return x.reshape(shape)


def stack(
    x: jax.Array,
    mask: jax.Array | None = None,
    *,
    depth: int,
    train: bool,
    drop_path: float = 0.0,
    remat: bool = False,
    scan: bool = False,
    **fields: Any,
) -> jax.Array:
    """Run `depth` encoder blocks, to be called in a module's compact method. [B, T, D] -> [B, T, D].

    Args:
      x, mask, train: as `EncoderBlock` takes them.
      depth: how many blocks. Their parameters become the caller's "block1" to "block<depth>".
      drop_path: rate of the last block; it grows linearly from 0 at the first.
      remat: keep only each block's input for the backward pass, which computes the block again.
      scan: compile one block and loop over it; the parameters are then one "blocks", whose arrays have a leading axis [depth].
      fields: the blocks' other fields.
    """

    def run(block: EncoderBlock, x: jax.Array, share: jax.Array | None, mask: jax.Array | None) -> jax.Array:
        return sharding.keep_rows(block(sharding.keep_rows(x), mask, share, train=train))

    if remat:
        # Nothing is merged across a loop's turns, so the scan can do without the barriers.
        run = nn.remat(run, prevent_cse=not scan)
    shares = [i / max(depth - 1, 1) for i in range(depth)]
    if not scan:
        # Flat, as a product has it: else XLA on a CPU adds up the gradients of all later branches anew, with the copy that turns
        # the sum over, for each weight's gradient, and the twelve blocks of ViT-B/16 take an eighth longer. On a TPU, whose tiles
        # hold several positions, it costs copies between shapes, and in a loop over blocks it gains nothing.
        for i, share in enumerate(shares):
            x = run(EncoderBlock(**fields, drop_path=drop_path * share, name=f"block{i + 1}"), x, None, mask)
        return x
    loop = nn.scan(
        lambda *args: (run(*args), None),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast),
        length=depth,
    )
    blocks = EncoderBlock(**fields, drop_path=drop_path, flat=False, name=sharding.STACKED)
    return loop(blocks, x, jnp.asarray(shares, jnp.float32), mask)[0]


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

    def image(self, image: jax.Array, mask: jax.Array | None = None) -> dict[str, jax.Array]:
        """Cross-attention's keys and values of an image. image: [B, P, D]; mask: bool [B, P], false at positions that nobody
        looks at, which goes along -> leaves [B, P, heads, F / heads]."""
        key, value = jnp.split(self.cross_kv(image), 2, axis=-1)
        memory = {"key": self._heads(key), "value": self._heads(value)}
        return memory if mask is None else {**memory, "mask": mask}

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
        query, key, value = split_heads(self.self_qkv(self.self_norm(x)), self.heads)
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
        if "mask" in image:
            scores = hide(scores, image["mask"][:, None, None])
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
        out = jnp.einsum("bhqp,bphd->bqhd", weights.astype(query.dtype), image["value"])
        return (
            rearrange(out, "b (c t) h d -> (b c) t (h d)", t=length),
            rearrange(weights, "b h (c t) p -> (b c) h t p", t=length),
        )
