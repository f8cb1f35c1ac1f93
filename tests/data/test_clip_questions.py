"""Questions about drawn clips: answered by hand, balanced, the same on every machine."""

import hashlib
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from test_clips import CLIP

from mmgen_jax.data import clip_questions, clips
from mmgen_jax.data.clip_questions import ClipQuestions, Question


@pytest.mark.parametrize(
    ("kind", "about", "answer"),
    [
        ("first", "", "hit"),
        ("last", "", "turn"),
        ("count", "turn", "1"),
        ("count", "move", None),  # who hits moves too
        ("colour", "square", "green"),
        ("colour", "circle", None),
        ("direction", "circle", None),
        ("change", "square", None),
    ],
)
def test_answers_by_hand(kind, about, answer):
    assert clip_questions.answer(Question(kind, about), CLIP) == answer
    assert clip_questions.answer(Question(kind, "star"), CLIP) == (
        {"first": "hit", "last": "turn", "count": "0"}.get(kind)
    )


@pytest.mark.parametrize("kind", clip_questions.QUESTIONS)
def test_questions_are_balanced_and_right(kind):
    """Given a question's text each answer is as likely, so that a blind model is right in one of so many."""
    source = ClipQuestions("train", kinds=[kind])
    by_text = defaultdict(Counter)
    for i in range(1200):
        (answer,) = source.answers(i)
        by_text[source.question(i)][answer] += 1
    answers = clip_questions.QUESTIONS[kind][2]
    assert len(by_text) == len(clip_questions.QUESTIONS[kind][1])
    for counts in by_text.values():
        total = sum(counts.values())
        # Five standard deviations of a share of 1 / K.
        bound = 5 * math.sqrt((1 / len(answers)) * (1 - 1 / len(answers)) / total)
        assert max(counts.values()) / total < 1 / len(answers) + bound
    for i in range(25):
        question = source._ask(i)[0]
        clip = source.clip(i)
        assert [clip_questions.answer(question, clip)] == source.answers(i)
        assert clips.split_of(clip) == "train"


def test_an_example_of_questions():
    source = ClipQuestions("val", size=24, length=3)
    example = source[2]
    assert example["question_type"] == source.question_type(2)
    assert not source.captions(2)
    assert example["video"].shape == (12, 24, 24, 3) and example["video"].dtype == np.uint8
    assert example["answers"][0] in example["choices"]
    assert example["question_type"] in clip_questions.QUESTIONS and example["name"] == "clip_questions/val/2"
    assert example["answer_type"] == ("number" if example["question_type"] == "count" else "other")


def test_same_on_every_machine():
    """Update this only when other questions are meant: numbers of earlier runs then no longer compare."""
    source = ClipQuestions("test", size=24)
    digest = hashlib.sha256()
    for i in range(20):
        digest.update(source[i]["video"].tobytes())
        digest.update(f"{source.question(i)} {source.answers(i)} {source.clip(i)}".encode())
    assert digest.hexdigest() == GOLDEN


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match='Did you mean "count"'):
        ClipQuestions(kinds=["cuont"])
    with pytest.raises(ValueError, match="kinds is empty"):
        ClipQuestions(kinds=[])


GOLDEN = "63c00fe650e185d74abf21f12b9faa7513a98789d03a29cae460e2389d552188"
