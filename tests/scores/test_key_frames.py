"""Key frames: chosen from scores, matched within a tolerance as well as can be, and their F1."""

import itertools

import numpy as np
import pytest

from mmgen_jax.scores import key_frames


def test_choice_by_threshold_distance_and_number():
    scores = np.array([0.1, 0.9, 0.8, 0.2, 0.6, 0.95, 0.6])
    assert key_frames.choose(scores) == [1, 2, 4, 5, 6]
    assert key_frames.choose(scores, apart=2) == [1, 5]
    assert key_frames.choose(scores, threshold=0.15, apart=2) == [1, 3, 5]
    assert key_frames.choose(scores, most=2) == [1, 5]
    assert key_frames.choose(scores, threshold=0.99) == []
    assert key_frames.choose(np.full(5, 0.7), apart=2) == [0, 2, 4]  # of equals the earlier
    with pytest.raises(ValueError, match="at least 1 apart"):
        key_frames.choose(scores, apart=0)


def best(left, right, tolerance):
    """The largest matching, by trying all."""
    if len(left) > len(right):
        left, right = right, left
    return max(
        sum(abs(a - b) <= tolerance for a, b in zip(left, order, strict=True))
        for order in itertools.permutations(right, len(left))
    )


def test_hits_are_a_largest_matching():
    assert key_frames.hits([4], [3, 5], 1) == 1, "a frame counts once"
    assert key_frames.hits([], [1], 3) == 0
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, right = (rng.choice(12, rng.integers(5), replace=False).tolist() for _ in range(2))
        for tolerance in (0, 1, 2):
            assert key_frames.hits(left, right, tolerance) == best(left, right, tolerance)


def test_scores_by_hand():
    found = key_frames.counts([[1, 5], [3], []], [[1, 6], [3], [2]])
    assert found.tolist() == [[1, 2, 2], [1, 1, 1], [0, 0, 1]]
    scores = key_frames.score(found)
    assert scores == pytest.approx({"f1": 4 / 7, "precision": 2 / 3, "recall": 1 / 2, "exact": 1 / 3})
    near = key_frames.score(key_frames.counts([[1, 5], [3], []], [[1, 6], [3], [2]], tolerance=1))
    assert near == pytest.approx({"f1": 6 / 7, "precision": 1.0, "recall": 3 / 4, "exact": 2 / 3})
    assert key_frames.score(key_frames.counts([[]], [[]])) == dict.fromkeys(scores, 1.0)
    assert key_frames.score(key_frames.counts([[]], [[3]])) == dict.fromkeys(scores, 0.0)
    assert key_frames.score(key_frames.counts([[3]], [[]])) == dict.fromkeys(scores, 0.0)


def test_intervals_hold_the_score():
    rng = np.random.default_rng(1)
    planted = [sorted(rng.choice(12, 2, replace=False).tolist()) for _ in range(100)]
    predicted = [frames if rng.random() < 0.8 else [0] for frames in planted]
    found = key_frames.counts(predicted, planted)
    scores, intervals = key_frames.score(found), key_frames.bootstrap(found)
    for name, (low, high) in intervals.items():
        assert low <= scores[name] <= high and high - low < 0.25
    sure = key_frames.bootstrap(key_frames.counts(planted, planted))
    assert set(sure.values()) == {(1.0, 1.0)}


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="1 videos predicted, 2 planted"):
        key_frames.counts([[1]], [[1], [2]])
    with pytest.raises(ValueError, match="tolerance -1"):
        key_frames.counts([[1]], [[1]], tolerance=-1)
