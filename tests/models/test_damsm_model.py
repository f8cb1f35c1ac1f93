"""DAMSM's towers: one space, any size of image, bytes or a generator's floats, and gradients for a generator."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmgen_jax.losses import damsm as losses
from mmgen_jax.models import damsm
from mmgen_jax.models.text_to_image import TextEncoder
from mmgen_jax.nn import text_rnn

B, T, F, SIZE = 4, 6, 16, 16
IMAGE = {"name": "convnet", "widths": (8, 12), "blocks": 0}
TEXT = {"name": "text_rnn", "features": 8, "embed_features": 8, "bidirectional": True, "max_len": T}
TOKENS = np.int32([[1, 4, 5, 6, 7, 2], [1, 5, 2, 0, 0, 0], [1, 8, 9, 2, 0, 0], [1, 2, 0, 0, 0, 0]])
PIXELS = np.random.default_rng(0).integers(0, 256, (B, SIZE, SIZE, 3), dtype=np.uint8)


def make(**fields):
    tokenizer = SimpleNamespace(vocab_size=12, eos=2)
    return damsm.make(**{"image": IMAGE, "text": TEXT, "embed_dim": F, **fields}, tokenizer=tokenizer)


def start(**fields):
    """-> (matcher, its variables)."""
    matcher = make(**fields)
    return matcher, jax.jit(matcher.init)(jax.random.key(0), PIXELS, TOKENS[:, None])


@pytest.fixture(scope="module")
def plain():
    return start()


def test_shapes(plain):
    matcher, variables = plain
    image, text = matcher.apply(variables, PIXELS, TOKENS[:, None])
    assert image.regions.shape == (B, 16, F) and image.whole.shape == (B, F)
    assert text.words.shape == (B, T, F) and text.sentence.shape == (B, F)
    np.testing.assert_array_equal(text.mask.sum(axis=1), [6, 3, 4, 2])


def test_bytes_and_floats_are_the_same(plain):
    matcher, variables = plain
    by_bytes = matcher.apply(variables, PIXELS, method="embed_image")
    floats = jnp.asarray(PIXELS, jnp.float32) / 127.5 - 1
    for a, b in zip(by_bytes, matcher.apply(variables, floats, method="embed_image"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_images_are_brought_to_the_towers_size():
    matcher, variables = start(image_size=8, image_pool="flatten")
    larger = np.full((2, 32, 24, 3), 200, np.uint8)
    found = matcher.apply(variables, larger, method="embed_image")
    assert found.regions.shape == (2, 4, F)
    for a, b in zip(found, matcher.apply(variables, larger[:, :8, :8], method="embed_image"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_match_is_the_loss_and_moves_images(plain):
    matcher, variables = plain
    image, text = matcher.apply(variables, PIXELS, TOKENS[:, None])
    floats = jnp.asarray(PIXELS, jnp.float32) / 127.5 - 1
    ids = np.int32([0, 1, 2, 1])
    expected = losses.damsm(*image, text.words, text.mask, text.sentence, text_id=ids, gamma1=4.0)
    found = damsm.match(matcher, variables, floats, text, text_id=ids, gamma1=4.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    gradient = jax.jit(jax.grad(lambda x: damsm.match(matcher, variables, x, text).sum()))(floats)
    assert np.isfinite(gradient).all() and np.all(np.abs(gradient).sum(axis=(1, 2, 3)) > 0)


def test_a_frozen_image_tower_learns_only_its_projections():
    matcher, variables = start(image_frozen=True)

    def loss(params):
        (image, text), updates = matcher.apply(
            {**variables, "params": params}, PIXELS, TOKENS[:, None], train=True, mutable=["batch_stats"]
        )
        return losses.damsm(*image, text.words, text.mask, text.sentence).sum(), updates

    gradients, updates = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    moved = {name: any(np.any(g != 0) for g in jax.tree.leaves(tree)) for name, tree in gradients.items()}
    assert moved == {
        "image": False, "text": True, "region_projection": True, "image_projection": True
    }  # fmt: skip
    # A generator still hears of its images.
    floats = jnp.asarray(PIXELS, jnp.float32) / 127.5 - 1
    _, text = matcher.apply(variables, PIXELS, TOKENS[:, None])
    gradient = jax.jit(jax.grad(lambda x: damsm.match(matcher, variables, x, text).sum()))(floats)
    assert np.abs(gradient).max() > 0


class TwoEnds(nn.Module):
    """A middle and an end, as Inception-v3 has them."""

    @nn.compact
    def __call__(self, image, *, train):
        grid = nn.Conv(5, (3, 3), 4)(image)
        return grid, nn.Dense(7)(grid.mean(axis=(1, 2))), "and more"


def test_a_tower_with_a_middle_and_an_end():
    tower = text_rnn.make(vocab_size=12, eos=2, features=F, max_len=T, pool="none", dtype=jnp.float32)
    matcher = damsm.Damsm(TwoEnds(), TextEncoder(tower), F)
    variables = matcher.init(jax.random.key(0), PIXELS, TOKENS[:, None])
    assert variables["params"]["region_projection"]["kernel"].shape == (5, F)
    assert variables["params"]["image_projection"]["kernel"].shape == (7, F)
    grid, whole = matcher.apply(variables, PIXELS, method="grid")
    assert grid.shape == (B, 4, 4, 5) and whole.shape == (B, 7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_pool": "flaten"}, 'Unknown image_pool "flaten".* Did you mean "flatten"'),
        ({"embed_dim": 8}, "text tower gives 16 features .* set embed_dim=16 instead of 8"),
        ({"image": {**IMAGE, "pool": "mean"}}, r'image tower gives \[4, 12\]; set its pool="none"'),
        ({"text": {**TEXT, "pool": "lst"}}, 'Unknown sentence pool "lst".* Did you mean "last"'),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        matcher = make(**fields)
        jax.eval_shape(matcher.init, jax.random.key(0), PIXELS, TOKENS[:, None])
