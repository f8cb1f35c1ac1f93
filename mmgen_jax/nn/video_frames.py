"""A frame tower over time: any image tower reads each frame, then a Transformer or a recurrent net reads the frames."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn import pooling, video
from mmgen_jax.nn.norm import LayerNorm
from mmgen_jax.nn.text_rnn import Direction
from mmgen_jax.nn.transformer import stack


class OverTime(nn.Module):
    """A Transformer over frames. [B, F, D] -> [B, F, D].

    Attributes:
      depth: blocks; heads: they divide D; mlp_ratio: hidden features of an MLP over D.
      frames: of the clips for which times are learned; for other lengths that table is resized linearly.
      dropout: rate; needs the rng "dropout" in training.
      dtype: of the computation; parameters are float32.
    """

    depth: int = 2
    heads: int = 4
    mlp_ratio: float = 4.0
    frames: int = 16
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, *, train: bool) -> jax.Array:
        """x: [B, F, D]; mask: bool [B, F], or None -> [B, F, D]."""
        width = x.shape[-1]
        table = self.param("time", nn.initializers.normal(0.02), (self.frames, 1, width), jnp.float32)
        time = pooling.resize_positions(table, x.shape[1], 1)[:, 0]
        x = stack(
            x + time[None].astype(self.dtype),
            video.key_mask(mask),
            depth=self.depth,
            train=train,
            heads=self.heads,
            mlp=round(width * self.mlp_ratio),
            dropout=self.dropout,
            dtype=self.dtype,
        )
        return LayerNorm(self.dtype, name="norm")(x)


class Recurrent(nn.Module):
    """Recurrent layers over frames. [B, F, D] -> [B, F, features], or [B, F, 2 features] where they read both ways.

    Attributes:
      features: of one direction's hidden state; cell: "gru" or "lstm"; layers: each reads the one before it.
      bidirectional: each layer reads both ways, its two states side by side.
      dtype: of the computation; parameters are float32.
    """

    features: int
    cell: str = "gru"
    layers: int = 1
    bidirectional: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, *, train: bool) -> jax.Array:
        """x: [B, F, D]; mask: bool [B, F], or None: the state stays as it is over frames that are not there."""
        del train
        mask = jnp.ones(x.shape[:2], bool) if mask is None else mask
        names = ("forward", "backward") if self.bidirectional else ("forward",)
        for i in range(self.layers):
            read = [
                Direction(
                    self.features, self.cell, name == "backward", self.dtype, name=f"layer{i + 1}_{name}"
                )
                for name in names
            ]
            x = jnp.concatenate([one(x, mask)[0] for one in read], axis=-1)
        return x


TIMES = {"transformer": OverTime, "rnn": Recurrent}


class VideoFrames(nn.Module):
    """An image tower on each frame, one linear layer, and a net over frames.

    Where the image tower gives a grid, S = h * w, the net over frames reads each place by itself; where it gives a vector, S = 1.
    A tower with batch statistics counts padding frames among them.

    Attributes:
      tower: float [N, H, W, 3] -> [N, h, w, E] or [N, E].
      over_time: `OverTime` or `Recurrent`.
      width: D, features of a frame before the net over frames.
      differences: the image tower also sees what has changed since the frame before, as three more channels, 0 of the first
        frame (Wang et al., 2016, section 3.2).
      pool: one of `video.POOLS` but "class".
      dtype: of the computation; parameters are float32.
    """

    tower: nn.Module
    over_time: nn.Module
    width: int
    differences: bool = False
    pool: str = "none"
    dtype: Any = jnp.float32

    def token_mask(self, mask: jax.Array, tokens: int) -> jax.Array:
        """Which of the `tokens` that pool="none" gives are there. mask: bool [B, F] -> bool [B, P]."""
        return video.token_mask(mask, 1, tokens)

    def over_frames(self, weights: jax.Array, frames: int) -> jax.Array:
        """See `video.over_frames`."""
        return video.over_frames(weights, frames)

    @nn.compact
    def __call__(self, clip: jax.Array, mask: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Features of a clip. clip: float [B, F, H, W, 3]; mask: bool [B, F], false for frames that pad a shorter clip.

        Returns:
          See `video.pool`, with T = F.
        """
        batch = len(clip)
        clip = video.blank(clip, mask).astype(self.dtype)
        if self.differences:
            change = jnp.diff(clip, axis=1, prepend=clip[:, :1])
            clip = jnp.concatenate([clip, change], axis=-1)
        x = self.tower(rearrange(clip, "b f h w c -> (b f) h w c"), train=train)
        x = rearrange(x, "n h w d -> n (h w) d") if x.ndim == 4 else x[:, None]
        x = nn.Dense(self.width, dtype=self.dtype, name="project")(x)
        places = x.shape[1]
        x = rearrange(x, "(b f) s d -> (b s) f d", b=batch)
        keys = None if mask is None else repeat(mask, "b f -> (b s) f", s=places)
        x = rearrange(self.over_time(x, keys, train=train), "(b s) f d -> b f s d", b=batch)
        return video.pool(x, self.pool, first=None, mask=mask)


def make(
    *,
    variant: str | None = None,
    tower: Mapping[str, Any],
    over_time: Mapping[str, Any],
    dtype: Any,
    axis_name: str | None = None,
    **fields: Any,
) -> VideoFrames:
    """A frame tower: `tower` is a config of an image tower of nn/, `over_time` one of {"name": "transformer" or "rnn", fields}.

    Raises:
      ValueError: a variant, of which it has none, or an unknown name or field; the message names the nearest one.
    """
    if variant is not None:
        raise ValueError(
            f'The tower "video_frames" has no variants such as "{variant}": set tower and over_time.'
        )
    tower = registry.build("nn", tower, dtype=dtype, axis_name=axis_name)
    over_time = dict(over_time)
    kind = registry.choose(TIMES, over_time.pop("name", "none"), "net over time")
    net = registry.call(kind, over_time, "video_frames.over_time", dtype=dtype)
    return registry.call(VideoFrames, fields, "video_frames", tower=tower, over_time=net, dtype=dtype)
