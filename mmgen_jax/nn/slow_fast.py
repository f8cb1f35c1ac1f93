"""Two speeds: one tower looks well at a few frames, for what is there, another shortly at all, for what happens.

Feichtenhofer et al., SlowFast Networks for Video Recognition, 2019, section 3. Other than there the two are not joined on the
way: whoever reads their tokens looks at both, for what moves in the one and for its shape in the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn import pooling, video
from mmgen_jax.nn.matching import Matching
from mmgen_jax.nn.norm import LayerNorm


class SlowFast(nn.Module):
    """The slow tower's places, frame by frame, then the fast tower's tokens: [B, P, D].

    A place of a slow frame also tells where what it shows has come from and where it goes, and how it changes (nn/matching.py):
    features that know colours and shapes can be found again in the next frame, so that directions need not be learned from
    pixels, and what happens is told where it is seen to whom.

    Attributes:
      slow: an image tower that gives a grid, float [N, H, W, 3] -> [N, h, w, E].
      fast: a video tower that gives one token of `width` features a frame.
      width: D.
      every: the slow tower reads the first of so many frames.
      frames: of the clips for which the slow frames' times are learned; for other lengths that table is resized linearly.
      grid: (rows, columns) for which the slow tower's places are learned, likewise.
      dtype: of the computation; parameters are float32.
    """

    slow: nn.Module
    fast: nn.Module
    width: int
    every: int = 3
    frames: int = 12
    grid: Sequence[int] = (6, 6)
    dtype: Any = jnp.float32

    def token_mask(self, mask: jax.Array, tokens: int) -> jax.Array:
        """Which of the `tokens` are of frames that are there. mask: bool [B, F] -> bool [B, P]."""
        slow = video.token_mask(mask[:, :: self.every], 1, tokens - mask.shape[1])
        return jnp.concatenate([slow, mask], axis=1)

    def over_frames(self, weights: jax.Array, frames: int) -> jax.Array:
        """See `video.over_frames`: the fast tower's weights lie evenly on their frames, the slow one's on its frames only."""
        slow, fast = jnp.split(weights, [weights.shape[-1] - frames], axis=-1)
        slow = video.over_frames(slow, -(-frames // self.every))
        places = slow.shape[-1]
        whole = jnp.repeat(fast[..., None] / places, places, axis=-1)
        return whole.at[..., :: self.every, :].add(slow)

    @nn.compact
    def __call__(self, clip: jax.Array, mask: jax.Array | None = None, *, train: bool) -> jax.Array:
        """clip: float [B, F, H, W, 3]; mask: bool [B, F], false for frames that pad a shorter clip -> tokens [B, P, D].

        Raises:
          ValueError: the slow tower gives no grid, or the fast one not a token a frame.
        """
        seen = video.blank(clip, mask).astype(self.dtype)[:, :: self.every]
        x = self.slow(rearrange(seen, "b f h w c -> (b f) h w c"), train=train)
        if x.ndim != 4:
            raise ValueError('slow_fast.slow gives no grid; set its pool = "none".')
        x = rearrange(x, "(b f) h w e -> b f h w e", b=len(clip))
        happens = jnp.concatenate(
            Matching(dtype=self.dtype, name="matching")(x, None if mask is None else mask[:, :: self.every]),
            axis=-1,
        )
        # That something moves, whichever way, is no linear function of how it does.
        happens = nn.gelu(
            nn.Dense(2 * self.width, dtype=self.dtype, name="happens_in")(
                jnp.concatenate([x, happens], axis=-1)
            )
        )
        x = nn.Dense(self.width, dtype=self.dtype, name="project")(x)
        x = x + nn.Dense(self.width, dtype=self.dtype, name="happens_out")(happens)
        steps = -(-self.frames // self.every)
        time = self.param("time", nn.initializers.normal(0.02), (steps, 1, self.width), jnp.float32)
        place = self.param("place", nn.initializers.normal(0.02), (*self.grid, self.width), jnp.float32)
        time = pooling.resize_positions(time, x.shape[1], 1)[None, :, :, None]
        place = pooling.resize_positions(place, *x.shape[2:4])[None, None]
        x = LayerNorm(self.dtype, name="norm")(x + (time + place).astype(self.dtype))
        x = rearrange(x, "b f h w d -> b (f h w) d")
        brief = self.fast(clip, mask, train=train)
        if brief.shape[1:] != (clip.shape[1], self.width):
            raise ValueError(
                f"slow_fast.fast gives {list(brief.shape[1:])}, not one token of {self.width} features for each of "
                f'{clip.shape[1]} frames; pool its frames, such as tower.pool = "max".'
            )
        return jnp.concatenate([x, brief], axis=1)


def make(
    *,
    variant: str | None = None,
    slow: Mapping[str, Any],
    fast: Mapping[str, Any],
    dtype: Any,
    axis_name: str | None = None,
    **fields: Any,
) -> SlowFast:
    """A tower of two speeds: `slow` is a config of an image tower of nn/, `fast` one of a video tower.

    Raises:
      ValueError: a variant, of which it has none, or an unknown name or field; the message names the nearest one.
    """
    if variant is not None:
        raise ValueError(f'The tower "slow_fast" has no variants such as "{variant}": set slow and fast.')
    towers = {
        name: registry.build("nn", config, dtype=dtype, axis_name=axis_name)
        for name, config in (("slow", slow), ("fast", fast))
    }
    return registry.call(SlowFast, fields, "slow_fast", **towers, dtype=dtype)
