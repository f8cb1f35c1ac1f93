"""Attention of a decoder over an image's positions, whose weights come out for pictures and for losses; self-attention.

Plain functions over arrays, so that they run inside one scan over words; the modules that own the parameters call them.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from einops import rearrange


def additive_scores(query: jax.Array, keys: jax.Array, v: jax.Array) -> jax.Array:
    """e = v . tanh(query + key), head by head (Bahdanau et al., 2015, section A.1.2).

    Args:
      query: [B, C, A], the queries of an image's C rows.
      keys: [B, P, A], projected once an image.
      v: [heads, A / heads].

    Returns:
      [B, C, heads, P].
    """
    hidden = jnp.tanh(query[:, :, None, :] + keys[:, None, :, :])  # [B, C, P, A]
    heads = v.shape[0]
    if heads == 1:
        return (hidden @ v[0])[:, :, None, :]
    hidden = rearrange(hidden, "b c p (h a) -> b c h p a", h=heads)
    return jnp.einsum("bchpa,ha->bchp", hidden, v)


def dot_scores(query: jax.Array, keys: jax.Array, heads: int) -> jax.Array:
    """e = query . key / sqrt(A / heads) (Vaswani et al., 2017, eq. 1).

    query: [B, C, A]; keys: [B, P, A] -> [B, C, heads, P].
    """
    query = rearrange(query, "b c (h a) -> b c h a", h=heads)
    keys = rearrange(keys, "b p (h a) -> b p h a", h=heads)
    return jnp.einsum("bcha,bpha->bchp", query, keys) * query.shape[-1] ** -0.5


def hide(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Scores so low that a softmax gives them nothing, where the mask is false. float32, and finite if all are."""
    return jnp.where(mask, scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)


def weigh(scores: jax.Array, values: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Softmax over positions in float32, and the weighted sum of the values, each head over its slice of features.

    scores: [B, C, heads, P]; values: [B, P, D]; mask: bool [B, P], false at positions that nobody looks at -> context
    [B, C, D], weights [B, C, heads, P].
    """
    if mask is not None:
        scores = hide(scores, mask[:, None, None])
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
    heads = scores.shape[2]
    if heads == 1:
        context = jnp.einsum("bcp,bpd->bcd", weights[:, :, 0].astype(values.dtype), values)
        return context, weights
    values = rearrange(values, "b p (h d) -> b p h d", h=heads)
    context = jnp.einsum("bchp,bphd->bchd", weights.astype(values.dtype), values)
    return rearrange(context, "b c h d -> b c (h d)"), weights


def split_heads(qkv: jax.Array, heads: int) -> Iterator[jax.Array]:
    """What one product gave to queries, keys and values. [B, T, 3 * H * D] -> three of [B, T, H, D]."""
    # Not unpacked from an axis of length 3, whose gradient is the sum of three arrays padded with zeros.
    return (rearrange(part, "b t (h d) -> b t h d", h=heads) for part in jnp.split(qkv, 3, axis=-1))


def self_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array:
    """Attend from queries to keys (Vaswani et al., 2017, eq. 1), with whatever kernel the device has for it.

    query: [B, Tq, H, D]; key, value: [B, Tk, H, D]; mask: bool [1 or B, 1 or H, 1 or Tq, Tk], true where a query may
    look; causal: a query looks at its own position and at those before it only -> [B, Tq, H, D].
    """
    if mask is None and query.shape == key.shape and _has_flash(query):
        # jax promotes bfloat16 to float32 in there, which a caller's strict setting would forbid.
        with jax.numpy_dtype_promotion("standard"):
            return _flash(query, key, value, causal)
    if causal:
        before = jnp.tril(jnp.ones((1, 1, query.shape[1], key.shape[1]), bool))
        mask = before if mask is None else mask & before
    # Each head's positions side by side in memory: XLA multiplies them faster on a CPU.
    query, key, value = (rearrange(x, "b t h d -> b h t d") for x in (query, key, value))
    return rearrange(_attend(query, key, value, mask), "b h t d -> b t h d")


@jax.custom_vjp
def _attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None) -> jax.Array:
    """See `self_attention`, with heads before positions. query: [B, H, Tq, D]; key, value: [B, H, Tk, D] -> [B, H, Tq, D].

    Its gradient is written by hand: that of a softmax sums over keys what here is a sum over features, of what came out and its
    gradient (Dao et al., FlashAttention, 2022, appendix B.2), and takes longer on a CPU.
    """
    return _attend_forward(query, key, value, mask)[0]


def _attend_forward(query, key, value, mask):
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if mask is not None:
        scores = hide(scores, mask)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    attended = jnp.einsum("bhqk,bhkd->bhqd", weights, value)
    return attended, (query, key, value, mask, weights, attended)


def _attend_backward(residuals, gradient):
    query, key, value, mask, weights, attended = residuals
    to_value = jnp.einsum("bhqk,bhqd->bhkd", weights, gradient)
    to_weights = jnp.einsum("bhqd,bhkd->bhqk", gradient, value, preferred_element_type=jnp.float32)
    mean = jnp.sum(gradient.astype(jnp.float32) * attended.astype(jnp.float32), axis=-1, keepdims=True)
    to_scores = weights.astype(jnp.float32) * (to_weights - mean) * query.shape[-1] ** -0.5
    if mask is not None:  # a query that may look nowhere has weights, but none that its scores gave it
        to_scores = jnp.where(mask, to_scores, 0.0)
    to_scores = to_scores.astype(query.dtype)
    to_query = jnp.einsum("bhqk,bhkd->bhqd", to_scores, key)
    to_key = jnp.einsum("bhqk,bhqd->bhkd", to_scores, query)
    return to_query, to_key, to_value, None


_attend.defvjp(_attend_forward, _attend_backward)


def _has_flash(query: jax.Array) -> bool:
    """Whether cuDNN's flash attention serves: half precision on NVIDIA's Ampere or later, heads of at most 128 features in
    multiples of 8. query: [B, T, H, D]."""
    capability = getattr(
        jax.devices()[0], "compute_capability", ""
    )  # "9.0" there, no number on other makers' GPUs
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    features = query.shape[-1]
    return (
        half and features % 8 == 0 and features <= 128 and capability[:1].isdigit() and float(capability) >= 8
    )


def _flash(
    query: jax.Array, key: jax.Array, value: jax.Array, causal: bool, implementation: str = "cudnn"
) -> jax.Array:
    """Attention by a kernel that jax does not choose by itself and differentiates for even lengths only.

    An odd length, such as CLIP's 77 words and 197 patches, becomes even by one more position, at which no other looks.
    """
    attend = functools.partial(jax.nn.dot_product_attention, is_causal=causal, implementation=implementation)
    length = query.shape[1]
    if length % 2 == 0:
        return attend(query, key, value)
    query, key, value = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value))
    keys = None if causal else jnp.full(len(query), length, jnp.int32)
    return attend(query, key, value, key_value_seq_lengths=keys)[:, :length]
