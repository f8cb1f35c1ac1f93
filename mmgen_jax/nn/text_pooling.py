"""From a vector a token to one vector a text. A text ends with its first end-of-text token; what follows is padding."""

import jax
import jax.numpy as jnp


def lengths(tokens: jax.Array, *, eos: int, max_len: int) -> jax.Array:
    """Tokens of each text up to and with the first `eos`; without one the whole row is text. int32 [B, T] -> int32 [B].

    Raises:
      ValueError: T is more than `max_len`.
    """
    longest = tokens.shape[1]
    if longest > max_len:
        raise ValueError(
            f"A text of {longest} tokens, but the text tower's max_len is {max_len}: cut texts with the transform "
            f"text({max_len}), or set max_len={longest}."
        )
    ends = tokens == eos
    return jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1) + 1, longest).astype(jnp.int32)


def inside(length: jax.Array, longest: int) -> jax.Array:
    """True on the text, false on padding. length: int32 [B] -> bool [B, longest]."""
    return jnp.arange(longest)[None, :] < length[:, None]


def none(hidden: jax.Array, length: jax.Array) -> jax.Array:
    """Every token's vector. hidden: [B, T, D] -> [B, T, D]."""
    del length
    return hidden


def end(hidden: jax.Array, length: jax.Array) -> jax.Array:
    """The vector of the end-of-text token (CLIP). hidden: [B, T, D]; length: int32 [B] -> [B, D]."""
    return jnp.take_along_axis(hidden, length[:, None, None] - 1, axis=1)[:, 0]


def first(hidden: jax.Array, length: jax.Array) -> jax.Array:
    """The first token's vector (BERT). hidden: [B, T, D] -> [B, D]."""
    del length
    return hidden[:, 0]


def last(hidden: jax.Array, length: jax.Array) -> jax.Array:
    """The last position's vector, padding or not (SigLIP). hidden: [B, T, D] -> [B, D]."""
    del length
    return hidden[:, -1]


def mean(hidden: jax.Array, length: jax.Array) -> jax.Array:
    """The mean over the text, summed in float32. hidden: [B, T, D]; length: int32 [B] -> [B, D]."""
    text = inside(length, hidden.shape[1])[..., None]
    total = jnp.sum(jnp.where(text, hidden.astype(jnp.float32), 0.0), axis=1)
    return (total / length[:, None].astype(jnp.float32)).astype(hidden.dtype)


def maximum(hidden: jax.Array, length: jax.Array) -> jax.Array:
    """The largest value of each feature over the text. hidden: [B, T, D]; length: int32 [B] -> [B, D]."""
    text = inside(length, hidden.shape[1])[..., None]
    return jnp.max(hidden, axis=1, where=text, initial=-jnp.inf)


POOLS = {"none": none, "end": end, "first": first, "last": last, "mean": mean, "max": maximum}
