"""Word attention against numpy: weights sum to one, padding has none and changes nothing; published widths; errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.nn import attngan
from mmgen_jax.nn.text_conditioning import Text

B, T, F, D = 2, 5, 6, 4
rng = np.random.default_rng(0)
MASK = np.arange(T)[None] < np.array([5, 3])[:, None]
WORDS = rng.normal(size=(B, T, F))


def test_attention_equals_numpy():
    x = rng.normal(size=(B, 2, 3, D))
    module = attngan.WordAttention(jnp.float32)
    variables = module.init(jax.random.key(0), jnp.float32(x), jnp.float32(WORDS), jnp.asarray(MASK))
    kernel = np.float64(variables["params"]["words"]["kernel"])
    context, weights = module.apply(variables, jnp.float32(x), jnp.float32(WORDS), jnp.asarray(MASK))
    assert context.shape == x.shape and weights.shape == (B, 2, 3, T) and weights.dtype == jnp.float32
    for b in range(B):
        words = WORDS[b, MASK[b]] @ kernel
        scores = np.exp(x[b] @ words.T)
        expected = scores / scores.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(weights[b][..., MASK[b]], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(context[b], expected @ words, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    assert not np.any(weights[1, ..., 3:])


def test_padding_changes_nothing(same):
    generator = attngan.make_generator(
        dtype=jnp.float32, image_sizes=[8, 16, 32], width=2, blocks=1, augmented=3
    )
    z, sentence = jnp.ones((B, 100)), jnp.ones((B, F))
    texts = [
        Text(sentence, jnp.float32(np.where(MASK[..., None], WORDS, filler)), jnp.asarray(MASK))
        for filler in (0.0, 7.0, np.nan)
    ]
    variables = generator.init(jax.random.key(0), z, texts[0], train=False)
    apply = jax.jit(lambda text: generator.apply(variables, z, text, train=False))
    out = apply(texts[0])
    for other in texts[1:]:
        same(apply(other), out)
    assert [x.shape for x in out.attention] == [(B, 8, 8, T), (B, 16, 16, T)]
    changed = apply(texts[0]._replace(words=jnp.float32(-WORDS)))
    np.testing.assert_array_equal(changed.images[0], out.images[0])  # the first stage sees the sentence alone
    assert not np.allclose(changed.images[1], out.images[1], atol=1e-6)


def test_published_widths():
    """N_g = 32, N_d = 64, 100 features of the augmentation, three stages of 64, 128 and 256 px."""
    generator = attngan.make_generator(dtype=jnp.bfloat16)
    discriminator = attngan.make_discriminator(dtype=jnp.bfloat16)
    text = Text(jnp.zeros((B, 256)), jnp.zeros((B, T, 256)), jnp.ones((B, T), bool))

    def init():
        out, variables = generator.init_with_output(jax.random.key(0), jnp.zeros((B, 100)), text, train=True)
        return out, variables, discriminator.init(jax.random.key(0), out.images, text, train=True)

    out, first, second = jax.eval_shape(init)
    first, second = first["params"], second["params"]
    assert [x.shape[1] for x in out.images] == [64, 128, 256]
    assert first["stage1"]["first"]["kernel"].shape == (200, 4 * 4 * 512 * 2)
    assert [first[f"stage{i}_image"]["kernel"].shape[2] for i in (1, 2, 3)] == [32, 32, 32]
    assert first["stage3_attention"]["words"]["kernel"].shape == (256, 32)
    assert first["stage3_block2"]["layer2"]["conv"]["kernel"].shape == (3, 3, 64, 64)
    assert {"stage3_alone", "stage3_both"} <= set(second)


def test_a_text_is_needed():
    generator = attngan.make_generator(dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"attends to words: set task.text, .*stackgan with joint=True"):
        jax.eval_shape(lambda: generator.init(jax.random.key(0), jnp.zeros((2, 100)), None, train=False))
