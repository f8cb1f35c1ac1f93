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


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_scikit_learn(seed):
    label, scores = draw(seed)
    predicted = scores.argmax(axis=1)
    macro = metrics.precision_recall_fscore_support(label, predicted, average="macro", zero_division=0)
    expected = {
        "top1": metrics.accuracy_score(label, predicted),
        "top5": metrics.top_k_accuracy_score(label, scores, k=5, labels=range(12)),
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
    assert list(classification.score(np.array([1, 0]), np.eye(2))) == ["top1", "precision", "recall", "f1"]


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


@pytest.mark.parametrize(("share", "n"), [(0.0, 10), (0.3, 10), (1.0, 1000)])
def test_wilson_solves_its_equation(share, n):
    """The bounds are where the normal test of a share rejects at z = 1.96."""
    for bound in classification.wilson(share, n):
        if 0 < bound < 1:
            assert (share - bound) ** 2 == pytest.approx(1.96**2 * bound * (1 - bound) / n)
    low, high = classification.wilson(share, n)
    assert 0 <= low <= share <= high <= 1 and low < high
