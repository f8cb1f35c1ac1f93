"""VQA accuracy: the published normalisation of answers, ten annotators with each left out once, by type, with intervals.

The rules are those of visualqa.org/evaluation.html (Antol et al., 2015, arXiv:1505.00468, section 3), steps and their order
as its evaluation code has them.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from mmgen_jax.scores.signature import sign

ENOUGH = 3  # annotators who must agree with an answer for its full score

_ARTICLES = frozenset({"a", "an", "the"})
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(k) for k, word in enumerate(_DIGITS)}}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # neither apostrophe nor colon: "girl's", "2:50"
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the published code hands a flag of the value 32 to a parameter that counts
_THOUSANDS = re.compile(r"\d,\d")

# Each is found with any one of its apostrophes missing. Not here are words that without it are others (she'd, we're, it's)
# and those with a capital (I'm), which the published table holds but never finds, as all is in lower case by then.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd
how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't
'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd
you'd've you'll you're you've
"""
_WHOLE = {
    word[:k] + word[k + 1 :]: word
    for word in _CONTRACTIONS.split()
    for k, letter in enumerate(word)
    if letter == "'"
}
_WHOLE["somebody'd"] = "somebodyd"  # the wrong way round, as published


def normalise(answer: str) -> str:
    """An answer as it is compared: punctuation, lower case, numbers, articles and contractions, in this order.

    Of the steps these surprise: a punctuation mark becomes a space, but it is taken out where it stands beside a space
    somewhere in the answer, and all marks are where a comma stands between two digits ("1,000" is "1000"). A period stays
    before a digit only, and from the 33rd on. "zero" to "ten" and "none" become digits; "eleven" stays.

    The one difference to the published code: an answer of which nothing is left ("a", "?") stays as it is, in lower case, so
    that a letter can be an answer.
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    thousands = _THOUSANDS.search(answer)
    plain = answer
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        plain = plain.replace(mark, "" if beside_space or thousands else " ")
    plain = _PERIOD.sub("", plain, count=_MOST_PERIODS)
    words = [_NUMBERS.get(word, word) for word in plain.lower().split()]
    words = [_WHOLE.get(word, word) for word in words if word not in _ARTICLES]
    return " ".join(words) or answer.lower()


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """The accuracy of every answer that would get any: {normalised answer: above 0, at most 1}, of one question's annotators.

    An answer has min(1, those who gave it / 3), averaged over the sets of annotators that leave out one. So of ten, an answer
    that one, two, three or more of them gave has 0.3, 0.6, 0.9 or 1. Where there are fewer than four, "3" is all who remain;
    a single annotator is simply right.

    All answers are normalised, as the page says. The published code leaves them out of it where the annotators all wrote the
    same; the numbers differ where that is not in its normal form ("two").
    """
    count, n = Counter(map(normalise, answers)), len(answers)
    if n == 1:
        return dict.fromkeys(count, 1.0)
    enough = min(ENOUGH, n - 1)
    return {
        answer: score
        for answer, c in count.items()
        if (score := (c * min(1, (c - 1) / enough) + (n - c) * min(1, c / enough)) / n) > 0
    }


def each(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """The accuracy of each answer, float64 [N] between 0 and 1.

    Args:
      predictions: N answers.
      answers: for each question the annotators' answers.

    Raises:
      ValueError: their numbers differ, there is none, or a question has no annotator.
    """
    if len(predictions) != len(answers) or not len(answers):
        raise ValueError(
            f"{len(predictions)} predictions, and answers to {len(answers)} questions: there must be equally many, at least one."
        )
    empty = [k for k, own in enumerate(answers) if not len(own)]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(answers)} questions (the first is number {empty[0]}) have no answer to compare with: "
            "a test split whose answers are secret has no score."
        )
    pairs = zip(predictions, answers, strict=True)
    return np.array([soft_scores(own).get(normalise(said), 0.0) for said, own in pairs])


def score(values: np.ndarray, **types: Sequence[str]) -> dict[str, float]:
    """The mean accuracy, overall and by type.

    Args:
      values: float [N], of `each`.
      types: answer_type=[N strings], question_type=[N strings], or others by which to part the questions.

    Returns:
      {"accuracy": ..., "answer_type/yes/no": ..., "question_type/what color": ...}, all between 0 and 1.
    """
    return {name: float(values[rows].mean()) for name, rows in _parts(len(values), types).items()}


def bootstrap(
    values: np.ndarray,
    groups: Sequence | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    **types: Sequence[str],
) -> dict[str, tuple[float, float]]:
    """An interval (low, high) for every score of `score`, by drawing questions, or whole groups of them, with replacement.

    Args:
      values, types: see `score`.
      groups: [N], which questions are drawn together: those of one image, as their answers hang together.
      samples, seed, level: draws, their seed, and the share that the interval holds.
    """
    rng = np.random.default_rng(seed)
    names, group = np.unique(
        np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True
    )
    parts = _parts(len(values), types)
    # A draw is a weighted mean over groups: the sums of a part's values and its questions in each.
    total = np.stack([np.bincount(group[rows], values[rows], len(names)) for rows in parts.values()], axis=1)
    count = np.stack([np.bincount(group[rows], minlength=len(names)) for rows in parts.values()], axis=1)
    drawn = np.full((samples, len(parts)), np.nan)
    for row in drawn:
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        np.divide(times @ total, times @ count, out=row, where=times @ count > 0)
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0).tolist()
    return dict(zip(parts, zip(low, high, strict=True), strict=True))


def choose(scores: np.ndarray, words: Sequence[str], choices: Sequence[Sequence[str]]) -> list[str]:
    """Multiple choice: for each question the best of its own choices; "" where the vocabulary has none of them.

    Args:
      scores: float [N, K], the higher the likelier.
      words: the K normalised answers.
      choices: for each question the answers to choose from, as they are written.
    """
    place = {word: k for k, word in enumerate(words)}
    said = []
    for row, own in zip(scores, choices, strict=True):
        known = [(row[place[key]], choice) for choice in own if (key := normalise(choice)) in place]
        said.append(max(known, key=lambda pair: pair[0])[1] if known else "")
    return said


def signature(*, n: int, multiple_choice: bool = False, **how: object) -> str:
    """How a number was made: "vqa|open|annotators:leave-one-out|n:5000|split:val|v:0.1.0"."""
    return sign(
        "vqa", "multiple choice" if multiple_choice else "open", annotators="leave-one-out", n=n, **how
    )


def _parts(n: int, types: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """{score: the numbers of the questions that it is the mean of}."""
    if not n:
        raise ValueError("There is no question to score.")
    parts = {"accuracy": np.arange(n)}
    for kind, names in types.items():
        if len(names) != n:
            raise ValueError(f"{kind} has {len(names)} names for {n} questions.")
        names = np.asarray(names)
        parts |= {f"{kind}/{name}": np.flatnonzero(names == name) for name in np.unique(names)}
    return parts
