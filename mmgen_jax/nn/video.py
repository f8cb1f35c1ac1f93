"""What video towers share: which frames are there, and pools. Tokens lie frame by frame: [B, T * S, D].

A tower reads a clip as T steps in time (frames, or tubelets of several) of S places each.
"""

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from mmgen_jax.core import registry

POOLS = ("none", "frames", "mean", "class")


def blank(video: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Frames that are not there become zeros, whatever the array holds. video: [B, F, H, W, C]; mask: bool [B, F].

    Raises:
      ValueError: `video` is no batch of clips, or the mask does not fit it.
    """
    if video.ndim != 5:
        raise ValueError(f"A video tower reads clips [B, F, H, W, 3], not {list(video.shape)}.")
    if mask is None:
        return video
    if mask.shape != video.shape[:2]:
        raise ValueError(f"A mask of frames {list(mask.shape)} for clips {list(video.shape)}: it is [B, F].")
    return jnp.where(mask[:, :, None, None, None], video, jnp.zeros((), video.dtype))


def steps(mask: jax.Array | None, tubelet: int) -> jax.Array | None:
    """Which steps in time are there: those with a frame that is. bool [B, F] -> [B, F / tubelet]."""
    return None if mask is None else rearrange(mask, "b (f t) -> b f t", t=tubelet).any(axis=-1)


def token_mask(mask: jax.Array, tubelet: int, tokens: int) -> jax.Array:
    """Which of a tower's `tokens` (pool="none") are of frames that are there. bool [B, F] -> [B, P]."""
    there = steps(mask, tubelet)
    return repeat(there, "b f -> b (f s)", s=tokens // there.shape[1])


def over_frames(weights: jax.Array, frames: int, tubelet: int = 1) -> jax.Array:
    """A weight a token -> a weight a place of each frame, with the same sum; a tubelet's lies evenly on its frames.

    weights: [..., P], of a tower's tokens (pool="none") of `frames` frames -> [..., F, S].
    """
    x = rearrange(weights, "... (t s) -> ... t s", t=frames // tubelet)
    return jnp.repeat(x, tubelet, axis=-2) / tubelet


def pool(
    x: jax.Array, name: str, *, first: jax.Array | None, mask: jax.Array | None, tubelet: int = 1
) -> jax.Array:
    """From steps in time to what a tower gives.

    Args:
      x: [B, T, S, D].
      name: "none", all tokens [B, T * S, D]; "frames", each frame's mean over places [B, F, D], of a tubelet the same for all
        of its frames; "mean" over all tokens that are there [B, D]; "class", the class token [B, D].
      first: the class token [B, D], or None.
      mask: bool [B, T], or None where all are there. A clip without any has the mean 0.
      tubelet: frames a step.

    Raises:
      ValueError: unknown pool, or "class" without a class token.
    """
    registry.choose(dict.fromkeys(POOLS), name, "video pool")
    if name == "class":
        if first is None:
            raise ValueError('pool = "class" needs class_token = True.')
        return first
    if name == "none":
        return rearrange(x, "b t s d -> b (t s) d")
    frames = jnp.mean(x, axis=2)
    if name == "frames":
        return jnp.repeat(frames, tubelet, axis=1)
    return mean_over(frames, mask)


def mean_over(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The mean over steps that are there, summed in float32; 0 where none is. x: [B, T, D]; mask: bool [B, T] -> [B, D]."""
    if mask is None:
        return jnp.mean(x, axis=1)
    total = jnp.sum(jnp.where(mask[..., None], x.astype(jnp.float32), 0.0), axis=1)
    count = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.float32), 1.0)
    return (total / count[:, None]).astype(x.dtype)


def key_mask(mask: jax.Array | None) -> jax.Array | None:
    """As attention takes it: no position looks at those that are not there. bool [B, T] -> [B, 1, 1, T]."""
    return None if mask is None else mask[:, None, None, :]
