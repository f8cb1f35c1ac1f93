"""VQA accuracy: a table of hard answers, each worked by hand from the published rules; annotators; types; intervals."""

import itertools

import numpy as np
import pytest

from mmgen_jax.scores import vqa

# answer, its normal form; what happens is said where it surprises.
NORMAL = [
    ("yes", "yes"),
    ("  YES\n", "yes"),
    ("on\tthe\ntable", "on table"),
    # articles: whole words only
    ("a an the dog", "dog"),
    ("theatre an", "theatre"),
    # numbers: whole words, from none to ten
    ("none", "0"),
    ("Zero", "0"),
    ("the one", "1"),
    ("ten dogs", "10 dogs"),
    ("eleven", "eleven"),
    ("someone", "someone"),
    ("twenty-one", "twenty 1"),  # the hyphen is a space before numbers are looked for
    # contractions: after lower case, with exactly one apostrophe missing
    ("dont", "don't"),
    ("Dont", "don't"),
    ("don't", "don't"),
    ("couldnt've", "couldn't've"),
    ("couldn'tve", "couldn't've"),
    ("couldntve", "couldntve"),
    ("yall'd've", "y'all'd've"),
    ("ow's'at", "'ow's'at"),
    ("Im", "im"),  # the published table has "Im", which is never found in lower case
    ("its", "its"),
    ("shed", "shed"),
    ("somebody'd", "somebodyd"),  # published the wrong way round
    ("dont.", "don't"),
    # punctuation: a space for each mark, nothing where a mark of the kind stands beside a space
    ("t-shirt", "t shirt"),
    ("red,white", "red white"),
    ("red, white", "red white"),
    ("red , white,blue", "red whiteblue"),  # one comma beside a space takes out the other one too
    ("yes!", "yes"),
    ("what?", "what"),
    ("(left)", "left"),
    ('"stop"', "stop"),
    ("black/white", "black white"),
    ("a/c", "c"),  # the article is a word by then
    ("a /c", "c"),
    ("x/ y/z", "x yz"),
    ("tape_dispenser", "tape dispenser"),
    ("rock & roll", "rock & roll"),  # not in the list
    ("50%", "50%"),
    # apostrophe and colon stay
    ("girl's", "girl's"),
    ("2:50 pm", "2:50 pm"),
    # a comma between digits takes every mark out
    ("1,000", "1000"),
    ("100,978", "100978"),
    ("1,000-2,000", "10002000"),
    ("1,a", "1"),  # not between digits: a space, and then an article
    ("1, 000", "1 000"),
    # periods: only before a digit they stay
    ("2.5", "2.5"),
    ("2.", "2"),
    (".5", ".5"),
    ("3.b", "3b"),
    ("v.1", "v.1"),
    ("a.m.", "am"),
    ("U.S.A.", "usa"),
    ("St. Louis", "st louis"),
    ("...", "..."),  # nothing would be left
    ("a." + "." * 40, "a" + "." * 9),  # 32 of the 41 go, the rest stays on the word
    # nothing would be left: it stays, in lower case
    ("A", "a"),
    ("the", "the"),
    ("?", "?"),
    ("", ""),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "normal"), NORMAL)
def test_normal_forms(answer, normal):
    assert vqa.normalise(answer) == normal


def test_contractions_are_those_of_the_published_table():
    """Its keys in lower case, but for the two that stand for themselves."""
    assert len(vqa._WHOLE) == 114
    assert all("'" in right for key, right in vqa._WHOLE.items() if key != "somebody'd")
    assert not {right for key, right in vqa._WHOLE.items() if key != "somebody'd"} & (
        vqa._WHOLE.keys() - {"somebody'd"}
    )
    for key in ("shed", "well", "were", "its", "hell", "ill", "id", "wed", "shell"):
        assert key not in vqa._WHOLE, f"{key} is a word of its own"


def test_ten_annotators_are_averaged_over_the_sets_of_nine():
    for count, expected in enumerate([0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1], 1):
        answers = ["yes"] * count + [f"other {k}" for k in range(10 - count)]
        sets = [answers[:k] + answers[k + 1 :] for k in range(10)]
        plain = np.mean([min(1, own.count("yes") / 3) for own in sets])
        assert vqa.soft_scores(answers)["yes"] == pytest.approx(expected) == plain


def test_answers_are_counted_in_their_normal_form():
    assert vqa.soft_scores(["two", "2", "Two.", "three"] + ["4"] * 6) == pytest.approx(
        {"2": 0.9, "3": 0.3, "4": 1}
    )


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["desk"], {"desk": 1}),
        (["desk", "table"], {"desk": 1 / 2, "table": 1 / 2}),
        (["desk", "desk"], {"desk": 1}),
        (["desk", "desk", "table"], {"desk": 2 / 3, "table": 1 / 3}),
        (["desk"] * 4, {"desk": 1}),
        (["desk"] * 3 + ["table"], {"desk": (3 * 2 / 3 + 1) / 4, "table": (0 + 3 / 3) / 4}),
    ],
)  # fmt: skip
def test_fewer_annotators(answers, expected):
    assert vqa.soft_scores(answers) == pytest.approx(expected)


ANSWERS = [["yes"] * 10, ["2"] * 3 + ["3"] * 7, ["red"] * 2 + ["blue"] * 8, ["a dog"]]
TYPES = {
    "answer_type": ["yes/no", "number", "other", "other"],
    "question_type": ["is", "how many", "what", "what"],
}


def test_scores_by_type():
    values = vqa.each(["Yes", "two", "red", "the dog!"], ANSWERS)
    np.testing.assert_allclose(values, [1, 0.9, 0.6, 1])
    assert vqa.score(values, **TYPES) == pytest.approx(
        {
            "accuracy": 3.5 / 4,
            "answer_type/yes/no": 1,
            "answer_type/number": 0.9,
            "answer_type/other": 0.8,
            "question_type/is": 1,
            "question_type/how many": 0.9,
            "question_type/what": 0.8,
        }
    )
    assert vqa.score(values) == pytest.approx({"accuracy": 3.5 / 4})
    assert vqa.each(["no", "", "green", "cat"], ANSWERS).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("grouped", [False, True])
def test_bootstrap_draws_whole_groups(grouped):
    """The same draws, done naively."""
    rng = np.random.default_rng(0)
    values, types = rng.random(40), rng.choice(["a", "b"], 40)
    groups = rng.integers(0, 12, 40) if grouped else np.arange(40)
    found = vqa.bootstrap(values, groups if grouped else None, samples=60, seed=5, level=0.8, kind=types)
    rng, names = np.random.default_rng(5), np.unique(groups)
    drawn = []
    for _ in range(60):
        rows = [np.flatnonzero(groups == names[k]) for k in rng.integers(len(names), size=len(names))]
        rows = np.concatenate(rows)
        drawn.append(
            [values[rows].mean(), *(values[rows][types[rows] == kind].mean() for kind in ("a", "b"))]
        )
    low, high = np.quantile(drawn, [0.1, 0.9], axis=0)
    np.testing.assert_allclose(list(found.values()), np.stack([low, high], axis=1))
    assert list(found) == list(vqa.score(values, kind=types))


def test_a_type_that_some_draws_lack_has_an_interval_all_the_same():
    found = vqa.bootstrap(np.array([1.0, 0.0, 1.0]), samples=50, kind=["rare", "usual", "usual"])
    assert found["kind/rare"] == (1, 1)
    assert all(np.isfinite(found[name]).all() for name in found)


def test_multiple_choice():
    words, scores = ["yes", "no", "2", "dog"], np.array([[0.4, 0.3, 0.2, 0.1]] * 4)
    choices = [["No", "Two"], ["a dog", "cat"], ["cat", "mouse"], ["two", "yes."]]
    assert vqa.choose(scores, words, choices) == ["No", "a dog", "", "yes."]


def test_signature():
    line = vqa.signature(n=5, split="val")
    assert line.startswith("vqa|open|annotators:leave-one-out|n:5|split:val|v:")
    assert "|multiple choice|" in vqa.signature(n=5, multiple_choice=True)


def test_mistakes():
    for predictions, answers in itertools.product(([], ["a"], ["a", "b"]), repeat=2):
        if len(predictions) != len(answers) or not predictions:
            with pytest.raises(
                ValueError, match=f"{len(predictions)} predictions, and answers to {len(answers)} questions"
            ):
                vqa.each(predictions, [[answer] for answer in answers])
    with pytest.raises(
        ValueError, match=r"1 of 2 questions \(the first is number 1\) have no answer .* test split"
    ):
        vqa.each(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="kind has 1 names for 2 questions"):
        vqa.score(np.ones(2), kind=["a"])
    with pytest.raises(ValueError, match="no question"):
        vqa.score(np.ones(0))
