"""DAMSM: how well images and texts match, word by word and as a whole (AttnGAN: Xu et al., 2018, section 3.2).

The words of one text at a time meet the regions of all images: no array holds words and regions of all pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmgen_jax.core import parallel

NEVER = -1e30  # the logit of what does not count: finite, so that a difference of two is never nan
HIGHEST = jax.lax.Precision.HIGHEST  # float32 all through, on any device
Axis = str | Sequence[str] | None


class Terms(NamedTuple):
    """-log P in nats, float32 [B] each: of a pair's text among all texts, and of its image among all images.

    By words: L_1^w and L_2^w of the paper (eq. 12 and 13); as a whole: L_1^s and L_2^s.
    """

    word_text: jax.Array
    word_image: jax.Array
    sentence_text: jax.Array
    sentence_image: jax.Array


def damsm(
    regions: jax.Array,
    image: jax.Array,
    words: jax.Array,
    words_mask: jax.Array,
    sentence: jax.Array,
    **options,
) -> jax.Array:
    """The loss of each pair, the sum of its four terms (eq. 14), float32 [B]. Arguments as in `terms`."""
    return sum(terms(regions, image, words, words_mask, sentence, **options))


def terms(
    regions: jax.Array,
    image: jax.Array,
    words: jax.Array,
    words_mask: jax.Array,
    sentence: jax.Array,
    *,
    weight: jax.Array | None = None,
    image_id: jax.Array | None = None,
    text_id: jax.Array | None = None,
    gamma1: float = 5.0,
    gamma2: float = 5.0,
    gamma3: float = 10.0,
    block_size: int = 1,
    axis: Axis = None,
) -> Terms:
    """The four terms of each pair; all other pairs of the batch are negatives, but for those that are equal.

    Args:
      regions: [B, P, F], an image's places; image: [B, F], the whole of it.
      words: [B, T, F]; words_mask: bool [B, T], true on words; sentence: [B, F]. Row i of all is a pair.
      weight: [B], multiplies the terms of a pair. A pair of weight 0 does not exist: it is nobody's negative.
      image_id, text_id: int32 [B]. Pairs that have one image or one text in common are no negatives of each other.
      gamma1: how much a word attends to its best regions (eq. 9); gamma2: how much the best words count (eq. 10);
        gamma3: what scores are multiplied by before the softmax over the batch (eq. 11).
      block_size: so many texts at once meet the images; more of them are faster on an accelerator.
      axis: the mapped axes (inside `jax.shard_map(..., check_vma=False)`) over which the batch is spread. Texts travel, as they
        are smaller than images. Gradients are those of the sum of all devices' losses.

    Raises:
      ValueError: shapes that do not fit.
    """
    count, places, features = regions.shape
    shapes = {
        "regions": regions,
        "image": image,
        "words": words,
        "words_mask": words_mask,
        "sentence": sentence,
    }
    length = words.shape[1]
    expected = [(count, places, features), (count, features), (count, length, features), (count, length)]
    if [x.shape for x in shapes.values()] != [*expected, (count, features)]:
        found = ", ".join(f"{name} {list(x.shape)}" for name, x in shapes.items())
        raise ValueError(f"DAMSM needs [B, P, F], [B, F], [B, T, F], [B, T] and [B, F], not {found}.")
    regions, image, words, sentence = (x.astype(jnp.float32) for x in (regions, image, words, sentence))
    first = 0 if axis is None else jax.lax.axis_index(axis) * count
    pairs = {"index": first + jnp.arange(count), "image_id": image_id, "text_id": text_id}
    pairs["real"] = None if weight is None else weight > 0
    pairs = {name: x for name, x in pairs.items() if x is not None}
    words, words_mask, sentence, others = parallel.gather((words, words_mask, sentence, pairs), axis)
    counts = _negatives(pairs, others)
    by_words = word_scores(regions, words, words_mask, gamma1=gamma1, gamma2=gamma2, block_size=block_size)
    whole = jnp.einsum("bf,nf->bn", _unit(image), _unit(sentence), precision=HIGHEST)
    losses = Terms(
        *_of_pairs(gamma3 * by_words, counts, pairs["index"], axis),
        *_of_pairs(gamma3 * whole, counts, pairs["index"], axis),
    )
    return losses if weight is None else Terms(*(weight.astype(jnp.float32) * x for x in losses))


def word_scores(
    regions: jax.Array,
    words: jax.Array,
    words_mask: jax.Array,
    *,
    gamma1: float = 5.0,
    gamma2: float = 5.0,
    block_size: int = 1,
) -> jax.Array:
    """The score R(Q, D) of every image with every text, with the power 1 / gamma2 (eq. 10; the authors' code leaves it out).

    regions: float32 [B, P, F]; words: float32 [N, T, F]; words_mask: bool [N, T] -> float32 [B, N].
    """

    # A word sees c = sum_p w_p v_p. All that is asked of c is <c, e> = sum_p w_p <v_p, e> and |c|^2 = sum_pq w_p w_q <v_p, v_q>,
    # whose products of regions are the same for all words: c itself is never made, which takes a third of the time.
    products = jnp.einsum("bpf,bqf->bpq", regions, regions, precision=HIGHEST)

    # Computed once more on the way back: else the weights of all pairs would be kept, B x N x T x P.
    @jax.checkpoint
    def with_all_images(text):
        words, mask = text
        similarity = jnp.einsum("bpf,tf->bpt", regions, words, precision=HIGHEST)  # eq. 7
        # First each region chooses among the words (eq. 8), then each word among the regions (eq. 9).
        masked = jnp.where(mask[None, None, :], similarity, NEVER)
        weights = jax.nn.softmax(gamma1 * jax.nn.softmax(masked, axis=2), axis=1)
        inner = jnp.sum(weights * similarity, axis=1)
        squared = jnp.sum(weights * jnp.einsum("bpq,bqt->bpt", products, weights, precision=HIGHEST), axis=1)
        relevance = inner * _inverse_root(squared) * _inverse_root(jnp.sum(jnp.square(words), axis=1))[None]
        return jax.nn.logsumexp(jnp.where(mask[None], gamma2 * relevance, NEVER), axis=1) / gamma2

    return jax.lax.map(
        with_all_images, (words, words_mask), batch_size=block_size if block_size > 1 else None
    ).T


def _negatives(rows: dict, columns: dict) -> jax.Array:
    """Which pairs (image of a row, text of a column) are those of two real pairs that are not equal. bool [B, N]."""
    counts = rows["index"][:, None] != columns["index"][None, :]
    if "real" in rows:
        counts = counts & rows["real"][:, None] & columns["real"][None, :]
    for name in {"image_id", "text_id"} & rows.keys():
        counts = counts & (rows[name][:, None] != columns[name][None, :])
    return counts


def _of_pairs(
    logits: jax.Array, counts: jax.Array, own: jax.Array, axis: Axis
) -> tuple[jax.Array, jax.Array]:
    """-log softmax of each own pair along its row (over texts) and along its column (over images).

    logits: [B, N], of own images with all texts; counts: bool [B, N], the negatives; own: [B], the columns of the own pairs.
    """
    right = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
    others = jnp.where(counts, logits, NEVER)
    columns = parallel.gather(others, axis)[:, own]  # [N, B]
    # log(exp(right) + sum of the others) - right, with all digits where the others are few.
    return tuple(jax.nn.softplus(jax.nn.logsumexp(x, axis=i) - right) for i, x in ((1, others), (0, columns)))


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length one; a zero vector stays. [..., F] -> [..., F]."""
    return x * _inverse_root(jnp.sum(jnp.square(x), axis=-1, keepdims=True))


def _inverse_root(x: jax.Array) -> jax.Array:
    """x ** -0.5 of a squared length, with a finite gradient at zero."""
    return jax.lax.rsqrt(jnp.maximum(x, 1e-16))
