"""Scores of images against scipy and plain loops; bounds, seeds, singular covariances, what is an error."""

import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist

from mmgen_jax.scores import images
from mmgen_jax.scores.images import Statistics


def features(n, d, seed=0, shift=0.0, scale=1.0):
    """Correlated, as networks' features are."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(d, d)) * np.logspace(0, -2, d)
    return (shift + scale * rng.normal(size=(n, d)) @ mix).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that small sets have several."""
    monkeypatch.setattr(images, "BLOCK", 7)


# --- statistics ---


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_any_split_gives_numpys_statistics(offset, small_blocks):
    rows = features(50, 6).astype(np.float64) + offset
    for cuts in ([], [1], [3, 30], [10, 11, 12, 49], list(range(1, 50))):
        parts = np.split(rows, cuts)
        one = Statistics(6)
        for part in parts:
            one.add(part)
        several = Statistics(6)
        for part in parts:
            several.merge(Statistics.restore(Statistics(6).add(part).state()))
        for found in (one, several):
            assert found.count == 50
            np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-10)
            expect = np.cov(rows, rowvar=False)
            assert np.abs(found.covariance - expect).max() < 1e-10 * np.abs(expect).max()


def test_a_process_without_images_changes_nothing(small_blocks):
    rows = features(20, 4)
    found = (
        Statistics(4)
        .merge(Statistics.of(rows))
        .merge(Statistics(4))
        .merge(Statistics.restore(Statistics(4).state()))
    )
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-12, atol=1e-12)


def test_statistics_can_be_read_between_additions(small_blocks):
    rows = features(30, 4)
    found = Statistics(4)
    for i in range(0, 30, 2):
        found.add(rows[i : i + 2])
        np.testing.assert_allclose(found.mean, rows[: i + 2].mean(0, dtype=np.float64), rtol=1e-10)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-10)


def test_rows_that_wait_are_not_the_callers():
    rows = features(5, 3)
    found = Statistics(3).add(rows)
    expect = rows.mean(0, dtype=np.float64)
    rows[:] = 0
    np.testing.assert_allclose(found.mean, expect)


def test_errors_of_statistics():
    with pytest.raises(ValueError, match=r"features must be \[N, D\] with N, D > 0, and are \[3\]"):
        Statistics(3).add(np.zeros(3))
    with pytest.raises(ValueError, match=r"\[2, 4\], the statistics are of 3"):
        Statistics(3).add(np.zeros((2, 4)))
    with pytest.raises(
        ValueError, match=r"1 of 2 rows \(the first is number 1\) are not finite: has the generator diverged"
    ):
        Statistics(2).add(np.array([[0.0, 1.0], [np.nan, 1.0]]))
    with pytest.raises(ValueError, match="Statistics of 3 features cannot join those of 2"):
        Statistics(2).merge(Statistics(3))
    with pytest.raises(ValueError, match="needs two samples or more, there is 1"):
        _ = Statistics.of(np.zeros((1, 2))).covariance


# --- FID ---


def plain_frechet(a, b):
    """By scipy's root of the product, in float64."""
    means, covariances = zip(
        *((x.mean(0, dtype=np.float64), np.atleast_2d(np.cov(x, rowvar=False))) for x in (a, b)),
        strict=True,
    )
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)


@pytest.mark.parametrize("d, shift, scale", [(1, 0.5, 1.0), (8, 0.0, 1.5), (64, 0.1, 1.0), (64, 0.0, 1.0)])
def test_fid_is_scipys(d, shift, scale):
    a, b = features(500, d), features(400, d, 1, shift, scale)
    expect = plain_frechet(a, b)
    got = images.fid(Statistics.of(a), Statistics.of(b))
    assert got == pytest.approx(expect, rel=1e-6)
    assert images.fid(Statistics.of(b), Statistics.of(a)) == pytest.approx(got, rel=1e-9)


def test_fid_of_normal_distributions_by_hand():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.5, 2, (2, 20))
    got = images.frechet(np.zeros(20), np.diag(a**2), np.full(20, 0.3), np.diag(b**2))
    assert got == pytest.approx(20 * 0.09 + np.sum((a - b) ** 2), rel=1e-12)


@pytest.mark.parametrize("ranks", [(3, 3), (3, 10), (10, 3), (10, 0), (0, 0), (1, 1)])
def test_singular_covariances_stay_finite_and_right(ranks):
    """Two random subspaces: the trace of the root is the nuclear norm of the factors' product."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(10, rank)) for rank in ranks)
    got = images.frechet(np.zeros(10), a @ a.T, np.zeros(10), b @ b.T)
    root = np.linalg.svd(a.T @ b, compute_uv=False).sum() if min(ranks) else 0.0
    assert got == pytest.approx(np.sum(a**2) + np.sum(b**2) - 2 * root, rel=1e-9, abs=1e-12)
    assert images.frechet(np.zeros(10), a @ a.T, np.zeros(10), a @ a.T) == pytest.approx(
        0, abs=1e-6 * np.sum(a**2) + 1e-12
    )


def test_fid_of_a_set_and_itself_is_zero():
    found = Statistics.of(features(300, 32))
    assert 0 <= images.fid(found, found) < 1e-8 * np.trace(found.covariance)


def test_too_few_samples_for_fid():
    few, many = Statistics.of(features(30, 30)), Statistics.of(features(100, 30, 1))
    for pair, which in (((few, many), "real"), ((many, few), "generated")):
        with pytest.raises(
            images.TooFewSamples,
            match=f"30 {which} images with 30 features.*Take 31 or more.*or KID.*few=True",
        ):
            images.fid(*pair)
        assert np.isfinite(images.fid(*pair, few=True))
    assert images.fid(many, Statistics.of(features(31, 30))) > 0


# --- KID, Inception score ---


def test_kid_is_a_plain_loop(small_blocks):
    real, fake = features(30, 4), features(20, 4, 1, 0.3)
    rng, values = np.random.default_rng(5), []
    kernel = lambda x, y: (float(np.dot(x.astype(np.float64), y)) / 4 + 1) ** 3
    for _ in range(3):
        a, b = (x[rng.choice(len(x), 15, replace=False)] for x in (real, fake))
        own = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(15) for j in range(15) if i != j)
        values.append(own / (15 * 14) - 2 * sum(kernel(x, y) for x in a for y in b) / 15**2)
    got = images.kid(real, fake, subsets=3, size=15, seed=5)
    assert got["kid"] == pytest.approx(np.mean(values), rel=1e-9)
    assert got["kid_std"] == pytest.approx(np.std(values), rel=1e-9)


def test_kid_has_no_bias_and_a_seed():
    """Between halves of one distribution its mean is zero, however few they are; FID's is not."""
    draws = [
        images.kid(features(40, 8, 2 * i), features(40, 8, 2 * i + 1), subsets=1)["kid"] for i in range(200)
    ]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / 200**0.5
    a, b = features(100, 8), features(100, 8, 1, 1.0)
    assert (
        images.kid(a, b, size=50, seed=1)
        == images.kid(a, b, size=50, seed=1)
        != images.kid(a, b, size=50, seed=2)
    )
    with pytest.raises(ValueError, match="two images or more on both sides, there are 1 and 100"):
        images.kid(a[:1], b)
    with pytest.raises(ValueError, match="8 dimensions, generated ones 4: take both from one network"):
        images.kid(a, b[:, :4])


def test_inception_score():
    sure = 1000.0 * np.eye(5, dtype=np.float32)[np.arange(100) % 5]
    assert images.inception_score(sure, splits=1)["inception_score"] == pytest.approx(5)
    assert images.inception_score(np.zeros((100, 5)))["inception_score"] == pytest.approx(1)
    logits = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    values = []
    for part in np.split(logits[np.random.default_rng(3).permutation(60)].astype(np.float64), 4):
        p = np.exp(part) / np.exp(part).sum(1, keepdims=True)
        values.append(np.exp(np.mean([np.sum(row * np.log(row / p.mean(0))) for row in p])))
    got = images.inception_score(logits, splits=4, seed=3)
    assert got == pytest.approx({"inception_score": np.mean(values), "inception_score_std": np.std(values)})
    with pytest.raises(ValueError, match="5 images make no 10 parts: generate more, or take fewer splits"):
        images.inception_score(logits[:5])


# --- neighbours ---


@pytest.mark.parametrize("same", [False, True])
def test_neighbours_are_scipys(same, small_blocks):
    a = features(30, 5)
    b = a if same else features(23, 5, 1)
    distance = cdist(a.astype(np.float64), b.astype(np.float64))
    if same:
        np.fill_diagonal(distance, np.inf)
    order = np.argsort(distance, axis=1)[:, :4]
    found, index = images.neighbours(a, b, 4, same=same)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(found, np.take_along_axis(distance, order, 1), rtol=1e-6)


def test_too_few_neighbours():
    rows = features(4, 3)
    assert images.neighbours(rows, rows, 4)[0].shape == (4, 4)
    with pytest.raises(ValueError, match="4 images have no 4 neighbours: give more, or take a smaller k"):
        images.neighbours(rows, rows, 4, same=True)
    with pytest.raises(ValueError, match="no 0 neighbours"):
        images.neighbours(rows, rows, 0)


def test_manifold_is_a_plain_loop(small_blocks):
    real, fake = features(25, 4), features(18, 4, 1, 0.5, 0.7)
    cross, real_own, fake_own = cdist(real, fake), cdist(real, real), cdist(fake, fake)
    reach = lambda own, k: np.sort(own, axis=1)[:, k]
    three, five, fakes = reach(real_own, 3), reach(real_own, 5), reach(fake_own, 3)
    expect = {
        "precision": np.mean([any(cross[i, j] <= three[i] for i in range(25)) for j in range(18)]),
        "recall": np.mean([any(cross[i, j] <= fakes[j] for j in range(18)) for i in range(25)]),
        "density": np.mean([sum(cross[i, j] <= five[i] for i in range(25)) / 5 for j in range(18)]),
        "coverage": np.mean([any(cross[i, j] <= five[i] for j in range(18)) for i in range(25)]),
    }
    assert images.manifold(real, fake) == pytest.approx(expect)


def test_bounds_of_the_manifold():
    real = features(60, 4)
    assert images.manifold(real, real) == pytest.approx(
        {"precision": 1.0, "recall": 1.0, "density": 1.2, "coverage": 1.0}, abs=0.15
    )
    far = images.manifold(real, real + np.float32(1000))
    assert set(far.values()) == {0.0}
    one = images.manifold(real, np.repeat(real[:1], 60, axis=0))  # collapsed: precise, and recalls nothing
    assert one["precision"] == 1 and one["recall"] <= 2 / 60 and one["coverage"] < 0.3


def test_copies_have_a_small_ratio():
    train, held_out = features(200, 6), features(100, 6, 1)
    copies = train[:50] + 0.01 * features(50, 6, 2)
    assert images.copy_ratio(copies, train, held_out) < 0.05
    assert images.copy_ratio(features(100, 6, 3), train, held_out) == pytest.approx(1, abs=0.15)
    with pytest.raises(ValueError, match="Most held-out images stand in the training data"):
        images.copy_ratio(copies, train, train[20:80])


# --- what samples show ---


def test_classification_accuracy():
    rng = np.random.default_rng(0)
    label = np.arange(90) % 3
    centres = 6 * np.eye(3)
    fake, real = (centres[label] + rng.normal(size=(90, 3)) for _ in range(2))
    assert images.classification_accuracy(fake, label, real, label) > 0.95
    wrong = images.classification_accuracy(fake, (label + 1) % 3, real, label)
    assert wrong < 0.05
    with pytest.raises(ValueError, match="all of one class"):
        images.classification_accuracy(fake, np.zeros(90, int), real, label)


def test_r_precision():
    text = features(120, 16)
    assert images.r_precision(text, text) == 1
    assert images.r_precision(text, -text) == 0
    assert images.r_precision(text, np.ones_like(text)) == 0  # all as near
    others = [images.r_precision(features(120, 16, 1), text, mismatched=9, seed=seed) for seed in (0, 0, 1)]
    assert others[0] == others[1] != others[2]
    assert others[0] == pytest.approx(0.1, abs=0.1)
    # Two images of each caption: the other one's text is the same and never stands against it.
    twice = np.repeat(text[:100], 2, axis=0)
    assert images.r_precision(twice, twice, caption=np.repeat(np.arange(100), 2)) == 1
    with pytest.raises(
        ValueError, match="A text has 9 others, 99 are asked for: generate from more captions"
    ):
        images.r_precision(text[:10], text[:10])
    with pytest.raises(ValueError, match=r"images \[120, 16\] and of their texts \[10, 16\] differ"):
        images.r_precision(text, text[:10])


def test_clip_score():
    image = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    text = np.array([[5.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    assert images.clip_score(image, text) == pytest.approx(100 * (1 + 0.5**0.5 + 0) / 3)


# --- toy sets ---


def test_modes_of_gaussians():
    modes = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    rng = np.random.default_rng(0)
    samples = np.repeat(modes, 500, axis=0) + 0.05 * rng.normal(size=(2000, 2))
    got = images.gaussian_modes(samples, modes, 0.05)
    assert got["modes"] == 4 and got["kl"] < 1e-3
    assert got["high_quality"] == pytest.approx(1 - np.exp(-4.5), abs=0.01)  # P(chi < 3) in two dimensions
    assert images.gaussian_modes(samples[:500], modes, 0.05)["kl"] == pytest.approx(np.log(4))
    assert images.gaussian_modes(samples + 2, modes, 0.05) == {"modes": 0, "kl": np.inf, "high_quality": 0}


def test_modes_of_stacked_digits():
    every = np.stack(np.meshgrid(*[np.arange(10)] * 3, indexing="ij"), -1).reshape(-1, 3)
    assert images.digit_modes(every) == {"modes": 1000, "kl": pytest.approx(0, abs=1e-12)}
    half = images.digit_modes(every[:500])
    assert half == {"modes": 500, "kl": pytest.approx(np.log(2))}
    assert images.digit_modes(every[:500], every[:500])["kl"] == pytest.approx(0, abs=1e-12)
    assert images.digit_modes(every[:500], np.concatenate([every, every[:500]]))["kl"] == pytest.approx(
        np.log(1.5)
    )
    assert images.digit_modes(every, every[:500])["kl"] == np.inf
    with pytest.raises(ValueError, match=r"Labels lie in 0 \.\. 10, but there are 10 classes"):
        images.digit_modes(every + [0, 0, 1])


# --- trust ---


def test_bootstrap_covers_and_has_a_seed():
    """Nine intervals of ten for a mean's spread hold the truth; the same seed gives the same one."""
    held = 0
    for seed in range(60):
        right = np.random.default_rng(seed).random(200) < 0.7
        low, high = images.bootstrap(np.mean, right, samples=200, seed=seed, level=0.9)
        held += low <= 0.7 <= high
    assert held >= 45
    assert images.bootstrap(np.mean, right, seed=1) == images.bootstrap(np.mean, right, seed=1)


def test_bootstrap_lies_around_fid():
    real, fake = features(200, 4), features(200, 4, 1, 0.3)
    score = lambda a, b: images.fid(Statistics.of(a), Statistics.of(b))
    low, high = images.bootstrap(score, real, fake, samples=30)
    assert low < score(real, fake) < high


def test_floor_is_of_real_images_alone():
    real = features(300, 4)
    seen = []

    def score(a, b):
        seen.append((len(a), len(b)))
        assert not set(map(tuple, a)) & set(map(tuple, b))
        return images.fid(Statistics.of(a), Statistics.of(b))

    halves = images.floor(score, real)
    assert 0 < halves < images.fid(Statistics.of(real), Statistics.of(features(300, 4, 1, 1.0)))
    assert images.floor(score, real, n=100) != halves == images.floor(score, real)
    assert seen == [(150, 150), (200, 100), (150, 150)]
    with pytest.raises(ValueError, match="300 of 300 real images cannot stand for samples"):
        images.floor(score, real, n=300)


def test_signature_tells_numbers_apart():
    line = images.signature(
        "fid", features="inception", weights="0fa1", n=5000, resize="tf1", seed=0, real="val"
    )
    assert line.startswith("fid|features:inception|weights:0fa1|n:5000|resize:tf1|seed:0|real:val|v:")
