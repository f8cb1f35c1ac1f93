"""Space-time Transformers: divided attention (TimeSformer), joint attention, and ViViT's factorised encoder over tubelets."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn import pooling, video, vit
from mmgen_jax.nn.attention import self_attention
from mmgen_jax.nn.norm import LayerNorm
from mmgen_jax.nn.transformer import ACTIVATIONS, stack

ATTENTIONS = ("divided", "joint", "factorised")
VARIANTS = {
    # Bertasius et al. (2021), section 4: eight frames; Arnab et al. (2021), section 4.1: tubelets of two of 32 frames, four
    # layers over time.
    "timesformer_b": {**vit.SIZES["vit_b"], "frames": 8, "class_token": True, "pool": "class"},
    "vivit_b": {
        **vit.SIZES["vit_b"],
        "attention": "factorised",
        "frames": 32,
        "tubelet": 2,
        "time_depth": 4,
        "class_token": True,
        "pool": "class",
    },
}


def tubelets(clip: jax.Array, frames: int, size: int) -> jax.Array:
    """Cut into boxes of `frames` x size x size. [B, F, H, W, C] -> [B, F / frames, H / size, W / size, frames * size * size * C].

    Raises:
      ValueError: the clip does not divide so.
    """
    if clip.shape[1] % frames:
        raise ValueError(
            f"A clip of {clip.shape[1]} frames does not divide into tubelets of {frames}: sample another number with "
            "frames(count=...), or change the tubelet."
        )
    batch = len(clip)
    cut = vit.patches(rearrange(clip, "b f h w c -> (b f) h w c"), size)
    return rearrange(cut, "(b f t) h w d -> b f h w (t d)", b=batch, t=frames)


class DividedBlock(nn.Module):
    """Attention over time, then over space, then an MLP, each beside a shortcut (Bertasius et al., 2021, section 3, "T+S").

    A token looks at its own place in all frames, then at all places of its own frame. The class token takes no part in the first;
    in the second it looks at each frame by itself, and the mean is its new value, as in the authors' program. (Theirs has a
    second linear layer after attention over time, which can be multiplied into the one here.)

    Attributes:
      heads; mlp: hidden features; activation: one of `transformer.ACTIVATIONS`; epsilon: of the norms.
      dropout: rate on the branches' outputs and on the MLP's hidden layer; needs the rng "dropout" in training.
      dtype: of the computation.
    """

    heads: int
    mlp: int
    activation: str
    epsilon: float
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, first: jax.Array | None, mask: jax.Array | None, train: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """x: [B, T, S, D]; first: the class token [B, D] or None; mask: bool [B, T] or None -> x, first."""
        batch, times, places, width = shape = x.shape
        activation = registry.choose(ACTIVATIONS, self.activation, "activation")

        def dense(features: int, name: str) -> nn.Dense:
            init = nn.initializers.xavier_uniform()
            return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)

        def drop(y: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout, deterministic=not train)(y)

        def attend(y: jax.Array, name: str, sequences: str, keys: jax.Array | None = None) -> jax.Array:
            """Within sequences, "(b s) t" or "(b t) s". y: [B * T * S, D]; keys: see `video.key_mask` -> [B * T * S, D]."""
            y = LayerNorm(self.dtype, self.epsilon, name=f"{name}_norm")(y)
            rows, heads = "(b t s) (h d)", f"{sequences} h d"
            q, k, v = (
                rearrange(part, f"{rows} -> {heads}", b=batch, t=times, h=self.heads)
                for part in jnp.split(dense(3 * width, f"{name}_qkv")(y), 3, axis=-1)
            )
            y = rearrange(self_attention(q, k, v, video.key_mask(keys)), f"{heads} -> {rows}", b=batch)
            return drop(dense(width, f"{name}_out")(y))

        mlp_norm = LayerNorm(self.dtype, self.epsilon, name="mlp_norm")
        mlp_in, mlp_out = dense(self.mlp, "mlp_in"), dense(width, "mlp_out")

        def mlp(y: jax.Array) -> jax.Array:
            return y + drop(mlp_out(drop(activation(mlp_in(mlp_norm(y))))))

        x = x.reshape(-1, width)  # as in nn/transformer.py's `stack`
        keys = None if mask is None else repeat(mask, "b t -> (b s) t", s=places)
        x = x + attend(x, "time", "(b s) t", keys)
        if first is None:
            x = x + attend(x, "space", "(b t) s")
        else:
            every = jnp.concatenate([repeat(first, "b d -> b t 1 d", t=times), x.reshape(shape)], axis=2)
            y = attend(every.reshape(-1, width), "space", "(b t) s").reshape(every.shape)
            x, first = x + y[:, :, 1:].reshape(x.shape), first + video.mean_over(y[:, :, 0], mask)
        x = mlp(x).reshape(shape)
        return x, None if first is None else mlp(first)


class Encoder(nn.Module):
    """Blocks over one sequence, with a norm at the end; a class token goes before it. [B, P, D] -> [B, P, D], [B, D] or None.

    Attributes:
      depth, heads, mlp, activation, epsilon, dropout, remat: see `VideoTransformer`; class_token: see there.
      dtype: of the computation.
    """

    depth: int
    heads: int
    mlp: int
    activation: str
    epsilon: float
    dropout: float
    remat: bool
    class_token: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None, train: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """x: [B, P, D]; mask: bool [B, P] or None."""
        if self.class_token:
            first = class_token(self, len(x), x.shape[-1], self.dtype)
            x = jnp.concatenate([first[:, None], x], axis=1)
            mask = None if mask is None else jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        x = stack(
            x,
            video.key_mask(mask),
            depth=self.depth,
            train=train,
            remat=self.remat,
            heads=self.heads,
            mlp=self.mlp,
            activation=self.activation,
            epsilon=self.epsilon,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        x = LayerNorm(self.dtype, self.epsilon, name="norm")(x)
        return (x[:, 1:], x[:, 0]) if self.class_token else (x, None)


def class_token(module: nn.Module, batch: int, width: int, dtype: Any) -> jax.Array:
    """The module's learned vector, once a clip. -> [B, D]."""
    first = module.param("class_token", nn.initializers.normal(0.02), (width,), jnp.float32)
    return repeat(first.astype(dtype), "d -> b d", b=batch)


class VideoTransformer(nn.Module):
    """A Transformer over a clip's tubelets, without a head.

    Attributes:
      width, depth, heads: features, blocks, attention heads.
      attention: "divided" over time and space in each block (`DividedBlock`); "joint", every token looks at every other
        (Arnab et al., 2021, model 1); "factorised", `depth` blocks over the places of each step, whose class token or mean
        then goes through `time_depth` blocks over steps (their model 2), so that S is 1.
      frames: of the clips for which times are learned; for other lengths that table is resized linearly.
      patch, tubelet: a token's box is tubelet x patch x patch.
      image_size: side in pixels of the (square) frames for which places are learned, as in nn/vit.py.
      time_depth: see "factorised"; of no other.
      mlp_ratio: hidden features of an MLP over `width`.
      class_token: a learned token goes through the blocks beside the others.
      activation, epsilon: see nn/transformer.py.
      pool: one of `video.POOLS`.
      remat: keep a block's input alone for the backward pass.
      dropout: rate; needs the rng "dropout" in training.
      dtype: of the computation; parameters are float32.
    """

    width: int
    depth: int
    heads: int
    attention: str = "divided"
    frames: int = 8
    patch: int = 16
    tubelet: int = 1
    image_size: int = 224
    time_depth: int = 0
    mlp_ratio: float = 4.0
    class_token: bool = False
    activation: str = "gelu"
    epsilon: float = 1e-6
    pool: str = "none"
    remat: bool = False
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def token_mask(self, mask: jax.Array, tokens: int) -> jax.Array:
        """Which of the `tokens` that pool="none" gives are there. mask: bool [B, F] -> bool [B, P]."""
        return video.token_mask(mask, self.tubelet, tokens)

    def over_frames(self, weights: jax.Array, frames: int) -> jax.Array:
        """See `video.over_frames`."""
        return video.over_frames(weights, frames, self.tubelet)

    @nn.compact
    def __call__(self, clip: jax.Array, mask: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Features of a clip. clip: float [B, F, H, W, 3]; mask: bool [B, F], false for frames that pad a shorter clip.

        Returns:
          See `video.pool`, with T = F / tubelet and S = H / patch * W / patch.

        Raises:
          ValueError: the clip does not divide into tubelets, `heads` does not divide `width`, time_depth without "factorised"
            or the reverse, unknown attention, activation or pool.
        """
        registry.choose(dict.fromkeys(ATTENTIONS), self.attention, "video attention")
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}.")
        if (self.attention == "factorised") != (self.time_depth > 0):
            raise ValueError(
                f'attention = "{self.attention}" with time_depth = {self.time_depth}: "factorised" needs blocks over time, '
                "the others have none."
            )
        cut = tubelets(video.blank(clip, mask).astype(self.dtype), self.tubelet, self.patch)
        mask = video.steps(mask, self.tubelet)
        init = nn.initializers.lecun_normal()
        x = nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="embed")(cut)
        _, times, rows, columns, _ = x.shape
        side = self.image_size // self.patch
        place = pooling.resize_positions(self._table("position", side, side), rows, columns)
        x = x + place[None, None].astype(self.dtype)
        time = pooling.resize_positions(self._table("time", self.frames // self.tubelet, 1), times, 1)
        time = time[None].astype(self.dtype)  # [1, T, 1, D]
        x = rearrange(x, "b t h w d -> b t (h w) d")
        drop = nn.Dropout(self.dropout, deterministic=not train)
        form = {"divided": self._divided, "joint": self._joint, "factorised": self._factorised}[
            self.attention
        ]
        x, first = form(x, time, mask, drop, train)
        return video.pool(x, self.pool, first=first, mask=mask, tubelet=self.tubelet)

    def _divided(self, x, time, mask, drop, train):
        x = drop(x + time)
        first = class_token(self, len(x), self.width, self.dtype) if self.class_token else None
        # `train` is no array: a recomputed block must not trace it.
        block = nn.remat(DividedBlock, static_argnums=(4,)) if self.remat else DividedBlock
        for i in range(self.depth):
            x, first = block(**self._fields(), name=f"block{i + 1}")(x, first, mask, train)
        norm = LayerNorm(self.dtype, self.epsilon, name="norm")
        return norm(x), None if first is None else norm(first)

    def _joint(self, x, time, mask, drop, train):
        _, times, places, _ = x.shape
        keys = None if mask is None else repeat(mask, "b t -> b (t s)", s=places)
        x = rearrange(drop(x + time), "b t s d -> b (t s) d")
        x, first = self._encoder(self.depth, "space_time")(x, keys, train)
        return rearrange(x, "b (t s) d -> b t s d", t=times), first

    def _factorised(self, x, time, mask, drop, train):
        batch = len(x)
        x, first = self._encoder(self.depth, "space")(drop(rearrange(x, "b t s d -> (b t) s d")), None, train)
        x = first if self.class_token else jnp.mean(x, axis=1)
        x = rearrange(x, "(b t) d -> b t d", b=batch) + time[:, :, 0]
        x, first = self._encoder(self.time_depth, "over_time")(x, mask, train)
        return x[:, :, None], first

    def _fields(self) -> dict[str, Any]:
        return {
            "heads": self.heads,
            "mlp": round(self.width * self.mlp_ratio),
            "activation": self.activation,
            "epsilon": self.epsilon,
            "dropout": self.dropout,
            "dtype": self.dtype,
        }

    def _encoder(self, depth: int, name: str) -> Encoder:
        fields = {"remat": self.remat, "class_token": self.class_token, **self._fields()}
        return Encoder(depth=depth, **fields, name=name)

    def _table(self, name: str, *sides: int) -> jax.Array:
        """A learned float32 [*sides, width]."""
        return self.param(name, nn.initializers.normal(0.02), (*sides, self.width), jnp.float32)


def make(
    *, variant: str | None = None, dtype: Any, axis_name: str | None = None, **fields: Any
) -> VideoTransformer:
    """A space-time Transformer from a variant's fields, overridden by `fields`. `axis_name` has no use: no batch statistics.

    Raises:
      ValueError: unknown variant or field; the message names the nearest one.
    """
    known = registry.choose(VARIANTS, variant, "video transformer variant") if variant is not None else {}
    return registry.call(VideoTransformer, {**known, **fields}, "video_transformer", dtype=dtype)
