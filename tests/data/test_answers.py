"""The vocabulary of answers: what is in it, what is not, and the file that it is kept in."""

import numpy as np
import pytest

from mmgen_jax.data import answers
from mmgen_jax.data.answers import Answers


def test_the_most_frequent_come_first_in_their_normal_form():
    said = ["Yes", "yes.", "two", "2", "the dog", "no", "dont", "no", "no"]
    vocabulary = Answers.train(said)
    assert vocabulary.words == ["no", "2", "yes", "dog", "don't"]
    assert Answers.train(said, size=2).words == ["no", "2"]
    assert Answers.train(said, min_count=2).words == ["no", "2", "yes"]
    assert Answers.train(reversed(said)).fingerprint == vocabulary.fingerprint
    assert len(vocabulary) == 5
    assert [vocabulary.encode(answer) for answer in ("No!", "a dog", "Two", "cat", "")] == [0, 3, 1, -1, -1]


def test_soft_scores_of_ten_annotators():
    vocabulary = Answers(["yes", "no", "maybe", "never"])
    target = vocabulary.soft(["yes"] * 4 + ["no"] * 3 + ["Maybe"] * 2 + ["unsure"])
    np.testing.assert_allclose(target, np.array([1, 0.9, 0.6, 0], np.float32), rtol=1e-6)
    assert target.dtype == np.float32
    assert vocabulary.soft(["cat"] * 10).sum() == 0


def test_most_said():
    assert answers.most_said(["2", "one", "two", "1", "three"]) == "2"
    assert answers.most_said(["cat"]) == "cat"


def test_saved_and_read_again(tmp_path):
    vocabulary = Answers(["ja", "n\u00e4he", "2:50"])
    vocabulary.save(tmp_path / "answers.json")
    again = answers.load(tmp_path / "answers.json")
    assert again.words == vocabulary.words and again.fingerprint == vocabulary.fingerprint
    assert Answers(["n\u00e4he", "ja", "2:50"]).fingerprint != vocabulary.fingerprint, "the order counts"


@pytest.mark.parametrize(
    "content", ['{"words": ["a"', '["yes"]', '{"words": []}', '{"words": ["a", "a"]}', "{}"]
)
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "answers.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"answers\.json is not a whole vocabulary of answers .* Copy it again"
    ):
        answers.load(tmp_path / "answers.json")


def test_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No answers at .*none\.json"):
        answers.load(tmp_path / "none.json")
    with pytest.raises(
        ValueError, match=r"No answer occurs 3 times \(2 answers, 1 different ones\): lower min_count"
    ):
        Answers.train(["yes", "Yes"], min_count=3)
    with pytest.raises(ValueError, match="size is 0"):
        Answers.train(["yes"], size=0)
