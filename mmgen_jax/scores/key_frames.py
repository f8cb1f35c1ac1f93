"""Key frames: how they are chosen from a score of each frame, and the F1 of those chosen against those planted."""

from collections.abc import Sequence

import numpy as np


def choose(scores: np.ndarray, threshold: float = 0.5, apart: int = 1, most: int | None = None) -> list[int]:
    """The frames of a summary: the highest score first, then the next that is not too near to one chosen before.

    Args:
      scores: float [F].
      threshold: frames of lower scores are not chosen.
      apart: two chosen frames are at least so many frames apart; 1 lets neighbours be chosen.
      most: choose at most so many.

    Returns:
      The frames' numbers, ascending. Of equal scores the earlier frame comes first.

    Raises:
      ValueError: `apart` is below 1.
    """
    if apart < 1:
        raise ValueError(f"apart is {apart}: two frames are at least 1 apart.")
    chosen: list[int] = []
    for frame in np.argsort(-np.asarray(scores, np.float64), kind="stable").tolist():
        if scores[frame] < threshold or (most is not None and len(chosen) >= most):
            break
        if all(abs(frame - other) >= apart for other in chosen):
            chosen.append(frame)
    return sorted(chosen)


def hits(predicted: Sequence[int], planted: Sequence[int], tolerance: int = 0) -> int:
    """How many pairs of a predicted and a planted frame there are, at most `tolerance` apart, each frame in one pair at most."""
    left, right, count = sorted(predicted), sorted(planted), 0
    i = j = 0
    # On a line the two earliest that are near enough can always be a pair of a largest matching.
    while i < len(left) and j < len(right):
        if abs(left[i] - right[j]) <= tolerance:
            count, i, j = count + 1, i + 1, j + 1
        elif left[i] < right[j]:
            i += 1
        else:
            j += 1
    return count


def counts(
    predicted: Sequence[Sequence[int]], planted: Sequence[Sequence[int]], tolerance: int = 0
) -> np.ndarray:
    """int64 [N, 3]: of each video the hits, the predicted and the planted frames.

    Raises:
      ValueError: the two are not of equally many videos, or the tolerance is below 0.
    """
    if len(predicted) != len(planted) or tolerance < 0:
        raise ValueError(
            f"{len(predicted)} videos predicted, {len(planted)} planted, tolerance {tolerance}: as many of both, and at least 0."
        )
    rows = [(hits(p, q, tolerance), len(p), len(q)) for p, q in zip(predicted, planted, strict=True)]
    return np.array(rows, np.int64).reshape(-1, 3)


def score(found: np.ndarray) -> dict[str, float]:
    """precision, recall and f1 of all key frames together, and "exact", the share of videos with neither a miss nor an excess.

    found: from `counts`. Where there is nothing to find and nothing is chosen, all are 1; where only one of
    the two is so, precision and recall are 0.
    """
    right, said, there = found.sum(axis=0).tolist()
    return {
        "f1": 2 * right / (said + there) if said + there else 1.0,
        "precision": right / said if said else float(not there),
        "recall": right / there if there else float(not said),
        "exact": float(np.mean((found[:, 0] == found[:, 1]) & (found[:, 0] == found[:, 2]))),
    }


def bootstrap(found: np.ndarray, samples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % intervals of the scores: videos are drawn again, with replacement."""
    rng = np.random.default_rng(seed)
    drawn = [score(found[rng.integers(len(found), size=len(found))]) for _ in range(samples)]
    return {
        name: tuple(np.percentile([scores[name] for scores in drawn], [2.5, 97.5]).tolist())
        for name in drawn[0]
    }
