"""Retrieval scores against plain numpy in float64, and what chance is by trying it."""

import numpy as np
import pytest

from mmgen_jax.scores import retrieval
from mmgen_jax.scores.retrieval import Ranks


def gallery(seed, images=20, most=5):
    """Ranks as some model may give them; images with one to `most` texts, in no order."""
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.repeat(np.arange(images), rng.integers(1, most + 1, images)))
    return Ranks(rng.integers(1, 13, images), rng.integers(1, images + 1, len(owner)), owner)


def plain(ranks):
    ranks = np.asarray(ranks, np.float64)
    recalls = [np.mean(ranks <= k) for k in (1, 5, 10)]
    return [*recalls, np.median(ranks), np.mean(1 / ranks)]


def test_scores_by_hand():
    scores = retrieval.score([Ranks(np.array([1, 1, 4, 30]), np.array([2, 1, 9, 11]), np.arange(4))])
    assert scores == pytest.approx(
        {
            "i2t_r1": 0.5, "i2t_r5": 0.75, "i2t_r10": 0.75, "i2t_median": 2.5,
            "i2t_mrr": (1 + 1 + 1 / 4 + 1 / 30) / 4,
            "t2i_r1": 0.25, "t2i_r5": 0.5, "t2i_r10": 0.75, "t2i_median": 5.5,
            "t2i_mrr": (1 / 2 + 1 + 1 / 9 + 1 / 11) / 4,
            "rsum": 3.5,
        }
    )  # fmt: skip


@pytest.mark.parametrize("folds", [1, 3])
def test_scores_are_means_over_folds(folds):
    parts = [gallery(seed, 20 + seed) for seed in range(folds)]
    scores = retrieval.score(parts)
    for name, ranks in (("i2t", [p.image for p in parts]), ("t2i", [p.text for p in parts])):
        expected = np.mean([plain(r) for r in ranks], axis=0)
        found = [scores[f"{name}_{key}"] for key in ("r1", "r5", "r10", "median", "mrr")]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_bootstrap_draws_images_with_their_texts():
    """The same draws, done naively: every text of an image comes as often as the image."""
    parts = [gallery(1, 15), gallery(2, 16)]
    found = retrieval.bootstrap(parts, samples=50, seed=3, level=0.9)
    rng = np.random.default_rng(3)
    drawn = []
    for _ in range(50):
        scores = []
        for part in parts:
            rows = rng.integers(len(part.image), size=len(part.image))
            texts = np.concatenate([np.flatnonzero(part.owner == row) for row in rows])
            scores.append(plain(part.image[rows]) + plain(part.text[texts]))
        drawn.append(np.mean(scores, axis=0))
    low, high = np.percentile(drawn, (5, 95), axis=0)
    names = [f"{side}_{key}" for side in ("i2t", "t2i") for key in ("r1", "r5", "r10", "median", "mrr")]
    for name, *expected in zip(names, low, high, strict=True):
        np.testing.assert_allclose(found[name], expected, rtol=1e-9, err_msg=name)
    assert found == retrieval.bootstrap(parts, samples=50, seed=3, level=0.9)
    assert found.keys() == retrieval.score(parts).keys()
    assert retrieval.bootstrap(parts, samples=50, seed=4) != retrieval.bootstrap(parts, samples=50, seed=3)


def test_the_interval_of_a_sure_thing_is_a_point():
    sure = Ranks(np.ones(9, int), np.ones(9, int), np.arange(9))
    assert set(retrieval.bootstrap([sure], samples=20).values()) == {(1.0, 1.0), (6.0, 6.0)}


def test_chance_is_what_random_embeddings_reach():
    """4,000 random orders; the closed form is within four standard errors."""
    owner = np.repeat(np.arange(12), [1, 2, 5] * 4)
    part = Ranks(np.ones(12, int), np.ones(len(owner), int), owner)
    expected = retrieval.chance([part])
    rng = np.random.default_rng(0)
    found = []
    for _ in range(4000):
        order = rng.permutation(len(owner))
        place = np.empty(len(owner), int)
        place[order] = np.arange(len(owner))
        image = 1 + np.array([place[owner == i].min() for i in range(12)])
        found.append(plain(image))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(len(found))
    for key, value, sigma in zip(("r1", "r5", "r10", "median", "mrr"), mean, error, strict=True):
        if key != "median":
            assert abs(expected[f"i2t_{key}"] - value) < 4 * sigma + 1e-9, key
    # The median of all ranks, not the mean of medians.
    assert abs(expected["i2t_median"] - mean[3]) <= 1
    # A text has one image of twelve.
    assert expected["t2i_r1"] == pytest.approx(1 / 12)
    assert expected["t2i_r10"] == pytest.approx(10 / 12)
    assert expected["t2i_median"] == 6.5
    assert expected["t2i_mrr"] == pytest.approx(np.mean(1 / np.arange(1, 13)))


def test_alignment_and_uniformity():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 8))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    owner = rng.integers(0, 40, 70)
    assert retrieval.alignment(x, x[owner], owner) == 0
    assert retrieval.alignment(x, -x[owner], owner) == pytest.approx(4, rel=1e-6)
    pairs = [(i, j) for i in range(40) for j in range(40) if i != j]
    plain = np.log(np.mean([np.exp(-2 * np.sum((x[i].astype(np.float64) - x[j]) ** 2)) for i, j in pairs]))
    assert retrieval.uniformity(x) == pytest.approx(plain, rel=1e-6)
    assert retrieval.uniformity(np.repeat(x[:1], 30, axis=0)) == pytest.approx(0, abs=1e-6)
    # Of many rows a part is enough; of one there is no pair.
    assert retrieval.uniformity(x, most=30) == pytest.approx(plain, abs=0.1)
    assert retrieval.uniformity(x[:1]) == 0


def test_signature():
    line = retrieval.signature(images=1000, folds=1)
    assert line.startswith("retrieval|ties:pessimistic|images:1000|folds:1|v:")
    with pytest.raises(ValueError, match="separates"):
        retrieval.signature(split="a|b")
