"""Ways to make one vector of several modalities' tokens, under one interface: FUSIONS by name, any number of streams, masks.

A modality that a row lacks has an all-false mask: nothing of its tokens counts then, and the row's vector is what the other
modalities give by themselves (a concatenation has zeros in its place).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from mmgen_jax.core import registry
from mmgen_jax.nn import attention
from mmgen_jax.nn.norm import LayerNorm
from mmgen_jax.nn.transformer import EncoderBlock, stack


class Stream(NamedTuple):
    """What a modality's tower gives.

    Attributes:
      tokens: [B, P, D_m]; P is 1 where the tower pools.
      mask: bool [B, P], false on padding, and on all of a modality that a row lacks.
    """

    tokens: jax.Array
    mask: jax.Array


class Fused(NamedTuple):
    """Attributes: vector [B, D]; attention: float32 [B, P] over the first stream's tokens, or None."""

    vector: jax.Array
    attention: jax.Array | None = None


def there(stream: Stream) -> jax.Array:
    """Whether a row has the modality at all. -> bool [B, 1]."""
    return jnp.any(stream.mask, axis=1, keepdims=True)


def visible(stream: Stream) -> Stream:
    """Zeros in place of what the mask hides, which may be anything, NaN too."""
    zero = jnp.zeros((), stream.tokens.dtype)
    return Stream(jnp.where(stream.mask[..., None], stream.tokens, zero), stream.mask)


def mean(stream: Stream) -> jax.Array:
    """The mean of the tokens that are there, summed in float32; zeros where none is. -> [B, D_m]."""
    tokens = visible(stream).tokens
    count = jnp.maximum(jnp.sum(stream.mask, axis=1, keepdims=True), 1).astype(jnp.float32)
    return (jnp.sum(tokens.astype(jnp.float32), axis=1) / count).astype(tokens.dtype)


def _where(stream: Stream, value: jax.Array, other: float) -> jax.Array:
    """`value` [B, ...] in rows that have the modality, else `other`."""
    rows = jnp.expand_dims(there(stream)[:, 0], range(1, value.ndim))
    return jnp.where(rows, value, jnp.asarray(other, value.dtype))


class _Fusion(nn.Module):
    """What most of them share.

    Attributes:
      features: D, of the vector.
      dtype: of the computation; parameters are float32.
    """

    features: int
    dtype: Any = jnp.float32

    def _dense(self, features: int, name: str, use_bias: bool = True) -> nn.Dense:
        return nn.Dense(features, use_bias, dtype=self.dtype, name=name)

    def _projected(self, streams: Sequence[Stream]) -> list[jax.Array]:
        """Each stream's mean in the common features, zeros where it is missing. -> M x [B, D]."""
        return [
            _where(stream, self._dense(self.features, f"project{i + 1}")(mean(stream)), 0.0)
            for i, stream in enumerate(streams)
        ]

    def _tokens(self, streams: Sequence[Stream]) -> list[Stream]:
        """Each stream's tokens in the common features. -> M streams [B, P, D]."""
        return [
            visible(
                Stream(
                    self._dense(self.features, f"project{i + 1}")(visible(stream).tokens),
                    stream.mask,
                )
            )
            for i, stream in enumerate(streams)
        ]

    def _learned(self, name: str, rows: int) -> Stream:
        """A learned token that every row has. -> [B, 1, D]."""
        token = self.param(name, nn.initializers.normal(0.02), (self.features,), jnp.float32)
        return Stream(repeat(token.astype(self.dtype), "d -> b 1 d", b=rows), jnp.ones((rows, 1), jnp.bool_))


def joined(streams: Sequence[Stream]) -> Stream:
    """All tokens in one row. M streams [B, P_m, D] -> [B, sum P_m, D]."""
    return Stream(*(jnp.concatenate(parts, axis=1) for parts in zip(*streams, strict=True)))


class Concatenation(nn.Module):
    """[x1; x2; ...], the means side by side, without a parameter: D is the sum of all D_m.

    Attributes:
      dtype: of the result.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, streams: Sequence[Stream], *, train: bool) -> Fused:
        del train
        return Fused(jnp.concatenate([mean(stream) for stream in streams], axis=-1).astype(self.dtype))


class Sum(_Fusion):
    """sum_m (W_m x_m + b_m)."""

    @nn.compact
    def __call__(self, streams: Sequence[Stream], *, train: bool) -> Fused:
        del train
        return Fused(sum(self._projected(streams)))


class MultiplicativeGate(_Fusion):
    """sum_m h_m * sigmoid(V_m [h_1; h_2; ...] + c_m), with h_m = W_m x_m + b_m: what one says opens the other.

    The gated unit of Arevalo et al. (2017, GMU, equations 1 to 4) with a gate a modality and no tanh. A missing h_m is zero,
    in the gates too.
    """

    @nn.compact
    def __call__(self, streams: Sequence[Stream], *, train: bool) -> Fused:
        del train
        parts = self._projected(streams)
        beside = jnp.concatenate(parts, axis=-1)
        gates = [nn.sigmoid(self._dense(self.features, f"gate{i + 1}")(beside)) for i in range(len(parts))]
        return Fused(sum(part * gate for part, gate in zip(parts, gates, strict=True)))


class AdditiveGate(_Fusion):
    """sum_m lambda_m (W_m x_m + b_m) with one learned number lambda_m a modality, which begins at 1."""

    @nn.compact
    def __call__(self, streams: Sequence[Stream], *, train: bool) -> Fused:
        del train
        weights = self.param("weights", nn.initializers.ones_init(), (len(streams),), jnp.float32)
        parts = self._projected(streams)
        return Fused(sum(weights[i].astype(self.dtype) * part for i, part in enumerate(parts)))


class Mfb(_Fusion):
    """Multi-modal factorised bilinear pooling (Yu et al., 2017, equations 4 and 5).

    z = sum over each group of k of U_1 x_1 * U_2 x_2 * ..., then sign(z) sqrt(|z|), then unit length. A missing factor is 1.
    The square root, which has no slope at 0, is sqrt(|z| + e) - sqrt(e) with e = 1e-6.

    Attributes:
      rank: k, how many products are summed; dropout: rate on the products before that.
    """

    rank: int = 5
    dropout: float = 0.1

    @nn.compact
    def __call__(self, streams: Sequence[Stream], *, train: bool) -> Fused:
        z = jnp.ones((1, 1), self.dtype)
        for i, stream in enumerate(streams):
            factor = self._dense(self.features * self.rank, f"factor{i + 1}")(mean(stream))
            z = z * _where(stream, factor, 1.0)
        z = nn.Dropout(self.dropout, deterministic=not train)(z)
        z = jnp.sum(rearrange(z, "b (d k) -> b d k", k=self.rank).astype(jnp.float32), axis=-1)
        z = jnp.sign(z) * (jnp.sqrt(jnp.abs(z) + 1e-6) - 1e-3)
        z = z * jax.lax.rsqrt(jnp.maximum(jnp.sum(z * z, axis=-1, keepdims=True), 1e-12))
        return Fused(z.astype(self.dtype))


class Mutan(_Fusion):
    """Multimodal Tucker fusion with slices of low rank (Ben-Younes et al., 2017, equations 5, 8 and 9).

    z = sum_{r <= R} (tanh(W_1 x_1) M_1^r) * (tanh(W_2 x_2) M_2^r) * ... A missing factor is 1.

    Attributes:
      rank: R; hidden: features of each tanh; dropout: rate on these.
    """

    rank: int = 10
    hidden: int = 310
    dropout: float = 0.0

    @nn.compact
    def __call__(self, streams: Sequence[Stream], *, train: bool) -> Fused:
        z = jnp.ones((1, 1), self.dtype)
        for i, stream in enumerate(streams):
            x = jnp.tanh(self._dense(self.hidden, f"project{i + 1}")(mean(stream)))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            z = z * _where(stream, self._dense(self.features * self.rank, f"factor{i + 1}")(x), 1.0)
        return Fused(jnp.sum(rearrange(z, "b (r d) -> b r d", r=self.rank), axis=1))


class Film(_Fusion):
    """The first stream's tokens, scaled and shifted as the others say (Perez et al., 2018, equations 1 and 2 and section 2.2).

    A block: x + relu((1 + gamma) * norm(V relu(W x)) + beta), where gamma and beta are linear in the other streams' means; at the
    end the maximum over the tokens. Of the paper's block the 3x3 convolution is a product token by token here (places meet in
    the tower) and the batch's norm a layer's.

    Attributes:
      blocks: how many.
    """

    blocks: int = 4

    @nn.compact
    def __call__(self, streams: Sequence[Stream], *, train: bool) -> Fused:
        del train
        first, others = streams[0], streams[1:]
        x = nn.relu(self._dense(self.features, "project")(visible(first).tokens))
        said = jnp.concatenate([mean(stream) for stream in others], axis=-1) if others else None
        for i in range(self.blocks):
            y = nn.relu(self._dense(self.features, f"in{i + 1}")(x))
            y = LayerNorm(self.dtype, name=f"norm{i + 1}")(self._dense(self.features, f"out{i + 1}")(y))
            if said is not None:
                # Without a bias, so that nobody who says nothing changes nothing.
                film = self._dense(2 * self.features, f"film{i + 1}", use_bias=False)(said)
                gamma, beta = jnp.split(film[:, None], 2, axis=-1)
                y = (1 + gamma) * y + beta
            x = x + nn.relu(y)
        low = jnp.asarray(jnp.finfo(x.dtype).min, x.dtype)
        highest = jnp.max(jnp.where(first.mask[..., None], x, low), axis=1)
        return Fused(_where(first, highest, 0.0))


class Guide(nn.Module):
    """Attention from one row of tokens to another, beside a shortcut (Vaswani et al., 2017, section 3.2; pre-norm).

    Attributes:
      heads: they divide D; dropout: rate on the branch; dtype: of the computation.
    """

    heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, memory: Stream, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """x: [B, T, D]; memory: [B, P, D] -> x [B, T, D], unchanged where there is no memory; weights float32 [B, T, P], the mean
        over heads, zero there."""
        width = x.shape[-1]

        def dense(name: str) -> nn.Dense:
            return nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)

        query = dense("query")(LayerNorm(self.dtype, name="norm")(x))
        tokens = LayerNorm(self.dtype, name="memory_norm")(memory.tokens)
        scores = attention.dot_scores(query, dense("key")(tokens), self.heads)
        context, weights = attention.weigh(scores, dense("value")(tokens), memory.mask)
        branch = nn.Dropout(self.dropout, deterministic=not train)(dense("out")(context))
        return x + _where(memory, branch, 0.0), _where(memory, weights.mean(axis=2), 0.0)


def _look(scores: jax.Array, stream: Stream) -> tuple[jax.Array, jax.Array]:
    """The mean of the tokens that are there by softmax(scores), and its weights; zeros where there are none.

    scores: [B, P, 1] -> [B, D], float32 [B, P].
    """
    scores = attention.hide(scores[..., 0], stream.mask)
    weights = _where(stream, jax.nn.softmax(scores, axis=-1), 0.0)
    return jnp.einsum("bp,bpd->bd", weights.astype(stream.tokens.dtype), stream.tokens), weights


class _Attentive(_Fusion):
    """Fusions by attention.

    Attributes:
      layers: blocks; heads: they divide D; mlp_ratio: hidden features of an MLP over D; dropout: rate on all branches.
    """

    layers: int = 2
    heads: int = 4
    mlp_ratio: float = 2.0
    dropout: float = 0.0

    @property
    def _fields(self) -> dict[str, Any]:
        mlp = round(self.features * self.mlp_ratio)
        return {"heads": self.heads, "mlp": mlp, "dropout": self.dropout, "dtype": self.dtype}

    def _guided(self, x: Stream, memory: Stream | None, train: bool) -> tuple[Stream, jax.Array | None]:
        """Blocks of self-attention, attention to the memory, and MLP; the last weights [B, T, P]."""
        tokens, weights = x.tokens, None
        for i in range(self.layers):
            guide = Guide(self.heads, self.dropout, self.dtype, name=f"guide{i + 1}") if memory else None

            def look(y: jax.Array, guide: Guide | None = guide) -> jax.Array:
                nonlocal weights
                y, weights = guide(y, memory, train=train)
                return y

            block = EncoderBlock(**self._fields, name=f"block{i + 1}")
            tokens = block(tokens, x.mask[:, None, None], between=look if memory else None, train=train)
        return Stream(tokens, x.mask), weights


class CrossAttention(_Attentive):
    """A learned token and the other streams' tokens see each other, and look at the first stream's.

    The decoder's blocks of Vaswani et al. (2017, section 3.1) in pre-norm; the learned token's state is the vector, and where it
    looked in the last block the attention.
    """

    @nn.compact
    def __call__(self, streams: Sequence[Stream], *, train: bool) -> Fused:
        first, *others = self._tokens(streams)
        asking = joined([self._learned("summary", len(first.tokens)), *others])
        asking, weights = self._guided(asking, first, train)
        return Fused(LayerNorm(self.dtype, name="norm")(asking.tokens[:, 0]), weights[:, 0])


class _Encoder(nn.Module):
    """Self-attention of one stream."""

    layers: int
    fields: Mapping[str, Any]

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool) -> Stream:
        mask = stream.mask[:, None, None]
        tokens = stack(stream.tokens, mask, depth=self.layers, train=train, **self.fields)
        return visible(Stream(tokens, stream.mask))


class CoAttention(_Attentive):
    """Modular co-attention (Yu et al., 2019, MCAN, sections 3 and 4.2 and 4.3: encoder-decoder), in pre-norm.

    The other streams go through self-attention each, the first through blocks of self-attention and attention guided by their
    last states. a_m = softmax over the tokens of MLP(x), x~_m = sum a_m x; the vector is norm(sum_m W_m x~_m), the attention a_1.
    """

    @nn.compact
    def __call__(self, streams: Sequence[Stream], *, train: bool) -> Fused:
        first, *others = self._tokens(streams)
        others = [
            _Encoder(self.layers, self._fields, name=f"encoder{i + 2}")(stream, train=train)
            for i, stream in enumerate(others)
        ]
        memory = joined(others) if others else None
        first, _ = self._guided(first, memory, train)
        total, weights = 0.0, None
        for i, stream in enumerate([first, *others]):
            reduced, looked = self._reduce(stream, i + 1, train)
            weights = looked if weights is None else weights
            total = total + self._dense(self.features, f"merge{i + 1}", use_bias=False)(reduced)
        return Fused(LayerNorm(self.dtype, name="norm")(total), weights)

    def _reduce(self, stream: Stream, number: int, train: bool) -> tuple[jax.Array, jax.Array]:
        """The weighted mean over tokens, and the weights. -> [B, D], float32 [B, P]; zeros where the stream is missing."""
        tokens = LayerNorm(self.dtype, name=f"norm{number}")(stream.tokens)
        hidden = nn.relu(self._dense(self.features, f"reduce{number}_in")(tokens))
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        return _look(self._dense(1, f"reduce{number}_out")(hidden), Stream(tokens, stream.mask))


class Merged(_Attentive):
    """One Transformer over a learned token and all streams' tokens (Kim et al., 2021, ViLT, section 3.1, equations 1 to 6).

    Each stream has a projection of its own, whose bias tells its kind; the vector is the learned token's last state.
    """

    @nn.compact
    def __call__(self, streams: Sequence[Stream], *, train: bool) -> Fused:
        x = joined([self._learned("summary", len(streams[0].tokens)), *self._tokens(streams)])
        mask = x.mask[:, None, None]
        tokens = stack(x.tokens, mask, depth=self.layers, train=train, **self._fields)
        return Fused(LayerNorm(self.dtype, name="norm")(tokens[:, 0]))


class Mac(_Fusion):
    """Memory, attention and composition (Hudson & Manning, 2018, arXiv:1803.03067, section 3.2, equations c1 to w1).

    Step by step the others' words are looked at (control c), then the first stream's tokens k (read), and what was found goes
    into the memory m, which begins as learned vectors do:

        c_i = sum softmax(w (W [c_{i-1}, q_i] * words)) words,     q_i = W_i q, q of the words' mean
        r_i = sum softmax(w elu(c_i * elu(W [M m_{i-1} * K k, k]))) k
        m_i = W [r_i, m_{i-1}]

    The products let what was found before, what is asked and what is there multiply, which attention alone has to learn for
    each combination. The vector is [q, m], 2 D; the attention is the last step's. A learned token stands beside the words, so
    that there is one where no others are.

    Attributes:
      steps: how many, with the same parameters but W_i.
    """

    steps: int = 6

    @nn.compact
    def __call__(self, streams: Sequence[Stream], *, train: bool) -> Fused:
        del train
        seen, *others = self._tokens(streams)
        words = joined([self._learned("word", len(seen.tokens)), *others])
        control, memory = (
            self._learned(name, len(seen.tokens)).tokens[:, 0] for name in ("control0", "memory0")
        )
        question = jnp.tanh(self._dense(self.features, "question")(mean(words)))
        known = self._dense(self.features, "known")(seen.tokens)
        names = ("control", "memory", "relate", "write")
        ask, recall, relate, write = (self._dense(self.features, name) for name in names)
        word_score, place_score = (self._dense(1, name) for name in ("word_score", "place_score"))
        for i in range(self.steps):
            own = self._dense(self.features, f"question{i + 1}")(question)
            own = ask(jnp.concatenate([control, own], axis=-1))
            control, _ = _look(word_score(own[:, None] * words.tokens), words)
            met = jnp.concatenate([recall(memory)[:, None] * known, seen.tokens], axis=-1)
            met = nn.elu(control[:, None] * nn.elu(relate(met)))
            found, weights = _look(place_score(met), seen)
            memory = write(jnp.concatenate([found, memory], axis=-1))
        return Fused(jnp.concatenate([question, memory], axis=-1), weights)


FUSIONS = {
    "concatenation": Concatenation,
    "sum": Sum,
    "multiplicative_gate": MultiplicativeGate,
    "additive_gate": AdditiveGate,
    "mfb": Mfb,
    "mutan": Mutan,
    "film": Film,
    "cross_attention": CrossAttention,
    "co_attention": CoAttention,
    "merged": Merged,
    "mac": Mac,
}
LOOKS = (CrossAttention, CoAttention, Mac)  # those that say where


def build(spec: Mapping[str, Any], what: str, **more: Any) -> nn.Module:
    """The fusion that a config's {"name": ..., fields} describes: fusion(streams, train=...) -> Fused.

    Args:
      spec: a name of FUSIONS, and its fields.
      what: the place in the config, for messages.
      more: dtype.

    Raises:
      ValueError: unknown name or field; the message names the nearest one.
    """
    spec = dict(spec)
    kind = registry.choose(FUSIONS, spec.pop("name", ""), f"fusion in {what}")
    return registry.call(kind, spec, what, **more)
