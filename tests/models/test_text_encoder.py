"""Sentences of recurrent and Transformer towers, the mask, padding that changes nothing, and texts between two texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.models.text_to_image import TextEncoder, interpolate
from mmgen_jax.nn import text_rnn, text_transformer
from mmgen_jax.nn.text_conditioning import Text

EOS = 2
TOKENS = jnp.asarray([[1, 5, 6, 7, EOS], [1, 8, EOS, 0, 0]], jnp.int32)
LENGTHS = (5, 3)
SHARED = {"vocab_size": 10, "eos": EOS, "max_len": 6, "pool": "none", "dtype": jnp.float32}
TOWERS = {
    "bidirectional": lambda **more: text_rnn.make(
        **{**SHARED, **more}, features=3, embed_features=4, bidirectional=True
    ),
    "lstm": lambda **more: text_rnn.make(**{**SHARED, **more}, features=3, embed_features=4, cell="lstm"),
    "transformer": lambda **more: text_transformer.make(**{**SHARED, **more}, width=4, depth=1, heads=1),
}


def encode(tower, pool, tokens=TOKENS):
    module = TextEncoder(tower, pool)
    variables = module.init(jax.random.key(0), tokens, train=False)
    assert set(variables["params"]) == {"tower"}
    return module.apply(variables, tokens, train=False)


@pytest.mark.parametrize("pool", ["max", "mean", "last"])
@pytest.mark.parametrize("name", TOWERS)
def test_sentences(name, pool):
    text = encode(TOWERS[name](), pool)
    np.testing.assert_array_equal(text.mask, [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    for sentence, words, length in zip(text.sentence, text.words, LENGTHS, strict=True):
        half = 3 if name == "bidirectional" else words.shape[-1]
        expected = {
            "max": words[:length].max(axis=0),
            "mean": words[:length].mean(axis=0),
            "last": np.concatenate([words[length - 1, :half], words[0, half:]]),
        }[pool]
        np.testing.assert_allclose(sentence, expected, rtol=1e-6, atol=1e-6)


def test_last_is_what_the_recurrent_tower_pools_itself():
    module = TextEncoder(TOWERS["bidirectional"](), "last")
    variables = module.init(jax.random.key(0), TOKENS, train=False)
    inner = {"params": variables["params"]["tower"]}
    pooled = TOWERS["bidirectional"](pool="last").apply(inner, TOKENS, train=False)
    sentence = module.apply(variables, TOKENS, train=False).sentence
    np.testing.assert_allclose(sentence, pooled, rtol=1e-6, atol=1e-6)


def test_padding_changes_nothing():
    longer = jnp.pad(TOKENS, ((0, 0), (0, 1)), constant_values=9)
    for pool in ("max", "mean", "last"):
        text, padded = (encode(TOWERS["bidirectional"](), pool, tokens) for tokens in (TOKENS, longer))
        np.testing.assert_allclose(padded.sentence, text.sentence, rtol=1e-6, atol=1e-6)
        assert not np.any(padded.mask[:, 5])


def test_between_two_texts(same):
    rng = np.random.default_rng(0)
    a, b = (
        Text(
            jnp.float32(rng.normal(size=(4, 3))),
            jnp.float32(rng.normal(size=(4, 5, 3))),
            jnp.broadcast_to(jnp.arange(5)[None] < length, (4, 5)),
        )
        for length in (4, 2)
    )
    mix = jnp.float32([0.0, 0.25, 0.75, 1.0])
    mixed = interpolate(a, b, mix)
    same(jax.tree.map(lambda x: x[0], mixed), jax.tree.map(lambda x: x[0], a))
    same(jax.tree.map(lambda x: x[3], mixed), jax.tree.map(lambda x: x[3], b))
    np.testing.assert_allclose(mixed.sentence[1], 0.75 * a.sentence[1] + 0.25 * b.sentence[1], rtol=1e-5)
    np.testing.assert_allclose(mixed.words[2, :2], 0.25 * a.words[2, :2] + 0.75 * b.words[2, :2], rtol=1e-5)
    np.testing.assert_array_equal(mixed.words[1, 2:], a.words[1, 2:])
    assert mixed.mask.sum(axis=1).tolist() == [4, 4, 2, 2]


def test_errors():
    with pytest.raises(ValueError, match=r'Unknown sentence pool "men". Did you mean "mean"'):
        encode(TOWERS["lstm"](), "men")
    with pytest.raises(ValueError, match=r'gives \[2, 3\]; set its pool="none"'):
        encode(TOWERS["lstm"](pool="max"), "max")
    with pytest.raises(ValueError, match="max_len is 6: cut texts"):
        encode(TOWERS["lstm"](), "max", jnp.ones((1, 7), jnp.int32))
