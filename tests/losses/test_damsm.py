"""DAMSM's loss against plain loops in float64: what is masked or equal counts nowhere, and devices change nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from mmgen_jax.losses import damsm

B, P, T, F = 8, 5, 4, 6
NAMES = ("regions", "image", "words", "words_mask", "sentence")


def examples(count=B, seed=0):
    """Pairs that belong together somewhat; texts of 1 to T words."""
    rng = np.random.default_rng(seed)
    regions, words = rng.normal(size=(count, P, F)), rng.normal(size=(count, T, F))
    words[:, 0] += regions[:, 1]
    image = rng.normal(size=(count, F))
    sentence = image + rng.normal(size=(count, F))
    mask = np.arange(T) < rng.integers(1, T + 1, count)[:, None]
    return [np.float32(regions), np.float32(image), np.float32(words), mask, np.float32(sentence)]


def marks(count=B):
    """One pair is not there; two have one image, two others one text."""
    weight, image_id, text_id = np.ones(count), np.arange(count), np.arange(count)
    weight[2], weight[5], image_id[1], text_id[4] = 0, 0.5, 0, 3
    return {"weight": np.float32(weight), "image_id": np.int32(image_id), "text_id": np.int32(text_id)}


def softmax(x, axis):
    x = np.exp(x - x.max(axis=axis, keepdims=True))
    return x / x.sum(axis=axis, keepdims=True)


def cosine(x, y):
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def score(regions, words, gamma1, gamma2):
    """Equations 7 to 10 for one image and one text without padding."""
    similarity = words @ regions.T  # [T, P]
    weights = softmax(gamma1 * softmax(similarity, axis=0), axis=1)
    relevance = [cosine(seen, word) for seen, word in zip(weights @ regions, words, strict=True)]
    return np.log(np.sum(np.exp(gamma2 * np.array(relevance)))) / gamma2


def expected(
    regions, image, words, mask, sentence, weight=None, image_id=None, text_id=None, gammas=(5.0, 5.0, 10.0)
):
    """The four terms of every pair, [4, B]."""
    count = len(image)
    regions, image, words, sentence = (x.astype(np.float64) for x in (regions, image, words, sentence))
    weight = np.ones(count) if weight is None else weight
    by_words, whole = np.zeros((2, count, count))
    for i, j in np.ndindex(count, count):
        by_words[i, j] = score(regions[i], words[j][mask[j]], *gammas[:2])
        whole[i, j] = cosine(image[i], sentence[j])
    losses = np.zeros((4, count))
    for i in range(count):
        same = np.zeros(count, bool)
        for ids in (image_id, text_id):
            same |= False if ids is None else ids == ids[i]
        counts = ~same & (weight > 0)
        counts[i] = True
        for k, scores in enumerate((by_words[i], by_words[:, i], whole[i], whole[:, i])):
            logits = gammas[2] * scores
            losses[k, i] = np.log(np.sum(np.exp(logits[counts]))) - logits[i]
    return weight * losses


@pytest.mark.parametrize("gammas", [(5.0, 5.0, 10.0), (2.0, 3.0, 20.0)], ids=["paper", "other"])
@pytest.mark.parametrize("marked", [{}, marks()], ids=["all", "marked"])
def test_terms(marked, gammas):
    options = dict(zip(("gamma1", "gamma2", "gamma3"), gammas, strict=True))
    inputs = examples()
    found = jax.jit(partial(damsm.terms, **options, **marked))(*inputs)
    np.testing.assert_allclose(found, expected(*inputs, **marked, gammas=gammas), rtol=1e-5, atol=1e-5)
    total = damsm.damsm(*inputs, **options, **marked)
    np.testing.assert_allclose(total, sum(found), rtol=1e-6)


def gradients(*inputs, **options):
    """Of the weighted sum of all pairs, with regard to all but the mask."""
    cotangent = jnp.cos(jnp.arange(len(inputs[0]), dtype=jnp.float32))

    @jax.jit
    def run(*inputs):
        return jax.grad(lambda *x: jnp.sum(cotangent * damsm.damsm(*x, **options)), (0, 1, 2, 4))(*inputs)

    return run(*inputs)


def test_gradients_against_finite_differences():
    """Along one random direction, in the loops above."""
    inputs, marked = examples(), marks()
    rng = np.random.default_rng(1)
    found = gradients(*inputs, **marked)
    directions = [rng.normal(size=x.shape) for x in found]
    slope = sum(np.sum(np.float64(g) * d) for g, d in zip(found, directions, strict=True))

    def value(step):
        moved = [
            inputs[k].astype(np.float64) + step * d for k, d in zip((0, 1, 2, 4), directions, strict=True)
        ]
        losses = expected(*moved[:3], inputs[3], moved[3], **marked)
        return np.sum(np.cos(np.arange(B)) * losses)

    np.testing.assert_allclose(slope, (value(1e-5) - value(-1e-5)) / 2e-5, rtol=1e-4)


@pytest.mark.parametrize("block_size", [3, 8, 100])
def test_every_block_size_gives_the_same(block_size):
    inputs = examples()
    found = damsm.damsm(*inputs, block_size=block_size)
    np.testing.assert_allclose(found, damsm.damsm(*inputs), rtol=1e-5, atol=1e-5)


def test_what_padding_holds_changes_nothing():
    inputs = examples()
    other = list(inputs)
    other[2] = np.where(inputs[3][..., None], inputs[2], np.float32(1e3))
    np.testing.assert_array_equal(damsm.damsm(*inputs), damsm.damsm(*other))
    for g, h in zip(gradients(*inputs), gradients(*other), strict=True):
        np.testing.assert_array_equal(g, h)
    assert np.all(np.asarray(gradients(*other)[2])[~inputs[3]] == 0)
    # Nor how much of it there is.
    longer = [
        np.pad(x, [(0, 0), (0, 2), (0, 0)][: x.ndim]) if i in (2, 3) else x for i, x in enumerate(inputs)
    ]
    np.testing.assert_allclose(damsm.damsm(*longer), damsm.damsm(*inputs), rtol=1e-5, atol=1e-5)


def test_a_pair_that_is_not_there_changes_nothing():
    inputs, weight = examples(), np.ones(B, np.float32)
    weight[3] = 0
    kept = np.arange(B) != 3
    all_pairs = damsm.damsm(*inputs, weight=weight)
    assert all_pairs[3] == 0
    np.testing.assert_allclose(all_pairs[kept], damsm.damsm(*(x[kept] for x in inputs)), rtol=1e-5, atol=1e-5)
    for g in gradients(*inputs, weight=weight):
        assert np.all(np.asarray(g)[3] == 0)


def test_an_equal_caption_is_no_negative():
    """Each pair twice, with the same text: nothing is left to confuse but the other pairs."""
    once, twice = examples(), [np.repeat(x, 2, axis=0) for x in examples()]
    ids = np.arange(2 * B, dtype=np.int32) // 2
    alone = damsm.damsm(*(x[:2] for x in twice), text_id=ids[:2])
    np.testing.assert_array_equal(alone, [0, 0])
    assert np.all(damsm.damsm(*(x[:2] for x in twice)) > 4 * np.log(2) - 1e-3)
    # The other pairs count twice now.
    found = damsm.damsm(*twice, image_id=ids)
    assert np.all(np.asarray(found[::2]) > np.asarray(damsm.damsm(*once)))
    np.testing.assert_allclose(found[::2], found[1::2], rtol=1e-6)


def test_nothing_is_not_a_number():
    """Zero vectors, a text without a word that is not there, and one pair alone."""
    inputs = [np.zeros_like(x) for x in examples()]
    inputs[3][1:] = True
    weight = np.float32([0, *[1] * (B - 1)])
    losses = damsm.damsm(*inputs, weight=weight)
    np.testing.assert_allclose(losses, weight * 4 * np.log(B - 1), rtol=1e-5)
    assert all(np.isfinite(g).all() for g in gradients(*inputs, weight=weight))
    np.testing.assert_array_equal(damsm.damsm(*(x[:1] for x in examples())), [0])


@pytest.mark.parametrize("count", [1, 2, 8])
def test_on_any_devices(count):
    """Losses and gradients; the negatives are those of all devices, equal and absent pairs among them."""
    inputs, marked = examples(), marks()
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
    rows = PartitionSpec("data")

    def loss(*rows):
        return damsm.damsm(*rows[:5], **dict(zip(marked, rows[5:], strict=True)), axis="data")

    spread = jax.shard_map(loss, mesh=mesh, in_specs=(rows,) * 8, out_specs=rows, check_vma=False)
    cotangent = jnp.cos(jnp.arange(B, dtype=jnp.float32))

    @jax.jit
    def run(*inputs):
        with_gradients = jax.grad(lambda *x: jnp.sum(cotangent * spread(*x)), (0, 1, 2, 4))
        return spread(*inputs), with_gradients(*inputs)

    losses, found = run(*inputs, *marked.values())
    np.testing.assert_allclose(losses, damsm.damsm(*inputs, **marked), rtol=1e-5, atol=1e-5)
    for g, h in zip(found, gradients(*inputs, **marked), strict=True):
        np.testing.assert_allclose(g, h, rtol=0, atol=1e-5 * np.abs(h).max())


def test_memory():
    """The plan for 256 pairs of the paper's sizes: far less than one array of all pairs, words and regions."""
    shapes = [(256, 289, 256), (256, 256), (256, 18, 256), (256, 18), (256, 256)]
    inputs = [jax.ShapeDtypeStruct(s, bool if i == 3 else jnp.float32) for i, s in enumerate(shapes)]
    step = jax.jit(jax.grad(lambda *x: jnp.mean(damsm.damsm(*x)), (0, 1, 2, 4)))
    held = step.lower(*inputs).compile().memory_analysis().temp_size_in_bytes
    assert held < 0.4 * 4 * 256 * 256 * 18 * 289


def test_shapes_that_do_not_fit():
    inputs = examples()
    with pytest.raises(ValueError, match=r"DAMSM needs .*not regions \[8, 5, 6\], image \[7, 6\]"):
        damsm.damsm(inputs[0], inputs[1][:7], *inputs[2:])
