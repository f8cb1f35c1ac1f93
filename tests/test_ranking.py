"""Ranks and nearest neighbours in tiles against the whole matrix in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax import ranking

RAGGED = (3, 8)  # a tile that divides nothing here


def whole_numbers(seed, *shape):
    """Small whole numbers: every product is exact in float32, and ties are frequent."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


def brute_ranks(queries, keys, query_id, key_id):
    scores = queries.astype(np.float64) @ keys.astype(np.float64).T
    result = []
    for row, own in zip(scores, query_id, strict=True):
        best = row[key_id == own].max()
        result.append(1 + np.sum((row >= best) & (key_id != own)))
    return np.array(result)


@pytest.mark.parametrize("tile", [RAGGED, (16, 4), (64, 64)])
def test_ranks_equal_the_whole_matrix(tile):
    """Several positives a query, several queries an id, ids in no order, ties; ids of any size."""
    rng = np.random.default_rng(1)
    queries, keys = whole_numbers(2, 21, 4), whole_numbers(3, 38, 4)
    names = np.array([7, -5, 2**40, 0, 11, 3, 12, 999])
    key_id = rng.permutation(np.concatenate([names, rng.choice(names, 30)]))
    query_id = rng.choice(names, 21)
    found = ranking.ranks(queries, keys, query_id, key_id, tile=tile)
    expected = brute_ranks(queries, keys, query_id, key_id)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)
    assert len(set(expected)) > 5


def test_ranks_both_ways_of_five_captions():
    """The shape of Flickr: each image with five texts; real numbers, whose order float32 keeps."""
    rng = np.random.default_rng(4)
    image, text = rng.normal(size=(30, 16)), rng.normal(size=(150, 16))
    own, owner = np.arange(30), np.repeat(np.arange(30), 5)
    np.testing.assert_array_equal(
        ranking.ranks(image, text, own, owner, tile=RAGGED), brute_ranks(image, text, own, owner)
    )
    np.testing.assert_array_equal(
        ranking.ranks(text, image, owner, own, tile=RAGGED), brute_ranks(text, image, owner, own)
    )


def test_ties_count_against_us():
    """A collapsed model gets the last rank, however its keys fall into tiles; its other positives do not count."""
    queries, keys = np.ones((5, 3), np.float32), np.ones((10, 3), np.float32)
    found = ranking.ranks(queries, keys, np.arange(5), np.repeat(np.arange(5), 2), tile=RAGGED)
    np.testing.assert_array_equal(found, [9] * 5)


def test_a_copy_of_the_right_key_is_a_tie_wherever_it_stands():
    """Rounding must not tell equal embeddings apart: both passes compute a score in the same way."""
    rng = np.random.default_rng(5)
    keys = rng.normal(size=(40, 48)).astype(np.float32)
    keys = np.concatenate([keys, keys[::-1]])
    queries = keys[:40] + 0.1 * rng.normal(size=(40, 48)).astype(np.float32)
    found = ranking.ranks(queries, keys, np.arange(40), np.arange(80), tile=(16, 32))
    np.testing.assert_array_equal(found, 2)


def brute_top_k(queries, keys, k):
    scores = queries.astype(np.float64) @ keys.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("tile", [RAGGED, (16, 4), (64, 64)])
@pytest.mark.parametrize(("k", "count"), [(1, 19), (6, 19), (19, 19), (3, 300)])
def test_top_k_equals_a_stable_sort(tile, k, count, monkeypatch):
    monkeypatch.setattr(ranking, "GROUP", 8)
    queries, keys = whole_numbers(6, 10, 4), whole_numbers(7, count, 4)
    scores, indices = ranking.top_k(queries, keys, k, tile=tile)
    expected = brute_top_k(queries, keys, k)
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(scores, expected[0])
    assert (scores.dtype, indices.dtype) == (np.float32, np.int64)


def test_broken_embeddings_are_named():
    queries, keys = whole_numbers(8, 4, 3), whole_numbers(9, 6, 3)
    queries[1, 2], queries[3, 0], keys[5] = np.nan, np.inf, np.nan
    for call in (
        lambda: ranking.top_k(queries, keys, 2),
        lambda: ranking.ranks(queries, keys, np.arange(4), np.arange(6)),
    ):
        with pytest.raises(
            ValueError, match=r"2 of 4 queries \(the first is row 1\) and 1 of 6 keys.*row 5.*diverged"
        ):
            call()


def test_what_does_not_fit():
    x = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"2 of 4 queries have no positive key.*id 2"):
        ranking.ranks(x, x, np.arange(4), np.array([0, 1, 0, 1]))
    with pytest.raises(ValueError, match=r"4 key embeddings need as many ids, not \[3\]"):
        ranking.ranks(x, x, np.arange(4), np.arange(3))
    with pytest.raises(ValueError, match=r"\[4, 3\] and keys \[4, 2\] cannot be compared"):
        ranking.top_k(x, x[:, :2], 1)
    with pytest.raises(ValueError, match=r"\[0, 3\]"):
        ranking.top_k(x[:0], x, 1)
    with pytest.raises(ValueError, match="k is 5: of 4 keys"):
        ranking.top_k(x, x, 5)


def test_the_device_holds_one_tile():
    """100,000 images and 500,000 texts: what a step needs beside its inputs is a tile of scores, whatever Q and K."""
    (q, t), features = ranking.TILE, 512
    shapes = [(q,), (q, t), (q, features), (t, features)]
    best, scores, *rows = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    ids = [jax.ShapeDtypeStruct((n,), jnp.int32) for n in (q, t)]
    counts = jax.ShapeDtypeStruct((q,), jnp.int32)
    found = tuple(jax.ShapeDtypeStruct((q, 10), dtype) for dtype in (jnp.float32, jnp.int32))
    start = jax.ShapeDtypeStruct((), jnp.int32)
    for lowered in (
        ranking._scores.lower(*rows),
        ranking._best.lower(best, scores, *ids),
        ranking._count.lower(counts, best, scores, *ids),
        ranking._better.lower(found, scores, ids[1], start),
    ):
        assert lowered.compile().memory_analysis().temp_size_in_bytes <= 2 * 4 * q * t
