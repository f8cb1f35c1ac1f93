"""Answers scored: open and multiple choice, by type, with floor and ceiling; the picture and the file of predictions."""

import json

import numpy as np
import pytest
from PIL import Image

from mmgen_jax import figures
from mmgen_jax.data import sources
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators.answers import make as make_evaluator
from mmgen_jax.scores import vqa

LENGTH, BATCH = 10, 4
WORDS = ("yes", "no", "red", "2")


class Toy:
    """Questions whose picture shows the place of the answer in WORDS; every fifth has an answer that no training question has."""

    def __init__(self, split="train"):
        self.split = split

    def __len__(self):
        return LENGTH

    def captions(self, index):
        return []

    def question(self, index):
        return f"what is {index}?"

    def answers(self, index):
        if self.split == "val" and index % 5 == 4:
            return ["blue"]
        return [WORDS[index % 4]] * 8 + ["a dog"] * 2

    def choices(self, index):
        return ["blue", "no", "Red"]

    def question_type(self, index):
        return "what is"

    def answer_type(self, index):
        return "yes/no" if index % 4 < 2 else "other"

    def __getitem__(self, index):
        image = np.full((8, 8, 3), index % 4, np.uint8)
        return {"image": image, "question": self.question(index), "answers": self.answers(index)}


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "toy", Toy)

    def make(source="toy", **more):
        common = {"transforms": "question(8) | answers", "batch_size": BATCH}
        pipeline = Pipeline(
            source={"name": "toy"}, tokenizer={"name": "words", "min_count": 1}, answers={"size": 4}, **common
        )
        source = {"name": source, **({"split": "val"} if source == "toy" else {"length": 8})}
        return make_evaluator(source=source, **common, **more, pipeline=pipeline)

    return make


def predictor(evaluator):
    """It says what the picture shows, with probability 0.7."""
    words = evaluator.pipeline.answers.words

    def predict(name, batch):
        shown = np.array([words.index(WORDS[k]) for k in batch["image"][:, 0, 0, 0]])
        score = np.float32(np.where(np.arange(4) == shown[:, None], 0.7, 0.1))
        best = np.argsort(-score, axis=1).astype(np.int32)
        given = {"answer": best, "probability": -np.sort(-score, axis=1)}
        return given if name == "answer" else {"score": score}, batch

    return predict


def test_open_answers(make, tmp_path):
    evaluator = make()
    scores = evaluator.run(predictor(evaluator), tmp_path / "figures" / "val.png")
    # All right but numbers 4 and 9, whose answer the run cannot give; 4 says "yes", 9 "no".
    assert scores == {
        "accuracy": pytest.approx(0.8),
        "answer_type/yes/no": pytest.approx(4 / 6),
        "answer_type/other": 1.0,
        "question_type/what is": pytest.approx(0.8),
        "outside": pytest.approx(0.2),
    }
    table = evaluator.table(scores)
    row = table["accuracy"]
    assert row.value == pytest.approx(80) and row.interval[0] < 80 < row.interval[1]
    # "a dog", of two in ten annotators, scores 0.6 wherever the answer is known: no other constant does better.
    soft = [vqa.soft_scores(Toy("val").answers(i)) for i in range(LENGTH)]
    constants = {word: np.mean([s.get(word, 0) for s in soft]) for word in ("yes", "no", "red", "2", "dog")}
    assert row.floor == pytest.approx(100 * max(constants.values())) and row.ceiling == pytest.approx(80)
    assert table["answer_type/other"].ceiling == 100
    assert evaluator.signature(step=3).startswith(
        "vqa|open|annotators:leave-one-out|n:10|split:val|step:3|v:"
    )
    evaluator.spec["part"] = "held out 1/10"
    assert "|split:val, held out 1/10|" in evaluator.signature()
    with Image.open(tmp_path / "figures" / "val.png") as picture:
        assert picture.width > 300


def test_what_the_picture_says(make, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "contact_sheet", lambda *given, **more: drawn.append(given))
    evaluator = make(pictures=5)
    evaluator.run(predictor(evaluator), tmp_path / "x.png")
    (_, rows, titles, said, right), *none = drawn
    assert not none and titles == ["0 to 4"] and len(rows[0]) == 5 and right == [[True] * 4 + [False]]
    assert said[0][0] == "what is 0? yes" and said[0][4] == "what is 4? yes, not blue"


def test_predictions(make, tmp_path):
    evaluator = make(pictures=0)
    evaluator.run(predictor(evaluator), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
    evaluator.write(tmp_path / "new" / "val.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "new" / "val.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(LENGTH))
    assert lines[2] == {
        "index": 2,
        "question": "what is 2?",
        "answer": "red",
        "probability": 0.7,
        "answers": Toy().answers(2),
        "score": 1.0,
    }


def test_multiple_choice(make, tmp_path):
    """Of the choices that the vocabulary has, the likeliest; it is written as the choice is."""
    evaluator = make(pictures=0, multiple_choice=True)
    scores = evaluator.run(predictor(evaluator), tmp_path / "x.png")
    said = [record["answer"] for record in evaluator.records]
    assert [said[i] for i in (1, 2, 5, 6)] == ["no", "Red", "no", "Red"]
    assert scores["accuracy"] == pytest.approx(0.4)  # 1, 2, 5 and 6; 9 should be blue
    assert "multiple choice" in evaluator.signature(step=1)


def test_written_answers(make, tmp_path):
    """A run that writes needs no vocabulary: nothing is outside of its reach. Of a beam the first counts."""
    evaluator = make(pictures=0)
    tokenizer = evaluator.pipeline.tokenizer

    def predict(name, batch):
        assert name == "answer"
        tokens = np.zeros((BATCH, 2, 4), np.int32)
        for row, shown in zip(tokens, batch["image"][:, 0, 0, 0], strict=True):
            ids = tokenizer.encode(WORDS[shown])
            row[0, : len(ids) + 1] = [*ids, tokenizer.eos]
        log_prob = np.float32([[np.log(0.7), -1e30]] * BATCH)
        return {"tokens": tokens, "log_prob": log_prob, "finished": log_prob > -9}, batch

    scores = evaluator.run(predict, tmp_path / "x.png")
    assert scores["accuracy"] == pytest.approx(0.8) and scores["finished"] == 1.0 and "outside" not in scores
    table = evaluator.table(scores)
    assert table["accuracy"].ceiling == 100 and table["finished"].value == 100
    assert evaluator.records[2]["answer"] == "red" and evaluator.records[2]["probability"] == 0.7


def test_a_source_without_questions(make, tmp_path):
    evaluator = make("scenes")
    with pytest.raises(
        ValueError, match=r'The source "scenes" has no question, answers: this evaluation needs'
    ):
        evaluator.run(predictor(evaluator), tmp_path / "x.png")
