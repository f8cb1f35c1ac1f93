"""The attention captioner: a tower of images or videos, and a decoder that looks at its positions while it writes.

Show, Attend and Tell (Xu et al., 2015) with soft attention, and its Transformer successor. A batch holds B images and C
captions an
image; a decoder works on N = B x C rows, row n belonging to image n // C. The image's part (keys, values) has B rows and
is never repeated: not for the captions, not for beams.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from mmgen_jax.core import registry
from mmgen_jax.nn import attention, fusion, pixels, rnn
from mmgen_jax.nn.norm import LayerNorm
from mmgen_jax.nn.transformer import DecoderBlock

Memory = dict[str, jax.Array]
Carry = dict[str, jax.Array]

ATTENTIONS = ("additive", "dot")
GATES = ("none", "scalar", "vector")

kernel_init = nn.initializers.lecun_normal()
zeros = nn.initializers.zeros_init()
embed_init = nn.initializers.normal(0.1)


def _check_heads(heads: int, what: str, features: int) -> None:
    if features % heads:
        raise ValueError(f"decoder.heads={heads} does not divide {what}={features}.")


def waves(rng: jax.Array, shape: tuple[int, int], part: int) -> jax.Array:
    """First values of a table of places: sines and cosines, from a quarter of a wave over the length to one every two places.

    A row and its neighbour then start out alike, and "left of" is a matter of a weighted sum, which vectors drawn at random
    would have to learn place by place (Vaswani et al., 2017, section 3.5, in two dimensions).

    shape: (length, D); `part` 0 fills the first half of the features, 1 the second; the other stays zero. -> float32 [length, D].
    """
    del rng
    length, features = shape
    half = features // 2
    place = (jnp.arange(length, dtype=jnp.float32) + 0.5) / length
    half_waves = 0.5 * jnp.float32(2 * length) ** jnp.linspace(0.0, 1.0, half // 2, dtype=jnp.float32)
    angle = jnp.pi * place[:, None] * half_waves[None, :]
    table = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)
    return jnp.zeros(shape).at[:, part * half : part * half + table.shape[1]].set(table)


class RnnDecoder(nn.Module):
    """LSTM or GRU that attends before each word (Xu et al., 2015, section 3.1).

    Attributes:
      vocab_size: V.
      features: F, size of the hidden state.
      embed_features: E, size of a word's vector.
      attention_features: A, over all heads.
      cell: "lstm" or "gru".
      attention: "additive" (Bahdanau) or "dot" (scaled).
      heads: more than one attend over slices of a projection of the image's features, and can look at two things at once.
      word_query: the word just written asks too, besides the hidden state before it. The paper's query has not seen that
        word, and so cannot look for the shape of what was just called red.
      gate: f_beta on the context: "none", "scalar" (the paper, section 4.2.1) or "vector", one a feature.
      deep_output: logits from word, hidden state and context (Pascanu et al., 2014; the paper's eq. 7), else
        from the hidden state alone.
      dropout: on the words' vectors and before the vocabulary layer.
      recompute: compute the scores' hidden layer again in the backward pass instead of keeping it for each word:
        [T, N, P, A] numbers less.
      dtype: of the computation; parameters and softmax are float32.
    """

    vocab_size: int
    features: int = 512
    embed_features: int = 512
    attention_features: int = 512
    cell: str = "lstm"
    attention: str = "additive"
    heads: int = 1
    word_query: bool = False
    gate: str = "scalar"
    deep_output: bool = True
    dropout: float = 0.0
    recompute: bool = True
    dtype: Any = jnp.float32

    def _weights(self, image_features: int) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """All parameters in the computation's type: matrices, and the small ones that every word reads."""

        def get(name, shape, init=kernel_init):
            return self.param(name, init, shape, jnp.float32).astype(self.dtype)

        f, e, a, d = self.features, self.embed_features, self.attention_features, image_features
        g = rnn.GATES[self.cell] * f
        beta = {"none": 0, "scalar": 1, "vector": d}[self.gate]
        w = {
            "embed": get("embed", (self.vocab_size, e), embed_init),
            "value_kernel": get("value_kernel", (d, d)) if self.heads > 1 else None,
            "start_kernel": get("start_kernel", (d, 2 * f if self.cell == "lstm" else f)),
            "start_bias": get("start_bias", (2 * f if self.cell == "lstm" else f,), zeros),
            "key_kernel": get("key_kernel", (d, a)),
            "context_kernel": get("context_kernel", (d, g)),
            "gates_bias": get("gates_bias", (g,), rnn.gates_bias(self.cell)),
            "out_kernel": get("out_kernel", (e if self.deep_output else f, self.vocab_size)),
            "out_bias": get("out_bias", (self.vocab_size,), zeros),
            # One product of a word gives its shares of gates and query; one of the hidden state query, gates and f_beta.
            "word_kernel": jnp.concatenate(
                [
                    get("word_kernel", (e, g)),
                    get("word_query_kernel", (e, a)) if self.word_query else jnp.zeros((e, 0), self.dtype),
                ],
                axis=1,
            ),
            "hidden_kernel": jnp.concatenate(
                [
                    get("query_kernel", (f, a)),
                    get("recurrent_kernel", (f, g), nn.initializers.orthogonal()),
                    get("gate_kernel", (f, beta)) if beta else jnp.zeros((f, 0), self.dtype),
                ],
                axis=1,
            ),
        }
        if self.deep_output:
            w["deep_hidden_kernel"] = get("deep_hidden_kernel", (f, e))
            w["deep_context_kernel"] = get("deep_context_kernel", (d, e))
        # The keys' bias stands for the query's too; a bias on the scores would leave the softmax as it is.
        vectors = {"key_bias": get("key_bias", (a,), zeros)}
        if self.attention == "additive":
            vectors["v"] = get("v", (self.heads, a // self.heads))
        if beta:
            vectors["gate_bias"] = get("gate_bias", (beta,), zeros)
        if self.cell == "gru":
            vectors["recurrent_bias"] = get("recurrent_bias", (g,), zeros)
        return w, vectors

    def setup(self):
        for value, options, what in (
            (self.cell, tuple(rnn.GATES), "cell"),
            (self.attention, ATTENTIONS, "attention"),
            (self.gate, GATES, "gate"),
        ):
            if value not in options:
                raise ValueError(f'decoder.{what} is "{value}"; it is one of: {", ".join(options)}.')
        _check_heads(self.heads, "attention_features", self.attention_features)
        self.drop = nn.Dropout(self.dropout)

    @nn.compact
    def prepare(self, image: jax.Array, mask: jax.Array | None = None) -> Memory:
        """The image's part, once an image. image: [B, P, D], or tokens of anything else that is seen or read; mask: bool [B, P],
        false at positions that nobody looks at -> values [B, P, D], keys [B, P, A], and weights."""
        _check_heads(self.heads, "the tower's features", image.shape[-1])
        w, vectors = self._weights(image.shape[-1])
        values = image.astype(self.dtype)
        keys = values @ w["key_kernel"] + vectors.pop("key_bias")[None, None, :]
        mean = values.mean(axis=1) if mask is None else fusion.mean(fusion.Stream(values, mask))
        start = jnp.tanh(mean @ w["start_kernel"] + w["start_bias"][None, :])
        if self.heads > 1:
            values = values @ w["value_kernel"]
        # The weights travel with the memory: cast and joined once, not once a word.
        memory = {"values": values, "keys": keys, "start": start, "weights": w, **vectors}
        return memory if mask is None else {**memory, "mask": mask}

    def start(self, memory: Memory, rows: int, max_len: int) -> Carry:
        """State before the first word from the mean feature (the paper, section 3.1.2). -> leaves [N, F]."""
        del max_len
        start = jnp.repeat(memory["start"], rows // len(memory["start"]), axis=0)
        names = ("hidden", "cell") if self.cell == "lstm" else ("hidden",)
        return dict(zip(names, jnp.split(start, len(names), axis=-1), strict=True))

    def _word(self, memory: Memory, word: jax.Array, carry: Carry) -> tuple[Carry, jax.Array, jax.Array]:
        """One word, two matrix products: the hidden state's and the context's.

        word: [N, G + A or G], the word's share of gates and query -> carry, context [N, D], weights [B, C, H, P].
        """
        w, images, hidden = memory["weights"], len(memory["values"]), carry["hidden"]
        a, g = self.attention_features, rnn.GATES[self.cell] * self.features
        joined = hidden @ w["hidden_kernel"]
        query, recurrent, beta = joined[:, :a], joined[:, a : a + g], joined[:, a + g :]
        if self.word_query:
            query = query + word[:, g:]
        query = rearrange(query, "(b c) a -> b c a", b=images)
        if self.attention == "additive":
            scores = attention.additive_scores
            scores = (jax.checkpoint(scores) if self.recompute else scores)(
                query, memory["keys"], memory["v"]
            )
        else:
            scores = attention.dot_scores(query, memory["keys"], self.heads)
        context, weights = attention.weigh(scores, memory["values"], memory.get("mask"))
        context = rearrange(context, "b c d -> (b c) d")
        if self.gate != "none":
            context = context * jax.nn.sigmoid(beta + memory["gate_bias"][None, :])
        inputs = word[:, :g] + context @ w["context_kernel"]
        if self.cell == "lstm":
            hidden, cell = rnn.lstm(inputs + recurrent, carry["cell"])
            return {"hidden": hidden, "cell": cell}, context, weights
        hidden = rnn.gru(inputs, recurrent + memory["recurrent_bias"][None, :], hidden)
        return {"hidden": hidden}, context, weights

    def _embed(self, w: dict, tokens: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Words' vectors [..., E] and their shares of gates and query [..., G + A or G], for all words at once."""
        words = self.drop(w["embed"][tokens], deterministic=not train)
        shares = words @ w["word_kernel"]
        bias = jnp.pad(w["gates_bias"], (0, shares.shape[-1] - len(w["gates_bias"])))
        return words, shares + jnp.expand_dims(bias, tuple(range(words.ndim - 1)))

    def _logits(self, w: dict, words, hidden, context, train: bool) -> jax.Array:
        if self.deep_output:
            hidden = jnp.tanh(words + hidden @ w["deep_hidden_kernel"] + context @ w["deep_context_kernel"])
        hidden = self.drop(hidden, deterministic=not train)
        bias = jnp.expand_dims(w["out_bias"], tuple(range(hidden.ndim - 1)))
        return (hidden @ w["out_kernel"] + bias).astype(jnp.float32)

    def teacher_force(self, memory: Memory, tokens: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Logits after each word of given captions.

        tokens: int32 [N, T] -> logits float32 [N, T, V], weights float32 [N, T, H, P]. The vocabulary layer runs once, after the
        scan, which keeps hidden states and contexts only.
        """
        w = memory["weights"]
        words, shares = self._embed(w, rearrange(tokens, "n t -> t n"), train)

        def body(carry, share):
            carry, context, weights = self._word(memory, share, carry)
            return carry, (carry["hidden"], context, weights)

        carry = self.start(memory, len(tokens), tokens.shape[1])
        _, (hidden, context, weights) = jax.lax.scan(body, carry, shares)
        # Turned before the vocabulary layer: a turned copy of the logits would be the step's largest array.
        words, hidden, context = (rearrange(x, "t n d -> n t d") for x in (words, hidden, context))
        logits = self._logits(w, words, hidden, context, train)
        return logits, rearrange(weights, "t b c h p -> (b c) t h p")

    def step(self, memory: Memory, tokens: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
        """The decoding contract. tokens: int32 [N] -> logits [N, V], carry."""
        w = memory["weights"]
        words, shares = self._embed(w, tokens, train=False)
        carry, context, _ = self._word(memory, shares, carry)
        return self._logits(w, words, carry["hidden"], context, train=False), carry


class TransformerDecoder(nn.Module):
    """Pre-norm Transformer decoder with cross-attention and a key/value cache (Vaswani et al., 2017; Xiong et al., 2020).

    Attributes:
      vocab_size: V.
      features: F; layers, heads, mlp_ratio: the usual; max_len: the most words, of the position embedding.
      dropout: on the words' vectors and on each residual branch.
      dtype: of the computation; parameters and softmax are float32.
    """

    vocab_size: int
    features: int = 512
    layers: int = 6
    heads: int = 8
    mlp_ratio: int = 4
    max_len: int = 64
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def setup(self):
        _check_heads(self.heads, "features", self.features)
        self.embed = self.param("embed", nn.initializers.normal(0.02), (self.vocab_size, self.features))
        self.position = self.param("position", nn.initializers.normal(0.02), (self.max_len, self.features))
        self.blocks = [
            DecoderBlock(self.features, self.heads, self.mlp_ratio, self.dropout, self.dtype)
            for _ in range(self.layers)
        ]
        self.norm = LayerNorm(self.dtype)
        self.image_norm = LayerNorm(self.dtype)
        self.out = nn.Dense(self.vocab_size, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def prepare(self, image: jax.Array, mask: jax.Array | None = None) -> Memory:
        """Cross-attention's keys and values of all layers, once an image. image: [B, P, D]; mask: bool [B, P], false at positions
        that nobody looks at -> leaves [B, P, heads, F / heads]."""
        image = self.image_norm(image)
        return {"layers": [block.image(image, mask) for block in self.blocks]}

    def start(self, memory: Memory, rows: int, max_len: int) -> Carry:
        """An empty cache for `max_len` words. -> leaves [N, max_len, heads, F / heads] and position [N]."""
        del memory
        if max_len > self.max_len:
            raise ValueError(
                f"{max_len} words, but decoder.max_len is {self.max_len}; train with a larger one."
            )
        shape = (rows, max_len, self.heads, self.features // self.heads)
        cache = [
            {name: jnp.zeros(shape, self.dtype) for name in ("key", "value")} for _ in range(self.layers)
        ]
        return {"position": jnp.zeros(rows, jnp.int32), "cache": cache}

    def teacher_force(self, memory: Memory, tokens: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Logits after each word. tokens: int32 [N, T] -> logits float32 [N, T, V], weights of the last layer [N, T, H, P]."""
        length = tokens.shape[1]
        if length > self.max_len:
            raise ValueError(f"Captions of {length} tokens, but decoder.max_len is {self.max_len}.")
        x = (self.embed[tokens] + self.position[None, :length]).astype(self.dtype)
        x = self.drop(x, deterministic=not train)
        mask = jnp.tril(jnp.ones((length, length), bool))[None]
        for block, image in zip(self.blocks, memory["layers"], strict=True):
            x, weights, _ = block(x, image, mask, None, train)
        return self.out(self.norm(x)).astype(jnp.float32), rearrange(weights, "n h t p -> n t h p")

    def step(self, memory: Memory, tokens: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
        """The decoding contract. tokens: int32 [N] -> logits [N, V], carry."""
        position = carry["position"]
        x = (self.embed[tokens] + self.position[position]).astype(self.dtype)[:, None]
        length = carry["cache"][0]["key"].shape[1]
        mask = (jnp.arange(length)[None, :] <= position[:, None])[:, None]
        caches = []
        for block, image, cache in zip(self.blocks, memory["layers"], carry["cache"], strict=True):
            x, _, cache = block(x, image, mask, {**cache, "position": position}, False)
            caches.append(cache)
        logits = self.out(self.norm(x))[:, 0].astype(jnp.float32)
        return logits, {"position": position + 1, "cache": caches}


DECODERS = {"rnn": RnnDecoder, "transformer": TransformerDecoder}


def make_decoder(spec: Mapping[str, Any], **more: Any) -> nn.Module:
    """The decoder that a config's {"name": ..., fields} describes.

    Args:
      spec: a name of DECODERS, and its fields.
      more: vocab_size, dtype.

    Raises:
      ValueError: unknown name or field; the message names the nearest one.
    """
    spec = dict(spec)
    kind = registry.choose(DECODERS, spec.pop("name", ""), "decoder")
    return registry.call(kind, spec, "task.model.decoder", **more)


class Writer(nn.Module):
    """What writes about something: a subclass has `encode`, and a field `decoder` that looks at what this returns."""

    def encode(self, seen: Any, train: bool = False) -> Memory:
        """The part of a text that is computed once for all of them. seen: arrays of B rows."""
        raise NotImplementedError

    def placed(self, weights: jax.Array, seen: Any) -> jax.Array:
        """The decoder's weights where they belong in what is seen: [B, ..., P], of a video's frames [B, ..., F, S]."""
        raise NotImplementedError

    def __call__(self, seen: Any, tokens: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Teacher forcing. tokens: int32 [B, C, T] -> logits [B, C, T, V], weights [B, C, T, H, P]."""
        return self.write(self.encode(seen, train), tokens, train)

    def write(self, memory: Memory, tokens: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """`teacher_force` of C texts for each row of the memory, in the shapes of `__call__`."""
        logits, weights = self.teacher_force(memory, rearrange(tokens, "b c t -> (b c) t"), train)
        return tuple(rearrange(x, "(b c) ... -> b c ...", b=len(tokens)) for x in (logits, weights))

    def teacher_force(self, memory: Memory, tokens: jax.Array, train: bool = False):
        """tokens: int32 [N, T] -> logits [N, T, V], weights [N, T, H, P]."""
        return self.decoder.teacher_force(memory, tokens, train)

    def start(self, memory: Memory, rows: int, max_len: int) -> Carry:
        """The carry before the first of at most `max_len` words, for `rows` = B x K rows."""
        return self.decoder.start(memory, rows, max_len)

    def step(self, memory: Memory, tokens: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
        """The decoding contract. tokens: int32 [N]; carry: leaves [N, ...] -> logits [N, V], carry."""
        return self.decoder.step(memory, tokens, carry)


class Captioner(Writer):
    """A tower and a decoder.

    Attributes:
      encoder: a tower of images, float [B, H, W, 3] -> grid [B, H', W', D], or of videos, [B, F, H, W, 3] -> tokens [B, P, D]. A
        video's tokens stay as they are: `grid` and `position` are of images.
      decoder: `RnnDecoder` or `TransformerDecoder`.
      grid: the tower's grid is resampled to grid x grid positions; 0 leaves it as it is.
      position: add a learned vector a row and one a column, so that the decoder can tell where it looks.
      dropout: on the image's features.
      pixels: the statistics that normalise an image, see nn/pixels.py.
      dtype: of the computation.
    """

    encoder: nn.Module
    decoder: nn.Module
    grid: int = 0
    position: bool = True
    dropout: float = 0.0
    pixels: str = "imagenet"
    dtype: Any = jnp.float32

    @nn.compact
    def features(self, image: jax.Array, train: bool) -> jax.Array:
        """image: uint8 [B, H, W, 3], or a video [B, F, H, W, 3] -> [B, P, D]."""
        x = self.encoder(pixels.normalise(image, self.pixels, self.dtype), train=train)
        if image.ndim == 5 and x.ndim == 3:
            return nn.Dropout(self.dropout)(x, deterministic=not train)
        if x.ndim != 4:
            raise ValueError(
                f'A captioner looks at a grid, of a video at tokens, not at {x.shape}: set encoder.pool to "none".'
            )
        if self.grid and x.shape[1:3] != (self.grid, self.grid):
            x = jax.image.resize(x, (len(x), self.grid, self.grid, x.shape[-1]), "linear")
        if self.position:
            _, height, width, d = x.shape
            rows = self.param("rows", waves, (height, d), 0)
            columns = self.param("columns", waves, (width, d), 1)
            x = x + (rows[:, None] + columns[None, :])[None].astype(self.dtype)
        x = rearrange(x, "b h w d -> b (h w) d")
        return nn.Dropout(self.dropout)(x, deterministic=not train)

    def encode(self, image: jax.Array, train: bool = False) -> Memory:
        """The image's part of a caption, computed once. image: uint8 [B, H, W, 3]."""
        return self.decoder.prepare(self.features(image, train))

    def placed(self, weights: jax.Array, image: jax.Array) -> jax.Array:
        """See `Writer.placed`."""
        return self.encoder.over_frames(weights, image.shape[1]) if image.ndim == 5 else weights
