"""Classification scores: top-1, top-5, macro precision, recall and F1; scikit-learn's report; Wilson's interval."""

from collections.abc import Sequence

import numpy as np

TOP = 5


def score(label: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Shares of N examples whose true class is among the best; of equal scores the class of the lower number stands first.

    Args:
      label: int [N], in 0 .. K - 1.
      scores: float [N, K], the higher the likelier.

    Returns:
      top1; top5 of more than five classes; precision, recall, f1: means over the classes that are true or predicted at least
      once, 0 where a class is never predicted or never true (scikit-learn's macro averages with zero_division=0).

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
    """scikit-learn's table of precision, recall and F1 of the classes that are true or predicted at all. [N], [N], K names."""
    from sklearn.metrics import classification_report

    present = np.union1d(label, predicted)
    return classification_report(
        label, predicted, labels=present, target_names=[names[k] for k in present], digits=3, zero_division=0
    )


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of n (Wilson, 1927); a bootstrap of 1000 right in 1000 would claim no doubt."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _macro(label: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    right = np.bincount(label[label == predicted], minlength=classes)
    true, said = np.bincount(label, minlength=classes), np.bincount(predicted, minlength=classes)
    present = true + said > 0
    right, true, said = right[present], true[present], said[present]
    return {
        "precision": float(np.mean(right / np.maximum(said, 1))),
        "recall": float(np.mean(right / np.maximum(true, 1))),
        "f1": float(np.mean(2 * right / (true + said))),
    }
