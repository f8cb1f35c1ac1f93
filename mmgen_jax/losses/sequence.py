"""Losses of a caption: one value a token or a caption, masked by the caller."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """-log p(target), with a share of the target spread evenly over the vocabulary (Szegedy et al., 2016, section 7).

    logits: float32 [..., V]; targets: int32 [...] -> nats [...].
    """
    logits = logits.astype(jnp.float32)
    norm = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    if label_smoothing:
        chosen = (1.0 - label_smoothing) * chosen + label_smoothing * logits.mean(axis=-1)
    return norm - chosen


def doubly_stochastic(weights: jax.Array, mask: jax.Array) -> jax.Array:
    """sum_p (1 - sum_t alpha_tp)^2: over a caption, every position should be looked at (Xu et al., 2015, eq. 14).

    weights: [..., T, heads, P]; mask: [..., T], 1 where a word counts -> [...], the mean over heads.
    """
    looked = jnp.sum(weights * mask[..., None, None], axis=-3)
    return jnp.mean(jnp.sum((1.0 - looked) ** 2, axis=-1), axis=-1)
