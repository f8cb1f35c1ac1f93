"""Classification scores against scikit-learn's."""

import numpy as np
import pytest

from mmgen_jax.scores import classification

metrics = pytest.importorskip("sklearn.metrics")


def draw(seed, examples=200, classes=12):
    """Labels of unequal frequency and scores that know something; two classes are never true, one never predicted."""
    rng = np.random.default_rng(seed)
    label = rng.choice(classes - 2, examples, p=rng.dirichlet(np.ones(classes - 2)))
    scores = rng.normal(size=(examples, classes))
    scores[np.arange(examples), label] += 1.5
    scores[:, 3] -= 100
    return label, scores.astype(np.float32)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_scikit_learn(seed):
    label, scores = draw(seed)
    predicted = scores.argmax(axis=1)
    macro = metrics.precision_recall_fscore_support(label, predicted, average="macro", zero_division=0)
    expected = {
        "top1": metrics.accuracy_score(label, predicted),
        "top5": metrics.top_k_accuracy_score(label, scores, k=5, labels=range(12)),
        "balanced": metrics.balanced_accuracy_score(label, predicted),
        "precision": macro[0],
        "recall": macro[1],
        "f1": macro[2],
    }
    assert classification.score(label, scores) == pytest.approx(expected, rel=1e-12)
    text = classification.report(label, predicted, [f"class {k}" for k in range(12)])
    (line,) = [line for line in text.splitlines() if line.lstrip().startswith("macro avg")]
    assert line.split()[2:5] == [f"{value:.3f}" for value in macro[:3]]
    assert ("class 3 " in text) == (3 in label)
    assert f"{metrics.accuracy_score(label, predicted):.3f}" in text


def test_ties_go_to_the_lower_class():
    """A collapsed model is as good as always saying the first class."""
    label = np.array([0, 4, 5, 6])
    found = classification.score(label, np.zeros((4, 7)))
    assert (found["top1"], found["top5"]) == (0.25, 0.5)
    assert found["recall"] == pytest.approx(1 / 4)


def test_few_classes_have_no_top_five():
    found = classification.score(np.array([1, 0]), np.eye(2))
    assert list(found) == ["top1", "balanced", "precision", "recall", "f1"]


def test_floor_is_the_most_frequent_class():
    label = np.array([2, 2, 2, 0, 1, 3, 4, 5, 6, 6])
    found = classification.floor(label, 7)
    assert (found["top1"], found["top5"]) == (0.3, 0.8)
    assert found["f1"] == pytest.approx(2 * 0.3 / 1.3 / 7)


def test_what_does_not_fit():
    label, scores = draw(0)
    with pytest.raises(ValueError, match=r"\[3\] and scores \[200, 12\]"):
        classification.score(label[:3], scores)
    with pytest.raises(ValueError, match="there are 5 classes"):
        classification.score(label, scores[:, :5])
    scores[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"1 of 200 examples \(the first is number 7\).*NaN"):
        classification.score(label, scores)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_balanced_accuracy_leaves_out_classes_that_are_not_there():
    label, scores = np.array([0, 0, 0, 1]), np.eye(3)[[0, 0, 0, 2]]
    found = classification.score(label, scores)
    assert found["balanced"] == metrics.balanced_accuracy_score(label, scores.argmax(axis=1)) == 0.5
    assert found["recall"] == pytest.approx(1 / 3)


def test_calibration_against_a_loop():
    label, logits = draw(1)
    found = classification.calibration(label, logits, bins=10)
    sure, right = [[] for _ in range(10)], [[] for _ in range(10)]
    for k, row in zip(label, np.float64(logits), strict=True):
        share = np.exp(row) / np.exp(row).sum()
        for m in range(10):
            if m / 10 < share.max() <= (m + 1) / 10:
                sure[m].append(share.max())
                right[m].append(share.argmax() == k)
    error = sum(len(s) / 200 * abs(np.mean(r) - np.mean(s)) for s, r in zip(sure, right, strict=True) if s)
    assert found.ece == pytest.approx(error, rel=1e-12) and error > 0.02
    assert found.count.tolist() == [len(s) for s in sure] and found.count.sum() == 200
    for m in range(10):
        expected = (np.mean(sure[m]), np.mean(right[m])) if sure[m] else (np.nan, np.nan)
        assert (found.confidence[m], found.right[m]) == pytest.approx(expected, nan_ok=True)


def test_who_is_as_often_right_as_he_says_is_calibrated():
    """And who is always sure and half the time wrong is off by a half; of very large logits too."""
    belief = np.log([[0.75, 0.25]] * 4)
    assert classification.calibration([0, 0, 1, 0], belief).ece == pytest.approx(0, abs=1e-12)
    sure = classification.calibration([0, 1], [[1e5, 0.0], [1e5, 0.0]])
    assert sure.ece == 0.5 and sure.count[-1] == 2


def test_confusion():
    label, scores = draw(2)
    predicted = scores.argmax(axis=1)
    expected = metrics.confusion_matrix(label, predicted, labels=range(12))
    np.testing.assert_array_equal(classification.confusion(label, predicted, 12), expected)


@pytest.mark.parametrize("ties", [False, True])
def test_several_labels_equal_to_scikit_learn(ties):
    """Label 6 is always true, label 7 is said and never true, label 8 neither; some examples have none."""
    rng = np.random.default_rng(3)
    label = (rng.random((60, 9)) < rng.random(9)).astype(int)
    label[:5], label[:, 6], label[:, 7:] = 0, 1, 0
    scores = rng.normal(size=(60, 9)) + 1.5 * label - 0.5
    scores[:, 8], scores[0] = -1.0, -2.0
    scores[0, 6] = label[0, 6] = 0
    scores = np.round(scores) if ties else scores
    said = scores > 0
    found = classification.score_several(label, scores)
    each = metrics.f1_score(label, said, average=None, zero_division=np.nan)
    assert classification.f1_of_labels(label > 0, said) == pytest.approx(each, nan_ok=True)
    assert np.isnan(each[8]) and each[7] == 0
    precisions = [metrics.average_precision_score(label[:, k], scores[:, k]) for k in range(7)]
    expected = {
        "labels_right": 1 - metrics.hamming_loss(label, said),
        "all_right": metrics.accuracy_score(label, said),
        "f1": np.nanmean(each),
        "f1_samples": metrics.f1_score(label, said, average="samples", zero_division=1.0),
        "map": np.mean(precisions),
    }
    assert found == pytest.approx(expected, rel=1e-12)
    text = classification.report(label, said.astype(int), [f"label {k}" for k in range(9)])
    assert "label 7" in text and "label 8" not in text


def test_several_labels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\[2\] and scores \[2, 3\]"):
        classification.score_several(np.zeros(2), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="0 or 1 each; here is 2"):
        classification.score_several(np.array([[0, 2]]), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="1 of 2 examples have scores that are NaN"):
        classification.score_several(np.eye(2, dtype=int), np.array([[0, np.nan], [1, 1]]))
    nothing = classification.score_several(np.zeros((2, 3), int), -np.ones((2, 3)))
    assert nothing == {"labels_right": 1.0, "all_right": 1.0, "f1": 0.0, "f1_samples": 1.0, "map": 0.0}


@pytest.mark.parametrize(("share", "n"), [(0.0, 10), (0.3, 10), (1.0, 1000)])
def test_wilson_solves_its_equation(share, n):
    """The bounds are where the normal test of a share rejects at z = 1.96."""
    for bound in classification.wilson(share, n):
        if 0 < bound < 1:
            assert (share - bound) ** 2 == pytest.approx(1.96**2 * bound * (1 - bound) / n)
    low, high = classification.wilson(share, n)
    assert 0 <= low <= share <= high <= 1 and low < high
