"""Recurrent text towers: words' vectors, then GRU or LSTM layers that read one way or both."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn import rnn, text_pooling

# What a pool takes: states [B, T, D], the final ones [B, D], lengths [B].
POOLS = {
    "last": lambda states, final, length: final,
    "mean": lambda states, final, length: text_pooling.mean(states, length),
    "max": lambda states, final, length: text_pooling.maximum(states, length),
    "none": lambda states, final, length: states,
}


class Direction(nn.Module):
    """One layer that reads texts one way.

    Attributes:
      features: F.
      cell: "gru" or "lstm".
      reverse: read from the text's end.
      dtype: of the computation; parameters are float32.
    """

    features: int
    cell: str
    reverse: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The hidden state is 0 before the text's first word, and stays as it is over padding.

        x: [B, T, E]; text: bool [B, T], false on padding -> the state at each position [B, T, F], after the whole text [B, F].
        """
        gates = registry.choose(rnn.GATES, self.cell, "text RNN cell") * self.features

        def get(name: str, init, *shape: int) -> jax.Array:
            return self.param(name, init, shape, jnp.float32).astype(self.dtype)

        kernel = get("input_kernel", nn.initializers.lecun_normal(), x.shape[-1], gates)
        recurrent = get("recurrent_kernel", nn.initializers.orthogonal(), self.features, gates)
        bias = get("bias", rnn.gates_bias(self.cell), gates)
        if self.cell == "gru":
            recurrent_bias = get("recurrent_bias", nn.initializers.zeros_init(), gates)
        inputs = x @ kernel + bias[None, None]  # of all words at once

        def step(carry: tuple[jax.Array, ...], word: tuple[jax.Array, jax.Array]):
            inputs, text = word
            if self.cell == "lstm":
                hidden, cell = carry
                new = rnn.lstm(inputs + hidden @ recurrent, cell)
            else:
                (hidden,) = carry
                new = (rnn.gru(inputs, hidden @ recurrent + recurrent_bias[None], hidden),)
            carry = tuple(
                jnp.where(text[:, None], after, before) for after, before in zip(new, carry, strict=True)
            )
            return carry, carry[0]

        zeros = jnp.zeros((len(x), self.features), self.dtype)
        start = (zeros, zeros) if self.cell == "lstm" else (zeros,)
        words = (rearrange(inputs, "b t g -> t b g"), rearrange(text, "b t -> t b"))
        (final, *_), hidden = jax.lax.scan(step, start, words, reverse=self.reverse)
        return rearrange(hidden, "t b f -> b t f"), final


class TextRnn(nn.Module):
    """A recurrent text tower (Kiros et al., 2014; VSE++, Faghri et al., 2018).

    Attributes:
      vocab_size: V; eos: the token that ends a text, whatever follows.
      max_len: the most tokens of a text.
      features: F, of one direction's hidden state; embed_features: E, size of a word's vector.
      cell: "gru" or "lstm".
      layers: each reads the one before it.
      bidirectional: each layer reads both ways, and its two states lie side by side: D = 2 F, else F.
      pool: "last", the state after the whole text, of each direction; "mean" or "max" over the text; "none".
      dropout: rate on the words' vectors; needs the rng "dropout" in training.
      dtype: of the computation; parameters are float32.
    """

    vocab_size: int
    eos: int
    max_len: int
    features: int = 1024
    embed_features: int = 300
    cell: str = "gru"
    layers: int = 1
    bidirectional: bool = False
    pool: str = "last"
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Features of a text. tokens: int32 [B, T] -> [B, D], or [B, T, D] with pool="none".

        Raises:
          ValueError: T is more than max_len; unknown cell or pool.
        """
        pool = registry.choose(POOLS, self.pool, "text RNN pool")
        length = text_pooling.lengths(tokens, eos=self.eos, max_len=self.max_len)
        text = text_pooling.inside(length, tokens.shape[1])
        shape = (self.vocab_size, self.embed_features)
        embed = self.param("embed", nn.initializers.normal(0.1), shape, jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(embed[tokens].astype(self.dtype))
        names = ("forward", "backward") if self.bidirectional else ("forward",)
        for i in range(self.layers):
            states = []
            for name in names:
                read = Direction(
                    self.features,
                    self.cell,
                    reverse=name == "backward",
                    dtype=self.dtype,
                    name=f"layer{i + 1}_{name}",
                )
                states.append(read(x, text))
            x, final = (jnp.concatenate(parts, axis=-1) for parts in zip(*states, strict=True))
        return pool(x, final, length)


def make(*, variant: str | None = None, dtype: Any, **fields: Any) -> TextRnn:
    """A recurrent tower from `fields`, which include vocab_size, eos and max_len.

    Raises:
      ValueError: a variant, of which it has none, or an unknown field; the message names the nearest one.
    """
    if variant is not None:
        raise ValueError(
            f'The tower "text_rnn" has no variants such as "{variant}": set cell, features and layers.'
        )
    return registry.call(TextRnn, fields, "text_rnn", dtype=dtype)
