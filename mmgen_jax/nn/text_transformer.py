"""Transformer text towers: CLIP's causal one, BERT's shape, SigLIP's."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn import text_pooling
from mmgen_jax.nn.norm import LayerNorm
from mmgen_jax.nn.transformer import stack

CLIP = {"max_len": 77, "causal": True, "activation": "quick_gelu", "epsilon": 1e-5, "pool": "end"}
BASE = {"width": 768, "depth": 12, "heads": 12}
VARIANTS = {
    "clip_b": {**CLIP, "width": 512, "depth": 12, "heads": 8},
    "clip_l": {**CLIP, **BASE},
    "siglip_b": {
        **BASE,
        "max_len": 64,
        "mask_padding": False,
        "activation": "gelu_tanh",
        "epsilon": 1e-6,
        "pool": "last",
    },
    "bert_base": {
        **BASE,
        "max_len": 512,
        "norm": "post",
        "segments": 2,
        "embed_norm": True,
        "final_norm": False,
        "epsilon": 1e-12,
        "pool": "first",
        "pooler": True,
    },
}


class TextTransformer(nn.Module):
    """A Transformer over a text's tokens (CLIP: Radford et al., 2021; SigLIP: Zhai et al., 2023; BERT: Devlin et al., 2019).

    Attributes:
      vocab_size: V; eos: the token that ends a text, whatever follows.
      max_len: positions in the table; a shorter batch takes the first T of them.
      width, depth, heads: D, blocks, attention heads; mlp_ratio: hidden features of an MLP over `width`.
      causal: a token sees those before it only.
      mask_padding: without `causal`, tokens do not see what follows the text.
      norm, activation, epsilon: of the blocks, see `transformer.EncoderBlock`.
      segments: rows of a table of token types, of which all tokens have the first; 0: no table.
      embed_norm: a norm before the blocks; final_norm: one after them.
      pool: one of `text_pooling.POOLS`: "end", "first", "last", "mean", "max" or "none".
      pooler: a layer with tanh on what is pooled; "none" has no such layer.
      dropout: rate on the tokens' vectors and in the blocks; needs the rng "dropout" in training.
      remat, scan: recompute blocks in the backward pass; compile one block and loop. See `transformer.stack`.
      dtype: of the computation; parameters are float32.
    """

    vocab_size: int
    eos: int
    max_len: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    causal: bool = False
    mask_padding: bool = True
    norm: str = "pre"
    activation: str = "gelu"
    epsilon: float = 1e-6
    segments: int = 0
    embed_norm: bool = False
    final_norm: bool = True
    pool: str = "mean"
    pooler: bool = False
    dropout: float = 0.0
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Features of a text. tokens: int32 [B, T] -> [B, width], or [B, T, width] with pool="none".

        Raises:
          ValueError: T is more than max_len; `heads` does not divide `width`; unknown norm, activation or pool.
        """
        pool = registry.choose(text_pooling.POOLS, self.pool, "text transformer pool")
        length = text_pooling.lengths(tokens, eos=self.eos, max_len=self.max_len)

        def table(name: str, rows: int) -> jax.Array:
            return self.param(name, nn.initializers.normal(0.02), (rows, self.width), jnp.float32)

        x = table("embed", self.vocab_size)[tokens] + table("position", self.max_len)[None, : tokens.shape[1]]
        if self.segments:
            x = x + table("segment", self.segments)[None, :1]
        x = x.astype(self.dtype)
        if self.embed_norm:
            x = LayerNorm(self.dtype, self.epsilon, name="embed_norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        mask = None
        if self.mask_padding and not self.causal:
            mask = text_pooling.inside(length, tokens.shape[1])[:, None, None]
        x = stack(
            x,
            mask,
            depth=self.depth,
            train=train,
            remat=self.remat,
            scan=self.scan,
            heads=self.heads,
            mlp=round(self.width * self.mlp_ratio),
            norm=self.norm,
            activation=self.activation,
            epsilon=self.epsilon,
            causal=self.causal,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        if self.final_norm:
            x = LayerNorm(self.dtype, self.epsilon, name="norm")(x)
        x = pool(x, length)
        if self.pooler and self.pool != "none":
            x = jnp.tanh(nn.Dense(self.width, dtype=self.dtype, name="pooler")(x))
        return x


def make(*, variant: str | None = None, dtype: Any, **fields: Any) -> TextTransformer:
    """A text tower from a variant's fields, overridden by `fields`, which include vocab_size, eos and max_len.

    Raises:
      ValueError: unknown variant or field, or one left out; the message names the nearest one.
    """
    known = registry.choose(VARIANTS, variant, "text transformer variant") if variant is not None else {}
    return registry.call(TextTransformer, {**known, **fields}, "text_transformer", dtype=dtype)
