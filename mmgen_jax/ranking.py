"""Ranks and nearest neighbours by inner product: exact, tile by tile on the device, so that the whole matrix never exists."""

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

TILE = (1024, 4096)  # at most so many queries and keys meet at a time: 16 MiB of scores
ALIGN = 64  # of a tile's rows, for the matrix product
GROUP = 32  # neighbours among which a search first takes the maximum


class _Tile(NamedTuple):
    """Some rows on the device, filled up with rows of id -1.

    Attributes:
      rows: float32 [t, F]; ids: int32 [t], both on the device.
      start: of the first row in the whole.
      low, high: the ids of the first and the last real row.
    """

    rows: jax.Array
    ids: jax.Array
    start: int
    low: int
    high: int


def ranks(
    queries: np.ndarray,
    keys: np.ndarray,
    query_id: np.ndarray,
    key_id: np.ndarray,
    *,
    tile: tuple[int, int] = TILE,
) -> np.ndarray:
    """The rank of each query's best positive key: 1 + how many keys that are not positive score as high or higher.

    Ties count against us: equal embeddings win nothing. The queries stay on the device, the keys pass through it twice, first for
    the best positive scores, then to count; beside the queries there is one tile of keys and of scores.

    Args:
      queries, keys: float [Q, F], [K, F]; a score is their inner product, in float32.
      query_id, key_id: int [Q], [K]; a key is positive where the ids are equal.
      tile: at most so many queries and keys meet at a time.

    Returns:
      int64 [Q], from 1.

    Raises:
      ValueError: shapes that do not fit, values that are not finite, or a query without a positive key.
    """
    queries, keys = _checked(queries, keys)
    query_id, key_id = np.asarray(query_id), np.asarray(key_id)
    for side, rows, ids in (("query", queries, query_id), ("key", keys, key_id)):
        if ids.shape != rows.shape[:1]:
            raise ValueError(f"{len(rows)} {side} embeddings need as many ids, not {list(ids.shape)}.")
    alone = ~np.isin(query_id, key_id)
    if alone.any():
        raise ValueError(
            f"{alone.sum()} of {len(queries)} queries have no positive key, the first of them has the id "
            f"{query_id[alone.argmax()]}: leave them out."
        )
    # Sorted by id, a tile of queries has its positives in a few tiles of keys. Numbered anew, any ids fit.
    names, key_id = np.unique(key_id, return_inverse=True)
    query_id = np.searchsorted(names, query_id)
    order, key_order = np.argsort(query_id, kind="stable"), np.argsort(key_id, kind="stable")
    asked = list(_tiles(queries, query_id, order, tile[0]))
    best = [jnp.full(len(query.rows), -jnp.inf, jnp.float32) for query in asked]
    for key in _tiles(keys, key_id, key_order, tile[1]):
        for i, query in enumerate(asked):
            if query.low <= key.high and key.low <= query.high:
                best[i] = _best(best[i], _scores(query.rows, key.rows), query.ids, key.ids)
        # The next tile is sent when this one is done with: dispatch must not run ahead of the memory.
        jax.block_until_ready(best)
    counts = [jnp.zeros(len(query.rows), jnp.int32) for query in asked]
    for key in _tiles(keys, key_id, key_order, tile[1]):
        for i, query in enumerate(asked):
            counts[i] = _count(counts[i], best[i], _scores(query.rows, key.rows), query.ids, key.ids)
        jax.block_until_ready(counts)
    result = np.empty(len(queries), np.int64)
    result[order] = np.concatenate(jax.device_get(counts))[: len(queries)]
    return 1 + result


def top_k(
    queries: np.ndarray, keys: np.ndarray, k: int, *, tile: tuple[int, int] = TILE
) -> tuple[np.ndarray, np.ndarray]:
    """The k keys of the highest inner product for each query, best first; of equal scores the lower index first.

    Args:
      queries, keys: float [Q, F], [K, F].
      k: at most K.
      tile: at most so many queries and keys meet at a time.

    Returns:
      scores float32 [Q, k], indices int64 [Q, k].

    Raises:
      ValueError: shapes that do not fit, values that are not finite, or k outside of 1 .. K.
    """
    queries, keys = _checked(queries, keys)
    if not 1 <= k <= len(keys):
        raise ValueError(f"k is {k}: of {len(keys)} keys, 1 to {len(keys)} can be asked for.")
    asked = list(_tiles(queries, np.zeros(len(queries), np.int32), np.arange(len(queries)), tile[0]))
    found = [
        (jnp.full((len(query.rows), k), -jnp.inf, jnp.float32), jnp.zeros((len(query.rows), k), jnp.int32))
        for query in asked
    ]
    for key in _tiles(keys, np.zeros(len(keys), np.int32), np.arange(len(keys)), tile[1]):
        for i, query in enumerate(asked):
            found[i] = _better(found[i], _scores(query.rows, key.rows), key.ids, jnp.int32(key.start))
        jax.block_until_ready(found)
    scores, indices = (
        np.concatenate(parts)[: len(queries)] for parts in zip(*jax.device_get(found), strict=True)
    )
    return scores, indices.astype(np.int64)


def _checked(queries: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float32 [., F], or a ValueError that says what is wrong with which."""
    queries, keys = np.asarray(queries, np.float32), np.asarray(keys, np.float32)
    if (
        queries.ndim != 2
        or keys.ndim != 2
        or queries.shape[1] != keys.shape[1]
        or not queries.size * keys.size
    ):
        raise ValueError(
            f"Queries {list(queries.shape)} and keys {list(keys.shape)} cannot be compared: they must be "
            "[Q, F] and [K, F], with the same F and at least one row each."
        )
    broken = {}
    for side, rows in (("queries", queries), ("keys", keys)):
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            broken[side] = f"{bad.sum()} of {len(rows)} {side} (the first is row {bad.argmax()})"
    if broken:
        raise ValueError(
            f"Embeddings that are not finite: {' and '.join(broken.values())}. No rank can be told from them: has the "
            "training diverged (see its loss and gradient norm), or do images or texts come in with NaN?"
        )
    return queries, keys


def _tiles(rows: np.ndarray, ids: np.ndarray, order: np.ndarray, size: int) -> Iterator[_Tile]:
    """The rows in an order, sent to the device at most `size` at a time: all tiles alike, and few rows that only fill up."""
    even = math.ceil(len(rows) / math.ceil(len(rows) / size))
    size = min(size, ALIGN * math.ceil(even / ALIGN))
    for start in range(0, len(rows), size):
        chosen = order[start : start + size]
        part = np.zeros((size, rows.shape[1]), np.float32)
        names = np.full(size, -1, np.int32)
        part[: len(chosen)], names[: len(chosen)] = rows[chosen], ids[chosen]
        yield _Tile(jnp.asarray(part), jnp.asarray(names), start, int(names[0]), int(names[len(chosen) - 1]))


@jax.jit
def _scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """[q, F], [t, F] -> [q, t]. A program of its own, so that both passes round alike: or ties would not be seen as ties."""
    return jax.lax.dot_general(queries, keys, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST)


@partial(jax.jit, donate_argnums=0)
def _best(best, scores, query_id, key_id):
    """The higher of `best` and the tile's best positive score. [q]"""
    own = jnp.where(query_id[:, None] == key_id[None, :], scores, -jnp.inf)
    return jnp.maximum(best, jnp.max(own, axis=1))


@partial(jax.jit, donate_argnums=0)
def _count(counts, best, scores, query_id, key_id):
    """Add how many of the tile's keys stand before the best positive. [q]"""
    before = scores >= best[:, None]
    before &= (query_id[:, None] != key_id[None, :]) & (key_id >= 0)[None, :]
    return counts + jnp.sum(before, axis=1, dtype=jnp.int32)


@partial(jax.jit, donate_argnums=0)
def _better(found, scores, key_id, start):
    """The k best of those found so far and the tile's. lax.top_k puts the lower position first, and earlier tiles stand first."""
    scores = jnp.where((key_id >= 0)[None, :], scores, -jnp.inf)
    k = found[0].shape[1]
    new, place = _top(scores, min(k, scores.shape[1]))
    scores = jnp.concatenate([found[0], new], axis=1)
    indices = jnp.concatenate([found[1], place + start], axis=1)
    scores, place = jax.lax.top_k(scores, k)
    return scores, jnp.take_along_axis(indices, place, axis=1)


def _top(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """lax.top_k of [q, t]. The k best stand in the k groups with the highest maxima, so most scores are compared only once."""
    group = math.gcd(scores.shape[1], GROUP)
    groups = rearrange(scores, "q (n g) -> q n g", g=group)
    _, chosen = jax.lax.top_k(jnp.max(groups, axis=2), min(k, groups.shape[1]))
    chosen = jnp.sort(
        chosen.astype(jnp.int32), axis=1
    )  # in their order, so that ties go to the lower position
    few = rearrange(jnp.take_along_axis(groups, chosen[:, :, None], axis=1), "q n g -> q (n g)")
    scores, place = jax.lax.top_k(few, k)
    place = place.astype(jnp.int32)
    return scores, jnp.take_along_axis(chosen, place // group, axis=1) * group + place % group
