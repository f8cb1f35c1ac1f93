"""The decoders against plain numpy in float64, and word by word against themselves; types; memory; errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.models.captioner import Captioner, RnnDecoder, TransformerDecoder
from mmgen_jax.nn import convnet
from mmgen_jax.nn.pixels import STATISTICS

B, C, T, V = 2, 3, 5, 11
P, D = 6, 8
F, E, A = 10, 7, 4

rng = np.random.default_rng(0)
IMAGE = rng.normal(size=(B, P, D)).astype(np.float32)
TOKENS = rng.integers(1, V, (B * C, T)).astype(np.int32)

# Every pair of values of two fields is in at least one line.
DECODERS = [
    {
        "cell": "lstm",
        "attention": "additive",
        "heads": 1,
        "gate": "scalar",
        "deep_output": True,
        "word_query": False,
    },
    {
        "cell": "gru",
        "attention": "dot",
        "heads": 2,
        "gate": "scalar",
        "deep_output": False,
        "word_query": True,
    },
    {
        "cell": "lstm",
        "attention": "dot",
        "heads": 1,
        "gate": "vector",
        "deep_output": False,
        "word_query": True,
    },
    {
        "cell": "gru",
        "attention": "additive",
        "heads": 2,
        "gate": "vector",
        "deep_output": True,
        "word_query": False,
    },
    {
        "cell": "lstm",
        "attention": "additive",
        "heads": 2,
        "gate": "none",
        "deep_output": False,
        "word_query": True,
    },
    {"cell": "gru", "attention": "dot", "heads": 1, "gate": "none", "deep_output": True, "word_query": False},
]


def name_of(fields):
    return "-".join(map(str, fields.values()))


def rnn(**fields):
    return RnnDecoder(
        **{"vocab_size": V, "features": F, "embed_features": E, "attention_features": A, **fields}
    )


def transformer(**fields):
    return TransformerDecoder(
        **{"vocab_size": V, "features": 8, "layers": 2, "heads": 2, "mlp_ratio": 2, **fields}
    )


def forward(decoder, image, tokens, train=False):
    return decoder.teacher_force(decoder.prepare(image), tokens, train)


@functools.partial(jax.jit, static_argnums=0)
def apply(decoder, variables, image, tokens):
    return decoder.apply(variables, image, tokens, method=forward)


@functools.cache
def parameters(decoder):
    """Random parameters, biases too, so that none of them can be forgotten unnoticed."""
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), IMAGE, TOKENS, method=forward))
    noise = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.float32(0.5 * noise.normal(size=x.shape)), shapes)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(p, image, tokens, *, cell, attention, heads, gate, deep_output, word_query):
    """One caption of one image, as the paper's equations stand. -> logits [T, V], weights [T, heads, P]."""
    keys = image @ p["key_kernel"] + p["key_bias"]
    hidden = np.tanh(image.mean(axis=0) @ p["start_kernel"] + p["start_bias"])
    hidden, memory = np.split(hidden, 2) if cell == "lstm" else (hidden, None)
    values = image @ p["value_kernel"] if heads > 1 else image
    all_logits, all_weights = [], []
    for token in tokens:
        word, query, contexts, maps = p["embed"][token], hidden @ p["query_kernel"], [], []
        if word_query:
            query = query + word @ p["word_query_kernel"]
        for h in range(heads):
            part = slice(h * A // heads, (h + 1) * A // heads)
            if attention == "additive":
                scores = np.array([p["v"][h] @ np.tanh(query[part] + key[part]) for key in keys])
            else:
                scores = keys[:, part] @ query[part] / np.sqrt(A / heads)
            weights = np.exp(scores - scores.max())
            maps.append(weights / weights.sum())
            contexts.append(maps[-1] @ values[:, h * D // heads : (h + 1) * D // heads])
        context = np.concatenate(contexts)
        if gate != "none":
            context = context * sigmoid(hidden @ p["gate_kernel"] + p["gate_bias"])
        inputs = word @ p["word_kernel"] + context @ p["context_kernel"] + p["gates_bias"]
        recurrent = hidden @ p["recurrent_kernel"]
        if cell == "lstm":
            i, f, g, o = np.split(inputs + recurrent, 4)
            memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
            hidden = sigmoid(o) * np.tanh(memory)
        else:
            (ri, zi, ni), (rr, zr, nr) = np.split(inputs, 3), np.split(recurrent + p["recurrent_bias"], 3)
            z = sigmoid(zi + zr)
            hidden = (1 - z) * np.tanh(ni + sigmoid(ri + rr) * nr) + z * hidden
        out = hidden
        if deep_output:
            out = np.tanh(word + hidden @ p["deep_hidden_kernel"] + context @ p["deep_context_kernel"])
        all_logits.append(out @ p["out_kernel"] + p["out_bias"])
        all_weights.append(np.stack(maps))
    return np.stack(all_logits), np.stack(all_weights)


@pytest.mark.parametrize("fields", DECODERS, ids=name_of)
def test_equals_numpy(fields):
    decoder = rnn(**fields)
    variables = parameters(decoder)
    logits, weights = apply(decoder, variables, IMAGE, TOKENS)
    params = jax.tree.map(np.float64, variables["params"])
    for n in range(B * C):
        expected = reference(params, np.float64(IMAGE[n // C]), TOKENS[n], **fields)
        np.testing.assert_allclose(logits[n], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(weights[n], expected[1], rtol=1e-5, atol=1e-5)


def stepped(decoder, variables, max_len=T):
    """Logits [N, T, V] word by word, through the decoding contract."""

    @jax.jit
    def step(tokens, carry):
        return decoder.apply(variables, memory, tokens, carry, method="step")

    memory = jax.jit(lambda: decoder.apply(variables, IMAGE, method="prepare"))()
    carry = decoder.apply(variables, memory, B * C, max_len, method="start")
    logits = []
    for t in range(T):
        one, carry = step(TOKENS[:, t], carry)
        logits.append(one)
    assert step._cache_size() == 1
    return np.stack(logits, axis=1)


@pytest.mark.parametrize(
    "decoder", [*(rnn(**fields) for fields in DECODERS), transformer()],
    ids=[*map(name_of, DECODERS), "transformer"],
)  # fmt: skip
def test_scan_equals_the_unrolled_loop(decoder):
    variables = parameters(decoder)
    expected = apply(decoder, variables, IMAGE, TOKENS)[0]
    # A cache longer than the caption changes nothing.
    np.testing.assert_allclose(stepped(decoder, variables, T + 3), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decoder", [rnn(heads=2), rnn(attention="dot"), transformer()])
def test_captions_of_one_image_equal_separate_calls(decoder):
    variables = parameters(decoder)
    logits, weights = apply(decoder, variables, IMAGE, TOKENS)
    assert weights.shape[0] == B * C
    for c in range(C):
        alone = apply(decoder, variables, IMAGE, TOKENS[c::C])
        np.testing.assert_allclose(logits[c::C], alone[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(weights[c::C], alone[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decoder", [rnn(), transformer()])
def test_a_word_changes_nothing_before_it(decoder):
    variables = parameters(decoder)
    before = apply(decoder, variables, IMAGE, TOKENS)
    padded = TOKENS.copy()
    padded[:, 3:] = 0
    after = apply(decoder, variables, IMAGE, padded)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one[:, :3], other[:, :3])
    assert not np.allclose(before[0][:, 3:], after[0][:, 3:])


def test_heads_look_at_different_places():
    weights = apply(rnn(heads=2), parameters(rnn(heads=2)), IMAGE, TOKENS)[1]
    assert weights.shape == (B * C, T, 2, P)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-5)
    assert not np.allclose(weights[:, :, 0], weights[:, :, 1], atol=1e-2)


def objective(decoder, variables, image, tokens):
    logits, weights = decoder.apply(variables, image, tokens, method=forward)
    return jnp.sum(jnp.sin(logits)) + jnp.sum(weights**2)


def test_recomputing_changes_no_gradient():
    grads = [
        jax.jit(jax.grad(functools.partial(objective, rnn(recompute=recompute))))(
            parameters(rnn()), IMAGE, TOKENS
        )
        for recompute in (True, False)
    ]
    for one, other in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fields", DECODERS[:2], ids=name_of)
def test_gradient_against_finite_differences(fields):
    """Along random directions of all parameters and of the image, by the float64 reference."""
    decoder = rnn(**fields)
    variables = parameters(decoder)
    grads = jax.jit(jax.grad(functools.partial(objective, decoder), argnums=(0, 1)))(variables, IMAGE, TOKENS)

    def value(variables, image):
        total = 0.0
        for n in range(B * C):
            logits, weights = reference(variables["params"], image[n // C], TOKENS[n], **fields)
            total += np.sum(np.sin(logits)) + np.sum(weights**2)
        return total

    point, directions = jax.tree.map(np.float64, (variables, IMAGE)), np.random.default_rng(2)
    for _ in range(3):
        way = jax.tree.map(lambda x: directions.normal(size=x.shape), point)
        slope = sum(
            np.sum(np.float64(g) * w) for g, w in zip(*map(jax.tree.leaves, (grads, way)), strict=True)
        )
        ahead, behind = (value(*jax.tree.map(lambda x, w: x + s * w, point, way)) for s in (1e-5, -1e-5))
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "decoder", [*(rnn(**fields) for fields in DECODERS[:2]), transformer()],
    ids=[*map(name_of, DECODERS[:2]), "transformer"],
)  # fmt: skip
def test_hidden_positions_are_as_if_they_were_not_there(decoder):
    """Whatever they hold, word by word too."""
    variables = parameters(decoder)
    mask = np.arange(P)[None] < np.array([[P - 2], [P - 2]])
    image = np.where(mask[..., None], IMAGE, 9.0).astype(np.float32)

    @jax.jit
    def run(variables, image, mask):
        memory = decoder.apply(variables, image, mask, method="prepare")
        logits, weights = decoder.apply(variables, memory, TOKENS, False, method="teacher_force")
        carry = decoder.apply(variables, memory, B * C, T, method="start")
        return logits, weights, decoder.apply(variables, memory, TOKENS[:, 0], carry, method="step")[0]

    logits, weights, first = run(variables, image, mask)
    expected, _ = apply(decoder, variables, IMAGE[:, : P - 2], TOKENS)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first, logits[:, 0], rtol=1e-4, atol=1e-5)
    assert weights.shape[-1] == P and not np.asarray(weights)[..., P - 2 :].any()


TOWERS = {
    "convnet": {"widths": (8, 8)},
    "resnet": {"stages": (1, 1), "block": "basic", "width": 8, "stem": "small"},
    "vit": {"width": 8, "depth": 1, "heads": 2, "patch": 8, "image_size": 16},
}


def whole(tower, decoder, dtype, **fields):
    encoder = registry.lookup("nn", tower).make(dtype=dtype, axis_name=None, **TOWERS[tower])
    return Captioner(encoder, decoder, dtype=dtype, **fields)


@pytest.mark.parametrize(
    "decoder", [*(functools.partial(rnn, **fields) for fields in DECODERS), transformer],
    ids=[*map(name_of, DECODERS), "transformer"],
)  # fmt: skip
def test_bfloat16_is_near_float32(decoder):
    variables = parameters(decoder())
    expected = apply(decoder(), variables, IMAGE, TOKENS)
    got = apply(decoder(dtype=jnp.bfloat16), variables, jnp.bfloat16(IMAGE), TOKENS)
    assert {x.dtype for x in got} == {jnp.dtype(jnp.float32)}
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0.05, atol=0.05 * np.abs(other).max())


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("decoder", [rnn, transformer])
def test_bfloat16_under_strict_types(tower, decoder):
    """The whole model trains and decodes; parameters, gradients, logits are float32; carries keep types."""
    pixels, tokens = (
        jax.ShapeDtypeStruct((B, 16, 16, 3), jnp.uint8),
        jax.ShapeDtypeStruct((B, C, T), jnp.int32),
    )
    model = whole(tower, decoder(dtype=jnp.bfloat16, dropout=0.1), jnp.bfloat16, dropout=0.1, grid=3)
    init = jax.eval_shape(model.init, jax.random.key(0), pixels, tokens)

    def loss(variables, pixels, tokens):
        rngs = {"dropout": jax.random.key(1)}
        (logits, weights), _ = model.apply(
            variables, pixels, tokens, True, mutable=["batch_stats"], rngs=rngs
        )
        assert (logits.dtype, weights.dtype) == (jnp.float32, jnp.float32)
        return jnp.sum(logits**2)

    def step(variables, pixels, tokens):
        memory = model.apply(variables, pixels, method="encode")
        carry = model.apply(variables, memory, B * C, T, method="start")
        logits, after = model.apply(variables, memory, tokens.reshape(-1, T)[:, 0], carry, method="step")
        assert jax.tree.map(lambda x: (x.shape, x.dtype), carry) == jax.tree.map(
            lambda x: (x.shape, x.dtype), after
        )
        return logits

    gradient = jax.eval_shape(jax.grad(loss), init, pixels, tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves((init, gradient))} == {jnp.dtype(jnp.float32)}
    assert jax.eval_shape(step, init, pixels, tokens).dtype == jnp.float32


class Mosaic(nn.Module):
    """A tower without parameters: means of 4x4 pixels."""

    def __call__(self, image, *, train):
        return rearrange(image, "b (h p) (w q) c -> b h w (p q) c", p=4, q=4).mean(axis=3)


def test_image_is_normalised_and_resampled():
    pixels = np.random.default_rng(0).integers(0, 256, (B, 16, 16, 3), np.uint8)
    model = Captioner(Mosaic(), rnn(), position=False)
    features = model.apply({}, pixels, False, method="features")
    mean, std = ([255 * x for x in values] for values in STATISTICS["imagenet"])
    expected = (pixels.reshape(B, 4, 4, 4, 4, 3).mean(axis=(2, 4)) - mean) / std
    np.testing.assert_allclose(features, expected.reshape(B, 16, 3), rtol=1e-5, atol=1e-5)
    coarse = Captioner(Mosaic(), rnn(), position=False, grid=2).apply({}, pixels, False, method="features")
    assert coarse.shape == (B, 4, 3)
    np.testing.assert_allclose(coarse.mean(axis=1), expected.mean(axis=(1, 2)), atol=0.1)
    assert Captioner(Mosaic(), rnn(), position=False, grid=7).apply(
        {}, pixels, False, method="features"
    ).shape == (B, 49, 3)


def test_pixels_are_the_towers_choice_and_a_pooled_tower_is_refused():
    pixels = np.full((1, 16, 16, 3), 255, np.uint8)
    model = Captioner(Mosaic(), rnn(), position=False, pixels="half")
    np.testing.assert_array_equal(model.apply({}, pixels, False, method="features"), np.ones((1, 16, 3)))
    model = Captioner(convnet.make(pool="mean", dtype=jnp.float32), rnn())
    with pytest.raises(ValueError, match=r'not at \(1, 128\): set encoder\.pool to "none"'):
        jax.eval_shape(lambda: model.init(jax.random.key(0), pixels, False, method="features"))


def test_positions_tell_places_apart():
    """On a grey image all features are equal; only the learned vectors let the decoder point."""
    pixels = np.full((1, 16, 16, 3), 128, np.uint8)
    tokens = TOKENS[None, :1]
    for position in (True, False):
        model = Captioner(Mosaic(), rnn(), position=position)
        noise = np.random.default_rng(0)
        shapes = jax.eval_shape(model.init, jax.random.key(0), pixels, tokens)
        variables = jax.tree.map(lambda x: jnp.float32(noise.normal(size=x.shape)), shapes)
        weights = jax.jit(model.apply)(variables, pixels, tokens)[1]
        assert (np.ptp(weights, axis=-1).max() > 1e-5) == position


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cell": "rnn"}, 'decoder.cell is "rnn"; it is one of: lstm, gru.'),
        ({"attention": "none"}, "decoder.attention"),
        ({"gate": "yes"}, "decoder.gate"),
        ({"heads": 3}, "heads=3 .* attention_features=4"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: rnn(**fields).init(jax.random.key(0), IMAGE, TOKENS, method=forward))


def test_heads_must_divide_the_transformer():
    with pytest.raises(ValueError, match=r"heads=3 .* features=8"):
        jax.eval_shape(lambda: transformer(heads=3).init(jax.random.key(0), IMAGE, TOKENS, method=forward))


def test_more_words_than_positions():
    decoder = transformer(max_len=T - 1)
    with pytest.raises(ValueError, match=rf"{T} tokens, but decoder.max_len is {T - 1}"):
        jax.eval_shape(lambda: decoder.init(jax.random.key(0), IMAGE, TOKENS, method=forward))
    with pytest.raises(ValueError, match=r"100 words, but decoder\.max_len is 64"):
        stepped(transformer(), parameters(transformer()), 100)


def temporaries(recompute, n=16, t=20, v=3000, p=64, a=64):
    """Bytes that a training step of the decoder needs beside its inputs and outputs."""
    decoder = rnn(vocab_size=v, features=32, embed_features=32, attention_features=a, recompute=recompute)
    shape = jax.ShapeDtypeStruct
    image, tokens = shape((n, p, 32), jnp.float32), shape((n, t), jnp.int32)
    variables = jax.eval_shape(
        lambda i, x: decoder.init(jax.random.key(0), i, x, method=forward), image, tokens
    )

    def loss(variables, image, tokens):
        logits, _ = decoder.apply(variables, image, tokens, method=forward)
        chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)

    compiled = jax.jit(jax.grad(loss)).lower(variables, image, tokens).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory():
    n, t, v, p, a = 16, 20, 3000, 64, 64
    lean, full = temporaries(True), temporaries(False)
    logits, kept = 4 * n * t * v, 4 * t * n * p * a
    # The logits and their gradient, each once; all else of the words (states, contexts) is small beside them.
    assert lean < 2.5 * logits
    assert temporaries(True, v=4 * v) - lean < 2.05 * 3 * logits
    # Recomputing the hidden layer of the scores saves at least that layer of every word.
    assert full - lean > 0.9 * kept
