"""Caption scores as the COCO evaluation prints them: BLEU-1..4, ROUGE-L, CIDEr-D; intervals, floor, ceiling.

    statistics = References(references).compare(hypotheses)
    statistics.score(), statistics.score_each(), statistics.bootstrap()

`References` cuts and counts the references once; `score`, `score_each` and `bootstrap` do it in one call.
Every number equals coco-caption's (pycocoevalcap) to 1e-9 and has its scale: BLEU and ROUGE-L lie in 0..1,
CIDEr-D in 0..10. Papers print them times 100.
"""

import contextlib
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mmgen_jax.core.registry import choose
from mmgen_jax.scores.ptb import tokenize
from mmgen_jax.scores.signature import sign

ORDERS = 4  # n-grams of one to four words, in BLEU and in CIDEr
BETA = 1.2  # of ROUGE-L: recall counts more than precision
SIGMA = 6.0  # of CIDEr-D: words that two captions may differ in length
NAMES = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider")

Tokens = list[str]
Ngrams = Counter[tuple[str, ...]]  # how often each n-gram, of any order, occurs

_zip = functools.partial(zip, strict=True)


# Counting


def _ngrams(tokens: Tokens) -> Ngrams:
    """All n-grams of one to ORDERS words, counted."""
    words = " ".join(tokens).split()  # as coco-caption: "1\u00a01/2" is one token of PTB, but two words here
    return Counter(
        tuple(words[start : start + n]) for n in range(1, ORDERS + 1) for start in range(len(words) - n + 1)
    )


def _per_order(ngrams: Ngrams) -> np.ndarray:
    """Sum the counts by the n-grams' order. -> [ORDERS]."""
    sums = np.zeros(ORDERS)
    for ngram, count in ngrams.items():
        sums[len(ngram) - 1] += count
    return sums


def _length(ngrams: Ngrams) -> int:
    """The number of words, from the 1-grams' counts."""
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 1)


# BLEU


def _closest(lengths: Sequence[int], length: int) -> int:
    """The reference length that is closest to the hypothesis' length; of two as close, the shorter one."""
    return min(lengths, key=lambda candidate: (abs(candidate - length), candidate))


def _bleu(matches: np.ndarray, guesses: np.ndarray, length: np.ndarray, closest: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-ORDERS from counts, of one image or summed over many (Papineni et al. 2002, 2.3).

    matches, guesses: [..., ORDERS], the hypothesis' n-grams that a reference has (clipped), and all of them;
    length, closest: [...], words of the hypothesis and of the reference closest in length. -> [..., ORDERS].
    The two tiny numbers are coco-caption's, against division by zero.
    """
    precisions = (matches + 1e-15) / (guesses + 1e-9)
    means = np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (length + 1e-15) / (closest + 1e-9)
    brevity = np.exp(1 - 1 / np.minimum(ratio, 1))  # 1 where the hypothesis is not too short
    return means * brevity[..., None]


# ROUGE-L


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence, row by row."""
    above = [0] * (len(b) + 1)
    for word in a:
        row = [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        above = row
    return above[-1]


def _rouge_l(hypothesis: Tokens, references: list[Tokens]) -> float:
    """ROUGE-L (Lin 2004, section 3.1): F of the best precision and the best recall over the references.

    An empty caption counts as one empty word, as in coco-caption, so two empty captions agree.
    """
    hypothesis = hypothesis or [""]
    common = [(_common(hypothesis, reference or [""]), len(reference or [""])) for reference in references]
    precision = max(length for length, _ in common) / len(hypothesis)
    recall = max(length / total for length, total in common)
    if precision == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


# CIDEr-D


@dataclass(frozen=True)
class _Vector:
    """A caption as CIDEr sees it: one TF-IDF vector for each order of n-grams."""

    weights: dict[tuple[str, ...], float]
    norms: list[float]
    length: int  # coco-caption measures it in 2-grams


def _tf_idf(ngrams: Ngrams, documents: Counter, images: int) -> _Vector:
    """Weigh n-grams by how rare they are among the images' references (Vedantam et al. 2015, eq. 1).

    documents: in the references of how many images each n-gram occurs.
    """
    weights, squares, length = {}, [0.0] * ORDERS, 0
    for ngram, count in ngrams.items():
        weight = count * (math.log(images) - math.log(max(1, documents[ngram])))
        weights[ngram] = weight
        squares[len(ngram) - 1] += weight**2
        length += count * (len(ngram) == 2)
    return _Vector(weights, [math.sqrt(square) for square in squares], length)


def _cider_d(hypothesis: _Vector, references: list[_Vector]) -> float:
    """CIDEr-D (Vedantam et al. 2015, section 5): clipped cosine, Gaussian penalty on length, times 10."""
    total = 0.0
    for reference in references:
        dots = [0.0] * ORDERS
        for ngram, weight in hypothesis.weights.items():
            other = reference.weights.get(ngram, 0.0)
            dots[len(ngram) - 1] += min(weight, other) * other
        norms = (a * b for a, b in _zip(hypothesis.norms, reference.norms))
        cosines = sum(dot / norm for dot, norm in _zip(dots, norms) if norm)
        total += cosines / ORDERS * math.exp(-((hypothesis.length - reference.length) ** 2) / (2 * SIGMA**2))
    return 10 * total / len(references)


# References and statistics


@dataclass(frozen=True)
class Statistics:
    """What the scores of N images are made of; every score is a function of sums over images.

    matches, guesses: [N, ORDERS]; length, closest: [N] (see `_bleu`); rouge_l, cider: [N], per image.
    """

    matches: np.ndarray
    guesses: np.ndarray
    length: np.ndarray
    closest: np.ndarray
    rouge_l: np.ndarray
    cider: np.ndarray

    def __len__(self) -> int:
        return len(self.length)

    def score(self) -> dict[str, float]:
        """The scores of the whole set, under NAMES."""
        return dict(_zip(NAMES, self._weighted(np.ones(len(self))).tolist()))

    def score_each(self) -> dict[str, np.ndarray]:
        """The scores of every image, [N], under NAMES."""
        bleu = _bleu(self.matches, self.guesses, self.length, self.closest)
        return dict(_zip(NAMES, [*bleu.T, self.rouge_l, self.cider]))

    def bootstrap(
        self, samples: int = 1000, seed: int = 0, level: float = 0.95
    ) -> dict[str, tuple[float, float]]:
        """Percentile intervals from drawing N images with replacement, `samples` times (Efron 1979).

        Nothing is scored again: a sample is a sum of the images' statistics. CIDEr's document frequencies
        stay those of the whole set, as they describe the language and not the system. The interval holds the
        uncertainty from the choice of images, not from the choice of references or from training.
        """
        rng = np.random.default_rng(seed)
        even = np.full(len(self), 1 / len(self))
        # A sample at a time, so that memory does not grow with samples x images.
        scores = np.stack([self._weighted(rng.multinomial(len(self), even)) for _ in range(samples)])
        low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2], axis=0).tolist()
        return dict(_zip(NAMES, _zip(low, high)))

    def _weighted(self, weights: np.ndarray) -> np.ndarray:
        """The scores of a set in which image i occurs weights[i] times. -> [len(NAMES)]."""
        weights = weights.astype(np.float64)
        counts = (self.matches, self.guesses, self.length, self.closest)
        bleu = _bleu(*(weights @ count for count in counts))
        means = [weights @ values / weights.sum() for values in (self.rouge_l, self.cider)]
        return np.concatenate([bleu, means])


class References:
    """The references of N images, cut and counted once, to compare any number of hypotheses with."""

    def __init__(self, references: Sequence[Sequence[str]]):
        """references: for each image its captions. Raises as `score` does."""
        _check_references(references)
        self._count([[tokenize(caption) for caption in captions] for captions in references])

    @classmethod
    def of_tokens(cls, tokens: list[list[Tokens]]) -> "References":
        """The same from captions that are already cut into words."""
        self = cls.__new__(cls)
        self._count(tokens)
        return self

    def _count(self, tokens: list[list[Tokens]]):
        self.tokens = tokens
        self.ngrams = [[_ngrams(caption) for caption in captions] for captions in tokens]
        self.lengths = [[_length(ngrams) for ngrams in image] for image in self.ngrams]
        self.most = [_most(image) for image in self.ngrams]  # the clip of BLEU's matches
        self.documents = Counter(ngram for most in self.most for ngram in most)
        self.vectors = [[self.vector(ngrams) for ngrams in image] for image in self.ngrams]

    def __len__(self) -> int:
        return len(self.tokens)

    def vector(self, ngrams: Ngrams) -> _Vector:
        """A caption's n-grams weighed by how rare they are in these references."""
        return _tf_idf(ngrams, self.documents, len(self))

    def compare(self, hypotheses: Sequence[str]) -> Statistics:
        """The statistics of one hypothesis for each image; an empty one is allowed and scores 0."""
        _check_hypotheses(hypotheses, len(self))
        return self.compare_tokens([tokenize(caption) for caption in hypotheses])

    def compare_tokens(self, hypotheses: Sequence[Tokens]) -> Statistics:
        """The same from hypotheses that are already cut into words."""
        _check_count(hypotheses, len(self))
        ngrams = [_ngrams(tokens) for tokens in hypotheses]
        length = [_length(counts) for counts in ngrams]
        return Statistics(
            matches=np.stack([_per_order(counts & most) for counts, most in _zip(ngrams, self.most)]),
            guesses=np.stack([_per_order(counts) for counts in ngrams]),
            length=np.array(length),
            closest=np.array([_closest(lengths, words) for lengths, words in _zip(self.lengths, length)]),
            rouge_l=np.array([_rouge_l(tokens, others) for tokens, others in _zip(hypotheses, self.tokens)]),
            cider=np.array([_cider_d(self.vector(a), vectors) for a, vectors in _zip(ngrams, self.vectors)]),
        )


def _most(captions: Iterable[Ngrams]) -> Ngrams:
    """For each n-gram the most often that one caption has it."""
    most = Counter()
    for ngrams in captions:
        most |= ngrams
    return most


# One call


def score(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> dict[str, float]:
    """BLEU-1..4, ROUGE-L and CIDEr-D of N captions, as coco-caption prints them.

    Args:
      references: for each of N images its captions, one or more. CIDEr takes its document frequencies from
        them, so it depends on which images are scored together (and is 0 for a single image).
      hypotheses: for each image the caption to be scored.

    Returns:
      {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"}: BLEU of the whole set, the others means over
      images.

    Raises:
      ValueError: other numbers of images and hypotheses, an image without references, no image at all.
      TypeError: something is not text.
    """
    return References(references).compare(hypotheses).score()


def score_each(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> dict[str, np.ndarray]:
    """The same scores for every image, [N]. The mean of bleu* is not the BLEU of the set."""
    return References(references).compare(hypotheses).score_each()


def bootstrap(
    references: Sequence[Sequence[str]],
    hypotheses: Sequence[str],
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """An interval (low, high) for every score; see `Statistics.bootstrap`."""
    return References(references).compare(hypotheses).bootstrap(samples, seed, level)


# Floor and ceiling: what the numbers mean on a data set

FLOOR_IMAGES = 6000  # the constant caption is chosen on so many training images at most, evenly spaced


def floor(
    train_captions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], by: str = "cider"
) -> tuple[str, dict[str, float]]:
    """The best constant caption, and its scores when every image gets it: what a blind model reaches.

    Args:
      train_captions: for each training image its captions; see `constant_captions`.
      references: for each image to be scored its captions. They have no part in the choice.
      by: "cider" or "bleu4". They choose differently (BLEU-4 likes frequent words, CIDEr likes content):
        the floor of BLEU-4 itself is `by="bleu4"`.

    Returns:
      The caption (its tokens, joined by spaces), and `score(references, [caption] * N)`.
    """
    choose(_CONSTANTS, by, "score to choose the constant caption by")
    caption = constant_captions(train_captions, [by])[by]
    return caption, score(references, [caption] * len(references))


def constant_captions(
    train_captions: Sequence[Sequence[str]], by: Iterable[str] = ("cider", "bleu4")
) -> dict[str, str]:
    """The best constant caption by each score: {score: caption}.

    Every training caption (of at most FLOOR_IMAGES images) is tried as the constant one, and the one with the
    highest score against the training references is taken. No image is scored for it: for a constant caption
    both scores are sums over its n-grams of numbers that are tabulated once, so tens of thousands of
    candidates take seconds.
    """
    train = References(train_captions[:: math.ceil(len(train_captions) / FLOOR_IMAGES) or 1])
    candidates = {
        " ".join(tokens): ngrams
        for captions in _zip(train.tokens, train.ngrams)
        for tokens, ngrams in _zip(*captions)
    }
    best = {}
    for name in by:
        value = _CONSTANTS[name](train)
        best[name] = max(candidates, key=lambda caption: (value(candidates[caption]), caption))
    return best


def _constant_bleu4(train: References) -> Callable[[Ngrams], float]:
    """A function: the n-grams of a caption -> its BLEU-4 when every image of `train` gets it (exact)."""
    # How many images can match the n-gram a k-th time; the sum over k is the set's clipped matches.
    having = Counter((n, k) for most in train.most for n, count in most.items() for k in range(1, count + 1))

    @functools.cache
    def closest(length: int) -> int:
        return sum(_closest(lengths, length) for lengths in train.lengths)

    def value(ngrams: Ngrams) -> float:
        matches = Counter({n: sum(having[n, k] for k in range(1, count + 1)) for n, count in ngrams.items()})
        length = _length(ngrams)
        totals = np.array(len(train) * length), np.array(closest(length))
        return float(_bleu(_per_order(matches), len(train) * _per_order(ngrams), *totals)[-1])

    return value


def _constant_cider(train: References) -> Callable[[Ngrams], float]:
    """A function: the n-grams of a caption -> its CIDEr-D when every image of `train` gets it.

    The clipped product of two counts is a sum too: min(c, r) r = sum over k <= c of [k <= r] r. So the table
    holds, for each n-gram and k, the references' r / norm by length, then weighed by the length penalty.
    N-grams of fewer than one image in 2,000 are left out of the table: they add next to nothing.
    """
    longest = max(vector.length for vectors in train.vectors for vector in vectors)
    rows = defaultdict(lambda: [0.0] * (longest + 1))
    for vectors, image in _zip(train.vectors, train.ngrams):
        for vector, ngrams in _zip(vectors, image):
            for ngram, count in ngrams.items():
                if train.documents[ngram] * 2000 > len(train) and vector.weights[ngram]:
                    share = vector.weights[ngram] / vector.norms[len(ngram) - 1] / len(vectors)
                    for k in range(1, count + 1):
                        rows[ngram, k][vector.length] += share
    lengths = np.arange(longest + 1)
    penalty = np.exp(-((lengths[:, None] - lengths) ** 2) / (2 * SIGMA**2))
    table = dict(_zip(rows, np.array(list(rows.values())).reshape(-1, longest + 1) @ penalty))

    def value(ngrams: Ngrams) -> float:
        vector = train.vector(ngrams)
        total = 0.0
        for ngram, count in ngrams.items():
            found = sum(table[ngram, k][vector.length] for k in range(1, count + 1) if (ngram, k) in table)
            if found:
                total += vector.weights[ngram] / count * found / vector.norms[len(ngram) - 1]
        return 10 * total / ORDERS / len(train)

    return value


_CONSTANTS = {"cider": _constant_cider, "bleu4": _constant_bleu4}


def ceiling(references: Sequence[Sequence[str]]) -> dict[str, float]:
    """What a person reaches: each image's first caption is the hypothesis, its other captions the references.

    Images with a single caption are left out. A model is scored against one reference more than the person,
    and more references give a higher BLEU, so this ceiling is a little low.

    Raises:
      ValueError: no image has two captions.
    """
    _check_references(references)
    several = [captions for captions in references if len(captions) > 1]
    if not several:
        raise ValueError("A ceiling needs images with two captions or more; here every image has one.")
    return score([captions[1:] for captions in several], [captions[0] for captions in several])


def signature(**how: object) -> str:
    """One line that says how a number was made: signature(beam=5, split="val", n=1000, refs=5) is
    "captions|tok:ptb|beam:5|split:val|n:1000|refs:5|v:0.1.0".

    Raises:
      ValueError: a value holds "|" or a line break, which would make the line ambiguous.
    """
    return sign("captions", "tok:ptb", **how)


# METEOR and SPICE, which exist in Java only

_JAVA = {"meteor": "pycocoevalcap.meteor.meteor.Meteor", "spice": "pycocoevalcap.spice.spice.Spice"}
# Runs in its own process: these scorers hang or kill their host when their Java program fails.
_CHILD = """
import importlib, json, sys
path, references, hypotheses = json.load(sys.stdin)
module, name = path.rsplit(".", 1)
scorer = getattr(importlib.import_module(module), name)()
print("score", float(scorer.compute_score(dict(enumerate(references)), dict(enumerate(hypotheses)))[0]))
"""


def score_java(
    references: Sequence[Sequence[str]],
    hypotheses: Sequence[str],
    timeout: float = 600,
    report: Callable[[str], object] = print,
) -> dict[str, float | None]:
    """METEOR and SPICE by pycocoevalcap's Java programs, where this machine has them. Downloads nothing.

    Args:
      references, hypotheses: as for `score`.
      timeout: seconds that each may take.
      report: gets a line "spice: not computed: <why>" for each that could not be computed.

    Returns:
      {"meteor", "spice"}: the score of the set, in 0..1, or None.
    """
    _check_references(references)
    _check_hypotheses(hypotheses, len(references))
    tokens = [[[" ".join(tokenize(text)) for text in texts] for texts in references]]
    tokens += [[[" ".join(tokenize(text))] for text in hypotheses]]
    scores = {}
    for name, path in _JAVA.items():
        reason = _why_not(name)
        if not reason:
            scores[name], reason = _run_child([path, *tokens], timeout)
        if reason:
            scores[name] = None
            report(f"{name}: not computed: {reason}")
    return scores


def _why_not(name: str) -> str:
    """What this machine lacks for a Java score, and the remedy; empty where nothing is missing."""
    if not shutil.which("java"):
        return "there is no java on the PATH; install a Java runtime"
    package = find_spec("pycocoevalcap")
    if not package or not package.submodule_search_locations:
        return "pycocoevalcap is not installed; pip install pycocoevalcap"
    folder = Path(next(iter(package.submodule_search_locations)))
    if name == "spice" and not list((folder / "spice" / "lib").glob("stanford-corenlp-*-models.jar")):
        return (
            "SPICE's Stanford models are not installed; "
            "python -m pycocoevalcap.spice.get_stanford_models downloads them (some 400 MB)"
        )
    return ""


def _run_child(request: list, timeout: float) -> tuple[float | None, str]:
    """Run _CHILD on a request; -> its score, or None and why there is none. Leaves no process behind."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", _CHILD], start_new_session=True, **pipes) as child:
        try:
            printed, errors = child.communicate(json.dumps(request), timeout=timeout)
        except subprocess.TimeoutExpired:
            return None, f"it took longer than {timeout:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # the Java program too
    found = [line.split()[1] for line in printed.splitlines() if line.startswith("score ")]
    if child.returncode or not found or not math.isfinite(float(found[-1])):
        return None, (errors.strip() or "it printed no score").splitlines()[-1]
    return float(found[-1]), ""


# Checks


def _check_references(references: Sequence[Sequence[str]]):
    """Raise where the references are not a list of captions for each image."""
    if isinstance(references, str) or not len(references):
        raise ValueError(
            f"No images to score: references are {references!r}; give a list of captions for each."
        )
    for i, captions in enumerate(references):
        if isinstance(captions, str):
            raise TypeError(
                f"references[{i}] is one text, {captions!r}; give a list of captions for each image."
            )
        if not len(captions):
            raise ValueError(f"references[{i}] is empty: image {i} has no caption; leave the image out.")
        for j, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise TypeError(f"references[{i}][{j}] is {caption!r}, not text.")


def _check_hypotheses(hypotheses: Sequence[str], images: int):
    """Raise where there is not one text for each image."""
    _check_count(hypotheses, images)
    for i, caption in enumerate(hypotheses):
        if not isinstance(caption, str):
            raise TypeError(f"hypotheses[{i}] is {caption!r}, not text.")


def _check_count(hypotheses: Sequence, images: int):
    """Raise where there is not one hypothesis for each image."""
    if isinstance(hypotheses, str) or len(hypotheses) != images:
        given = "one text" if isinstance(hypotheses, str) else f"{len(hypotheses)} hypotheses"
        raise ValueError(
            f"{images} images have references, but {given} came; give one caption for each image."
        )
