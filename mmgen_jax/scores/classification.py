"""Classification scores: of one label and of several at once; calibration; scikit-learn's report; Wilson's interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TOP = 5
BINS = 15  # of confidence, as in Guo et al., 2017


class Calibration(NamedTuple):
    """How often answers are right, by how sure the classifier is of them.

    Attributes:
      ece: the expected calibration error: |share that is right - mean confidence| of each bin, weighted by its answers.
      confidence, right: of each of M bins of equal width the mean confidence and the share that is right; NaN where it is empty.
      count: int [M], the answers in it.
    """

    ece: float
    confidence: np.ndarray
    right: np.ndarray
    count: np.ndarray


def score(label: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Shares of N examples whose true class is among the best; of equal scores the class of the lower number stands first.

    Args:
      label: int [N], in 0 .. K - 1.
      scores: float [N, K], the higher the likelier.

    Returns:
      top1; top5 of more than five classes; balanced: top1 as it were if all classes that are true at all were equally frequent
      (the mean of their recalls); precision, recall, f1: means over the classes that are true or predicted at least once, 0
      where a class is never predicted or never true (scikit-learn's macro averages with zero_division=0).

    Raises:
      ValueError: shapes that do not fit, a label without a class, or scores that are NaN.
    """
    label, scores = np.asarray(label), np.asarray(scores)
    if scores.ndim != 2 or label.shape != scores.shape[:1] or not scores.size:
        raise ValueError(
            f"Labels {list(label.shape)} and scores {list(scores.shape)} must be [N] and [N, K], N > 0."
        )
    examples, classes = scores.shape
    if label.min() < 0 or label.max() >= classes:
        raise ValueError(f"Labels lie in {label.min()} .. {label.max()}, but there are {classes} classes.")
    broken = np.isnan(scores).any(axis=1)
    if broken.any():
        raise ValueError(
            f"{broken.sum()} of {examples} examples (the first is number {broken.argmax()}) have scores that are NaN: has the "
            "training diverged (see its loss and gradient norm)?"
        )
    own = np.take_along_axis(scores, label[:, None], axis=1)
    before = (scores > own) | ((scores == own) & (np.arange(classes)[None, :] < label[:, None]))
    place = before.sum(axis=1)
    shares = {"top1": float(np.mean(place < 1))}
    if classes > TOP:
        shares["top5"] = float(np.mean(place < TOP))
    return {**shares, **_macro(label, scores.argmax(axis=1), classes)}


def floor(label: np.ndarray, classes: int) -> dict[str, float]:
    """The scores of who always names the classes in the order of their frequency among `label` [N]."""
    count = np.bincount(label, minlength=classes)
    return score(label, np.broadcast_to(count, (len(label), classes)))


def report(label: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> str:
    """scikit-learn's table of precision, recall and F1 of the classes that are true or predicted at all.

    label, predicted: int [N], or of several labels at once [N, K] of 0 and 1. names: K.
    """
    from sklearn.metrics import classification_report

    if np.ndim(label) == 1:
        present = np.union1d(label, predicted)
    else:
        present = np.flatnonzero(np.any(np.asarray(label) | np.asarray(predicted), axis=0))
    return classification_report(
        label, predicted, labels=present, target_names=[names[k] for k in present], digits=3, zero_division=0
    )


def confusion(label: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How often each class was taken for each. int [N], [N] -> int [K, K], the true class in the row."""
    pairs = np.asarray(label) * classes + np.asarray(predicted)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def calibration(label: np.ndarray, logits: np.ndarray, bins: int = BINS) -> Calibration:
    """Whether a classifier is as often right as it says (Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3).

    Confidence is the probability of the likeliest class; bin m of M holds what is above (m - 1) / M and at most m / M.

    Args:
      label: int [N].
      logits: float [N, K], whose softmax is the classifier's belief.
    """
    logits = np.asarray(logits, np.float64)
    confidence = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    right = logits.argmax(axis=1) == label
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    sure, well = (np.bincount(place, x, minlength=bins) for x in (confidence, right))
    error = np.abs(sure - well).sum() / len(right)
    some = np.where(count > 0, count, np.nan)
    return Calibration(float(error), sure / some, well / some, count)


def score_several(label: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Scores of N examples of which each has any of K labels; one is said where its score is above 0.

    Args:
      label: [N, K] of 0 and 1.
      scores: float [N, K], such as logits.

    Returns:
      labels_right: the share of all N x K that are right; all_right: of the examples with none wrong.
      f1: the mean of the labels' F1 (`f1_of_labels`) over those that are true or said at least once.
      f1_samples: the mean of the examples' F1; one without a label of which none is said counts as 1.
      map: the mean over the labels that are true at least once of their average precision, which is the precision at each true
        example, as the scores order them, weighted equally (scikit-learn's average_precision_score).

    Raises:
      ValueError: shapes that do not fit, labels that are not 0 or 1, or scores that are NaN.
    """
    label, scores = np.asarray(label), np.asarray(scores)
    if label.ndim != 2 or label.shape != scores.shape or not label.size:
        raise ValueError(
            f"Labels {list(label.shape)} and scores {list(scores.shape)} must both be [N, K], N > 0."
        )
    if not np.isin(label, (0, 1)).all():
        raise ValueError(
            f"Several labels at once are 0 or 1 each; here is {label[~np.isin(label, (0, 1))][0]}."
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"{np.isnan(scores).any(axis=1).sum()} of {len(scores)} examples have scores that are NaN: has the training diverged?"
        )
    true, said = label > 0, scores > 0
    both, either = (true & said).sum(axis=1), true.sum(axis=1) + said.sum(axis=1)
    f1 = f1_of_labels(true, said)
    precisions = [_average_precision(true[:, k], scores[:, k]) for k in np.flatnonzero(true.any(axis=0))]
    return {
        "labels_right": float((true == said).mean()),
        "all_right": float((true == said).all(axis=1).mean()),
        "f1": float(np.nanmean(f1)) if np.isfinite(f1).any() else 0.0,
        "f1_samples": float(np.where(either > 0, 2 * both / np.maximum(either, 1), 1.0).mean()),
        "map": float(np.mean(precisions)) if precisions else 0.0,
    }


def f1_of_labels(true: np.ndarray, said: np.ndarray) -> np.ndarray:
    """F1 of each label; NaN of one that is never true and never said. bool [N, K], [N, K] -> [K]."""
    either = true.sum(axis=0) + said.sum(axis=0)
    return 2 * (true & said).sum(axis=0) / np.where(either > 0, either, np.nan)


def _average_precision(true: np.ndarray, scores: np.ndarray) -> float:
    """Of examples with equal scores none comes before the others: they share the precision after the last of them."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    found = np.cumsum(true[order])[last]
    return float(np.sum(np.diff(found, prepend=0) * found / (last + 1)) / found[-1])


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of n (Wilson, 1927); a bootstrap of 1000 right in 1000 would claim no doubt."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _macro(label: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    right = np.bincount(label[label == predicted], minlength=classes)
    true, said = np.bincount(label, minlength=classes), np.bincount(predicted, minlength=classes)
    present = true + said > 0
    balanced = float(np.mean((right / np.maximum(true, 1))[true > 0]))
    right, true, said = right[present], true[present], said[present]
    return {
        "balanced": balanced,
        "precision": float(np.mean(right / np.maximum(said, 1))),
        "recall": float(np.mean(right / np.maximum(true, 1))),
        "f1": float(np.mean(2 * right / (true + said))),
    }
