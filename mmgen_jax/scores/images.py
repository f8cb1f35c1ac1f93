"""Scores of generated images by their features: Frechet and kernel distance, manifolds, accuracy, modes, copies."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from mmgen_jax.scores.signature import sign

# Rows that are converted to float64 and multiplied at a time: 32 MB of 2,048 features, long enough for BLAS.
BLOCK = 2048


class TooFewSamples(ValueError):
    """FID of no more samples than features: the covariance is singular and the number mostly says how few they are."""


class Statistics:
    """Mean and covariance of features that come in parts, in float64.

    The parts are merged as Chan, Golub and LeVeque (1983, eq. 2.1) do it, around the mean of what was seen, so that neither the
    split nor the features' offset costs digits: any split over calls and processes agrees to 1e-10.

    Args:
      features: D.
    """

    def __init__(self, features: int):
        self._features = features
        self._count, self._mean = 0, np.zeros(features)
        # The sum of (x - mean)(x - mean)', of which only the upper triangle is kept.
        self._scatter = np.zeros((features, features), order="F")
        self._waiting: list[np.ndarray] = []

    @classmethod
    def of(cls, rows: np.ndarray) -> "Statistics":
        """Those of features [N, D]."""
        return cls(np.shape(rows)[-1]).add(rows)

    @classmethod
    def restore(cls, state: Mapping[str, np.ndarray]) -> "Statistics":
        """The statistics of which `state` is the state."""
        new = cls(len(state["mean"]))
        new._count, new._mean = int(state["count"]), np.array(state["mean"], np.float64)
        new._scatter = np.array(state["scatter"], np.float64, order="F")
        return new

    def add(self, rows: np.ndarray) -> "Statistics":
        """Take features [n, D] in; returns itself.

        Raises:
          ValueError: another shape, or features that are not finite.
        """
        rows = _checked("features", rows)
        if rows.shape[1] != self._features:
            raise ValueError(
                f"These features are {list(rows.shape)}, the statistics are of {self._features}."
            )
        # Few rows at a time wait: a product of few rows would take as long as one of many.
        waiting = sum(map(len, self._waiting))
        if waiting + len(rows) < BLOCK:
            self._waiting.append(rows.copy())
            return self
        self._flush()
        for start in range(0, len(rows), BLOCK):
            self._take(rows[start : start + BLOCK])
        return self

    def merge(self, other: "Statistics") -> "Statistics":
        """Take in what another process has seen; returns itself.

        Raises:
          ValueError: the other has features of another number.
        """
        if other._features != self._features:
            raise ValueError(
                f"Statistics of {other._features} features cannot join those of {self._features}."
            )
        self._flush()
        other._flush()
        if other._count:
            shift = self._join(other._count, other._mean)
            self._scatter += other._scatter
            self._product(shift[None])
        return self

    def state(self) -> dict[str, np.ndarray]:
        """What a process sends others to `restore` and `merge`: "count" [], "mean" [D], the upper half of "scatter" [D, D]."""
        self._flush()
        return {"count": np.float64(self._count), "mean": self._mean.copy(), "scatter": self._scatter.copy()}

    @property
    def count(self) -> int:
        """N, the number of rows so far."""
        return self._count + sum(map(len, self._waiting))

    @property
    def mean(self) -> np.ndarray:
        """Float64 [D]."""
        self._flush()
        return self._mean.copy()

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased one (numpy.cov), float64 [D, D].

        Raises:
          ValueError: fewer than two rows.
        """
        self._flush()
        if self._count < 2:
            raise ValueError(f"A covariance needs two samples or more, there is {self._count}.")
        upper = np.triu(self._scatter) / (self._count - 1)
        return upper + np.triu(upper, 1).T

    def _flush(self) -> None:
        if self._waiting:
            rows, self._waiting = np.concatenate(self._waiting), []
            self._take(rows)

    def _take(self, rows: np.ndarray) -> None:
        """Rows around their own mean and, as one more row, what moves them to the common mean: one product for both."""
        mean = rows.mean(axis=0, dtype=np.float64)
        centred = np.empty((len(rows) + 1, self._features))
        np.subtract(rows, mean, out=centred[:-1])
        centred[-1] = self._join(len(rows), mean)
        self._product(centred)

    def _join(self, count: int, mean: np.ndarray) -> np.ndarray:
        """Count in so many rows of this mean; -> [D], whose square is what the scatter grows by beside the rows' own."""
        total = self._count + count
        shift = mean - self._mean
        weight = (self._count * count / total) ** 0.5
        self._mean += shift * (count / total)
        self._count = total
        return weight * shift

    def _product(self, rows: np.ndarray) -> None:
        """Add rows' rows, its upper triangle, in place (BLAS's symmetric product: half the work of a general one)."""
        from scipy.linalg.blas import dsyrk

        self._scatter = dsyrk(1.0, rows.T, beta=1.0, c=self._scatter, overwrite_c=True)


# --- distances between distributions ---


def fid(real: Statistics, fake: Statistics, *, few: bool = False) -> float:
    """Frechet inception distance (Heusel et al., 2017, eq. 6). Biased: it falls with the number of samples, so state it.

    Args:
      real, fake: of the same features.
      few: compute it also for no more samples than features.

    Raises:
      TooFewSamples: there are no more samples than features, and `few` is not set.
    """
    dimensions = len(real.mean)
    for name, part in (("real", real), ("generated", fake)):
        if part.count <= dimensions and not few:
            raise TooFewSamples(
                f"FID of {part.count} {name} images with {dimensions} features: no more samples than features make their "
                f"covariance singular and the number too large. Take {dimensions + 1} or more (50,000 is usual), features of "
                "fewer dimensions, or KID, which has no such bias; few=True computes it all the same."
            )
    return frechet(real.mean, real.covariance, fake.mean, fake.covariance)


def frechet(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two normal distributions (Dowson and Landau, 1982). [D], [D, D], twice.

    With S1 = L L', the eigenvalues of S1 S2 are those of the symmetric L' S2 L; the L of a singular covariance has as many
    columns as its rank, so the number is finite for any two covariances.
    """
    from scipy.linalg import eigvalsh

    covariances = [np.asarray(x, np.float64) for x in (covariance, other_covariance)]
    factors = [_factor(x) for x in covariances]
    first, second = (0, 1) if factors[0].shape[1] <= factors[1].shape[1] else (1, 0)
    product = factors[first].T @ covariances[second] @ factors[first]
    squares = eigvalsh((product + product.T) / 2) if product.size else np.zeros(0)
    root = np.sqrt(np.maximum(squares, 0)).sum()
    gap = np.asarray(mean, np.float64) - np.asarray(other_mean, np.float64)
    return max(0.0, float(gap @ gap + sum(np.trace(x) for x in covariances) - 2 * root))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """L [D, rank] with L L' = covariance: Cholesky with pivoting, which ends where only rounding is left."""
    from scipy.linalg.lapack import dpstrf

    lower, pivots, rank, _ = dpstrf(covariance, lower=1)
    factor = np.empty((len(covariance), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor


def kid(
    real: np.ndarray, fake: np.ndarray, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Kernel inception distance (Binkowski et al., 2018, section 4): unbiased squared MMD under (x'y / D + 1)^3.

    Args:
      real, fake: features [N, D], [M, D].
      subsets, size: so many times so many of each (at most all) are drawn without repeats.

    Returns:
      kid: the mean over the subsets, which can be below zero; kid_std: their standard deviation.
    """
    real, fake = _pair(real, fake)
    size = min(size, len(real), len(fake))
    if size < 2:
        raise ValueError(
            f"KID needs two images or more on both sides, there are {len(real)} and {len(fake)}."
        )
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        a, b = (rows[rng.choice(len(rows), size, replace=False)] for rows in (real, fake))
        own = sum(
            _kernel(x, x) - np.sum((np.sum(x.astype(np.float64) ** 2, 1) / x.shape[1] + 1) ** 3)
            for x in (a, b)
        )
        values.append(own / (size * (size - 1)) - 2 * _kernel(a, b) / size**2)
    return {"kid": float(np.mean(values)), "kid_std": float(np.std(values))}


def _kernel(a: np.ndarray, b: np.ndarray) -> float:
    """The sum over all pairs."""
    return sum(float(np.sum((x @ y.T / x.shape[1] + 1) ** 3)) for _, x, _, y in _tiles(a, b))


def inception_score(logits: np.ndarray, *, splits: int = 10, seed: int = 0) -> dict[str, float]:
    """exp of the mean KL of p(class | image) to p(class) (Salimans et al., 2016, section 4): 1 .. K.

    Args:
      logits: [N, K]; of the FID papers' Inception those without the last bias (`Inception`'s unbiased_logits).
      splits: parts, drawn at random, of which each is scored on its own.

    Returns:
      inception_score: the mean over the parts; inception_score_std: their standard deviation.
    """
    logits = _checked("logits", logits)
    if len(logits) < splits:
        raise ValueError(f"{len(logits)} images make no {splits} parts: generate more, or take fewer splits.")
    x = logits[np.random.default_rng(seed).permutation(len(logits))].astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    values = []
    for part in np.array_split(x, splits):
        p = np.exp(part)
        marginal = p.mean(axis=0)
        values.append(np.exp(np.sum(p * part, axis=1).mean() - _entropy_sum(marginal)))
    return {"inception_score": float(np.mean(values)), "inception_score_std": float(np.std(values))}


def _entropy_sum(p: np.ndarray) -> float:
    """Sum of p log p, zeros adding nothing."""
    return float(np.sum(p[p > 0] * np.log(p[p > 0])))


# --- neighbours ---


def neighbours(
    rows: np.ndarray, among: np.ndarray, k: int = 1, *, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of `among` [M, D] to each of `rows` [N, D]: (Euclidean distance float64 [N, k], rising; index int [N, k]).

    Args:
      same: both are the same array, and none is its own neighbour.

    Raises:
      ValueError: there are not k.
    """
    rows, among = _pair(rows, among)
    if not 0 < k <= len(among) - same:
        raise ValueError(f"{len(among)} images have no {k} neighbours: give more, or take a smaller k.")
    distance, index = np.full((len(rows), k), np.inf), np.zeros((len(rows), k), int)
    for i, j, squares in _distances(rows, among, same):
        near = np.concatenate([distance[i], squares], axis=1)
        where = np.concatenate([index[i], np.broadcast_to(np.arange(len(among))[j], squares.shape)], axis=1)
        best = np.argpartition(near, k - 1, axis=1)[:, :k]
        distance[i] = np.take_along_axis(near, best, axis=1)
        index[i] = np.take_along_axis(where, best, axis=1)
    order = np.argsort(distance, axis=1, kind="stable")
    return np.sqrt(np.take_along_axis(distance, order, axis=1)), np.take_along_axis(index, order, axis=1)


def manifold(real: np.ndarray, fake: np.ndarray, *, k: int = 3, density_k: int = 5) -> dict[str, float]:
    """How the two sets lie within balls that reach from each image to its k-th neighbour. [N, D], [M, D].

    Args:
      k: of precision and recall; density_k: of density and coverage; as in their papers.

    Returns:
      precision: share of generated images in a ball of a real one; recall: share of real images in a ball of a generated one
      (Kynkaanniemi et al., 2019, eq. 2); density: balls of real images around a generated one, over density_k, 1 where the sets
      are alike and possibly above; coverage: share of balls of real images that hold a generated one (Naeem et al., 2020, eq. 3,
      4).

    Raises:
      ValueError: a set has no more images than neighbours are asked for.
    """
    real, fake = _pair(real, fake)
    near, _ = neighbours(real, real, max(k, density_k), same=True)
    reach, wide = near[:, k - 1] ** 2, near[:, density_k - 1] ** 2
    own = neighbours(fake, fake, k, same=True)[0][:, k - 1] ** 2
    precise, within = np.zeros(len(fake), bool), np.zeros(len(fake))
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for i, j, squares in _distances(fake, real):
        precise[i] |= (squares <= reach[None, j]).any(axis=1)
        recalled[j] |= (squares <= own[i, None]).any(axis=0)
        inside = squares <= wide[None, j]
        within[i] += inside.sum(axis=1)
        covered[j] |= inside.any(axis=0)
    values = {"precision": precise, "recall": recalled, "density": within / density_k, "coverage": covered}
    return {name: float(value.mean()) for name, value in values.items()}


def copy_ratio(samples: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> float:
    """Median distance of samples to their nearest training image, over the same of real images that training did not have.

    Near 1 the samples keep the distance of new images; near 0 they are copies. [N, D], [M, D], [L, D].

    Raises:
      ValueError: most held-out images are in the training data too.
    """
    sample, real = (float(np.median(neighbours(rows, train)[0])) for rows in (samples, held_out))
    # Equal rows are apart by rounding alone.
    if real <= 1e-6 * float(np.sqrt(np.mean(np.sum(np.square(train, dtype=np.float64), axis=1)))):
        raise ValueError(
            "Most held-out images stand in the training data as well: give images that training did not have."
        )
    return sample / real


def _tiles(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray, slice, np.ndarray]]:
    """Blocks of rows of both, float64, every pair of blocks once: no more than a few tens of MB at a time."""
    for start in range(0, len(a), BLOCK):
        i = slice(start, start + BLOCK)
        x = a[i].astype(np.float64)
        for first in range(0, len(b), BLOCK):
            j = slice(first, first + BLOCK)
            yield i, x, j, b[j].astype(np.float64)


def _distances(a: np.ndarray, b: np.ndarray, same: bool = False) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Squared distances of a block of rows of `a` to one of `b`; with `same` infinite to oneself."""
    for i, x, j, y in _tiles(a, b):
        squares = x @ y.T
        squares *= -2
        squares += np.sum(x**2, axis=1)[:, None]
        squares += np.sum(y**2, axis=1)[None, :]
        np.maximum(squares, 0, out=squares)
        if same and i == j:
            np.fill_diagonal(squares, np.inf)
        yield i, j, squares


# --- do samples show what they should? ---


def classification_accuracy(
    fake: np.ndarray,
    fake_label: np.ndarray,
    real: np.ndarray,
    real_label: np.ndarray,
    *,
    c: float = 1.0,
    max_iter: int = 1000,
) -> float:
    """Classification accuracy score (Ravuri and Vinyals, 2019): share of real images that a classifier of samples names rightly.

    The classifier is a logistic regression on standardised features, in place of the paper's ResNet on pixels.

    Args:
      fake, real: features [N, D], [M, D]; fake_label, real_label: the classes asked for, and the true ones: int [N], [M].
      c: inverse strength of the penalty; max_iter: of L-BFGS.

    Raises:
      ValueError: samples of one class only.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fake, real = _pair(fake, real)
    if len(np.unique(fake_label)) < 2:
        raise ValueError("The samples are all of one class: generate samples of two classes or more.")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=max_iter))
    return float(np.mean(model.fit(fake, fake_label).predict(real) == real_label))


def r_precision(
    image: np.ndarray,
    text: np.ndarray,
    *,
    caption: np.ndarray | None = None,
    mismatched: int = 99,
    seed: int = 0,
) -> float:
    """Share of images that are nearer (by cosine) to their text than to others drawn at random (Xu et al., 2018, section 4.1).

    Args:
      image, text: embeddings [N, F], text i that of image i.
      caption: int [N], equal where texts are the same, which never stand against each other; None: they all differ.
      mismatched: how many others; as near as the right one counts as nearer.

    Raises:
      ValueError: a text has not so many others.
    """
    image, text = (_unit(name, x) for name, x in (("image", image), ("text", text)))
    _same_rows(image, text)
    caption = np.arange(len(text)) if caption is None else np.asarray(caption)
    rng = np.random.default_rng(seed)
    hits = 0
    for i, row in enumerate(image):
        others = np.flatnonzero(caption != caption[i])
        if len(others) < mismatched:
            raise ValueError(
                f"A text has {len(others)} others, {mismatched} are asked for: generate from more captions, or lower mismatched."
            )
        drawn = rng.choice(others, mismatched, replace=False)
        # Summed row by row, and not by BLAS, so that equal texts are equally near to the last bit.
        near = np.sum(text[[i, *drawn]] * row[None], axis=1)
        hits += bool(near[0] > near[1:].max(initial=-np.inf))
    return hits / len(image)


def clip_score(image: np.ndarray, text: np.ndarray) -> float:
    """Mean of 100 max(cos, 0) of images and their texts (Hessel et al., 2021, eq. 1, with 100 for 2.5). [N, F], [N, F]."""
    image, text = (_unit(name, x) for name, x in (("image", image), ("text", text)))
    _same_rows(image, text)
    return float(100 * np.maximum(np.sum(image * text, axis=1), 0).mean())


# --- toy sets, whose truth is known ---


def gaussian_modes(samples: np.ndarray, modes: np.ndarray, std: float) -> dict[str, float]:
    """What samples [N, 2] of a mixture of Gaussians around `modes` [M, 2] found (Srivastava et al., 2017, section 4.1).

    Returns:
      modes: number of modes with a sample within 3 std; high_quality: share of samples within 3 std of a mode; kl: of these
      samples' modes from the uniform distribution, 0 .. log M, infinite where there are none.
    """
    samples, modes = _pair(samples, modes)
    distance, index = neighbours(samples, modes)
    close = distance[:, 0] <= 3 * std
    found = _modes(index[close, 0], np.full(len(modes), 1 / len(modes)))
    return {**found, "high_quality": float(close.mean())}


def digit_modes(
    label: np.ndarray, real_label: np.ndarray | None = None, *, classes: int = 10
) -> dict[str, float]:
    """What stacked digits found of the classes ** L combinations (Srivastava et al., 2017, section 4.1.2).

    Args:
      label: int [N, L], what a classifier reads in each channel.
      real_label: int [M, L] of the data; None: every combination is equally likely.

    Returns:
      modes: number of combinations found; kl: of the samples' combinations from the data's, infinite where the samples have one
      that the data lacks.
    """
    kinds = classes ** np.shape(label)[1]
    if real_label is None:
        expected = np.full(kinds, 1 / kinds)
    else:
        expected = np.bincount(_combination(real_label, classes), minlength=kinds) / len(real_label)
    return _modes(_combination(label, classes), expected)


def _combination(label: np.ndarray, classes: int) -> np.ndarray:
    """Several digits as one number. [N, L] -> [N]."""
    label = np.asarray(label)
    if label.size and (label.min() < 0 or label.max() >= classes):
        raise ValueError(f"Labels lie in {label.min()} .. {label.max()}, but there are {classes} classes.")
    return np.ravel_multi_index(tuple(label.T), (classes,) * label.shape[1])


def _modes(which: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Number of modes in `which` [N], and their divergence from the expected shares [M]."""
    count = np.bincount(which, minlength=len(expected))
    found = count > 0
    if not found.any():
        return {"modes": 0.0, "kl": float("inf")}
    share = count[found] / len(which)
    with np.errstate(divide="ignore"):
        kl = max(0.0, float(np.sum(share * (np.log(share) - np.log(expected[found])))))
    return {"modes": float(found.sum()), "kl": kl}


# --- how far a number can be trusted ---


def bootstrap(
    score: Callable[..., float],
    *groups: np.ndarray,
    samples: int = 100,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """An interval (low, high) for score(*groups), from groups drawn again with repeats, each on its own.

    Repeats make a distance between sets larger (FID, KID), so the drawn numbers' spread around their median is laid around the
    score.

    Args:
      score: groups -> number; of rows that belong together take the array of their indices as the group.
    """
    rng = np.random.default_rng(seed)
    drawn = [
        score(*(group[rng.integers(len(group), size=len(group))] for group in groups)) for _ in range(samples)
    ]
    low, middle, high = np.percentile(drawn, (50 * (1 - level), 50, 50 * (1 + level)))
    value = score(*groups)
    return float(value + low - middle), float(value + high - middle)


def floor(
    score: Callable[[np.ndarray, np.ndarray], float], real: np.ndarray, *, n: int | None = None, seed: int = 0
) -> float:
    """score(real, fake) of real images alone: `n` of them (half) stand for samples, the others for the real ones.

    FID depends on the number of images: give as many as the samples are, and compare with the score against as many others.
    """
    n = len(real) // 2 if n is None else n
    if not 0 < n < len(real):
        raise ValueError(f"{n} of {len(real)} real images cannot stand for samples beside the others.")
    order = np.random.default_rng(seed).permutation(len(real))
    return score(real[order[n:]], real[order[:n]])


def signature(
    kind: str, *, features: str, weights: str, n: int, resize: str, seed: int, **how: object
) -> str:
    """How a number was made: "fid|features:inception|weights:0fa1b2|n:5000|resize:tf1|seed:0|v:0.1.0"."""
    return sign(kind, features=features, weights=weights, n=n, resize=resize, seed=seed, **how)


# --- what comes in ---


def _checked(name: str, rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"{name} must be [N, D] with N, D > 0, and are {list(rows.shape)}.")
    with np.errstate(all="ignore"):
        total = np.sum(
            rows, dtype=np.float64
        )  # finite in all but broken cases, and quicker than asking every number
    if not np.isfinite(total) and (broken := ~np.isfinite(rows).all(axis=1)).any():
        raise ValueError(
            f"{name}: {broken.sum()} of {len(rows)} rows (the first is number {broken.argmax()}) are not finite: has the "
            "generator diverged, or is the network that gave them without its weights?"
        )
    return rows


def _pair(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, fake = _checked("real features", real), _checked("generated features", fake)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"Real features have {real.shape[1]} dimensions, generated ones {fake.shape[1]}: take both from one network."
        )
    return real, fake


def _unit(name: str, rows: np.ndarray) -> np.ndarray:
    rows = _checked(name, rows).astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _same_rows(image: np.ndarray, text: np.ndarray) -> None:
    if image.shape != text.shape:
        raise ValueError(
            f"Embeddings of images {list(image.shape)} and of their texts {list(text.shape)} differ in shape."
        )
