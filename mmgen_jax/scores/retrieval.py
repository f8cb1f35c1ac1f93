"""Retrieval scores: recall at 1, 5, 10, median and mean reciprocal rank; intervals, chance levels; alignment and uniformity."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mmgen_jax.scores.signature import sign

CUTS = (1, 5, 10)


class Ranks(NamedTuple):
    """What the queries of one gallery found: the rank, from 1, of each one's best right answer.

    Attributes:
      image: int [I], of each image's best text among all texts.
      text: int [T], of each text's image among all images.
      owner: int [T], the position 0 .. I - 1 of each text's image.
    """

    image: np.ndarray
    text: np.ndarray
    owner: np.ndarray


def score(folds: Sequence[Ranks]) -> dict[str, float]:
    """Scores of both directions; of several galleries (COCO's 1k protocol has five of 1,000 images) the mean.

    Returns:
      i2t_r1, i2t_r5, i2t_r10: the share of images with a right text among the first 1, 5, 10; i2t_median: their median rank;
      i2t_mrr: the mean of 1 / rank; t2i_...: the same of texts that ask for their image; rsum: the sum of the six recalls
      (at most 6).
    """
    return _mean(
        _both(np.unique(fold.image, return_counts=True), np.unique(fold.text, return_counts=True))
        for fold in folds
    )


def bootstrap(
    folds: Sequence[Ranks], samples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """An interval (low, high) for every score, by resampling the images of each gallery; texts are drawn with their image.

    Who asks is drawn; who answers stays, or a gallery with an image twice would be another task.
    """
    rng = np.random.default_rng(seed)
    found = [
        (np.unique(fold.image, return_inverse=True), np.unique(fold.text, return_inverse=True), fold.owner)
        for fold in folds
    ]

    def draw(image, text, owner):
        images = len(image[1])
        times = np.bincount(rng.integers(images, size=images), minlength=images)
        weights = np.bincount(image[1], times), np.bincount(text[1], times[owner])
        return _both((image[0], weights[0]), (text[0], weights[1]))

    drawn = [_mean(draw(*fold) for fold in found) for _ in range(samples)]
    edges = (50 * (1 - level), 50 * (1 + level))
    return {name: tuple(np.percentile([row[name] for row in drawn], edges).tolist()) for name in drawn[0]}


def chance(folds: Sequence[Ranks]) -> dict[str, float]:
    """What random embeddings reach on the same galleries: the expected recalls and mrr, and the median of all ranks."""
    return _mean(
        _both(
            _random(np.bincount(fold.owner, minlength=len(fold.image)), len(fold.text)),
            _random(np.ones(len(fold.text), int), len(fold.image)),
        )
        for fold in folds
    )


def alignment(image: np.ndarray, text: np.ndarray, owner: np.ndarray) -> float:
    """Mean squared distance of a text to its image (Wang and Isola, 2020, section 4.1, alpha = 2); 0 where they are the same.

    image: [I, F], text: [T, F], both of unit length; owner: as in `Ranks`.
    """
    return float(np.mean(np.sum((image[owner].astype(np.float64) - text) ** 2, axis=1)))


def uniformity(rows: np.ndarray, most: int = 4096) -> float:
    """log of the mean of exp(-2 d^2) over pairs of rows (Wang and Isola, 2020, section 4.1, t = 2): 0 where all are the same.

    rows: [N, F] of unit length; of more than `most` so many are taken, evenly spaced. Spread evenly over a sphere of many
    dimensions they come near to -4, the square of the distance being 2 on average.
    """
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int)].astype(np.float64)
    if len(rows) < 2:
        return 0.0
    squares = np.sum(rows**2, axis=1)
    kernel = np.exp(-2 * np.maximum(squares[:, None] + squares[None, :] - 2 * rows @ rows.T, 0))
    pairs = kernel.sum() - np.trace(kernel)
    return float(np.log(pairs / (len(rows) * (len(rows) - 1))))


def signature(**how: object) -> str:
    """How a number was made: signature(images=1000) is "retrieval|ties:pessimistic|images:1000|v:0.1.0"."""
    return sign("retrieval", ties="pessimistic", **how)


# A distribution of ranks is (ranks in rising order, their weights): counts, drawn counts, or probabilities.
Distribution = tuple[np.ndarray, np.ndarray]


def _both(image: Distribution, text: Distribution) -> dict[str, float]:
    scores = {}
    for name, (rank, weight) in (("i2t", image), ("t2i", text)):
        total = weight.sum()
        scores.update({f"{name}_r{cut}": float(weight[rank <= cut].sum() / total) for cut in CUTS})
        # Between two ranks it is their mean, and a sum of probabilities rounds.
        below = np.cumsum(weight) / total
        middle = (np.searchsorted(below, 0.5 - 1e-9), np.searchsorted(below, 0.5 + 1e-9))
        scores[f"{name}_median"] = float(np.mean(rank[list(middle)]))
        scores[f"{name}_mrr"] = float((weight / rank).sum() / total)
    scores["rsum"] = sum(scores[f"{name}_r{cut}"] for name in ("i2t", "t2i") for cut in CUTS)
    return scores


def _random(positives: np.ndarray, keys: int) -> Distribution:
    """Ranks in a random order of the keys, for queries with so many positives."""
    weights = np.zeros(keys)
    rank = np.arange(1, keys + 1)
    for count, queries in zip(*np.unique(positives, return_counts=True), strict=True):
        # P(rank > r) is that none of the first r keys is positive.
        later = np.cumprod(np.maximum(keys - count - rank + 1, 0) / (keys - rank + 1))
        weights += queries * -np.diff(later, prepend=1.0)
    return rank, weights


def _mean(scores: Iterable[dict[str, float]]) -> dict[str, float]:
    scores = list(scores)
    return {name: float(np.mean([fold[name] for fold in scores])) for name in scores[0]}
