"""A classifier's answers scored: one label of an image, or several, with a model that the test plays itself."""

import json

import numpy as np
import pytest
from PIL import Image

from mmgen_jax.data import sources
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators import classification
from mmgen_jax.scores.classification import wilson

LENGTH, BATCH, L, K = 22, 4, 3, 5


class Toy:
    """Images that show their labels; those whose number is a multiple of 5 show one wrong."""

    def __init__(self, labels=1):
        self.labels = labels
        if labels == 1:
            self.classes = list("abcde")

    def __len__(self):
        return LENGTH

    def captions(self, index):
        return []

    def __getitem__(self, index):
        label = np.array([index % K, index // 2 % K, index // 3 % K], np.int32)
        image = np.zeros((8, 8, 3), np.uint8)
        image[0, 0] = label
        if index % 5 == 0:
            image[0, 0, 0] = (label[0] + 1) % K
        return {"image": image, "label": label[0] if self.labels == 1 else label}


def predict(name, batch):
    assert name == "classify"
    logits = np.float32(np.eye(K)[batch["image"][:, 0, 0]])
    return {"logits": logits[:, 0] if batch["label"].ndim == 1 else logits}, batch


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "toy", Toy)

    def make(source=None, **more):
        common = {"source": {"name": "toy", **(source or {})}, "transforms": "array", "batch_size": BATCH}
        pipeline = Pipeline(**common, tokenizer={"name": "bytes"})
        return classification.make(**common, **more, pipeline=pipeline)

    return make


def test_one_label(make, tmp_path):
    evaluator = make()
    scores = evaluator.run(predict, tmp_path / "x.png")
    assert scores["top1"] == pytest.approx(17 / 22)
    # Its softmax of a one and four zeros is always e / (e + 4) sure.
    assert scores["ece"] == pytest.approx(17 / 22 - np.e / (np.e + 4))
    assert evaluator.table(scores)["ece"].floor is None
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "PNG" and image.width > image.height
    row = evaluator.table(scores)["top1"]
    assert row.value == pytest.approx(100 * 17 / 22)
    assert row.interval == pytest.approx(tuple(100 * x for x in wilson(17 / 22, LENGTH)))
    assert evaluator.signature(step=3).startswith("classification|classes:5|n:22|split:toy|step:3|v:")
    evaluator.write(tmp_path / "x.jsonl")
    first, second, *_ = map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines())
    assert first == {"index": 0, "label": "a", "predicted": "b"}
    assert second == {"index": 1, "label": "b", "predicted": "b"}


def test_several_labels(make, tmp_path):
    evaluator = make(source={"labels": L}, labels=L)
    scores = evaluator.run(predict, tmp_path / "x.png")
    assert scores == pytest.approx({"labels_right": 1 - 5 / 66, "all_right": 17 / 22})
    rows = evaluator.table(scores)
    assert rows["all_right"].interval == pytest.approx(tuple(100 * x for x in wilson(17 / 22, LENGTH)))
    assert rows["labels_right"].value == pytest.approx(100 * (1 - 5 / 66))
    assert evaluator.signature(step=3).startswith("classification|labels:3|n:22|split:toy|step:3|v:")
    evaluator.write(tmp_path / "x.jsonl")
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert len(records) == LENGTH
    assert records[5] == {"index": 5, "label": [0, 2, 1], "predicted": [1, 2, 1]}


def test_any_number_of_labels(make, tmp_path, monkeypatch):
    """An example has the labels 0 .. index % 3 - 1; every fifth is said to have the last one too."""

    class Any(Toy):
        def __init__(self):
            self.classes = ["red", "round", "big"]

        def __getitem__(self, index):
            image = np.zeros((8, 8, 3), np.uint8)
            image[0, 0, 0] = index
            return {"image": image, "label": (np.arange(3) < index % 3).astype(np.int32)}

    monkeypatch.setitem(sources.SOURCES, "toy", Any)

    def predict(name, batch):
        assert name == "classify"
        index = batch["image"][:, 0, 0, 0].astype(int)
        said = (np.arange(3) < index[:, None] % 3) | ((np.arange(3) == 2) & (index[:, None] % 5 == 0))
        return {"logits": np.where(said, 2.0, -1.0).astype(np.float32)}, batch

    evaluator = make(multi_label=True)
    scores = evaluator.run(predict, tmp_path / "x.png")
    assert scores["all_right"] == pytest.approx(17 / 22)
    assert scores["f1"] == pytest.approx(2 / 3), "the last is said and never true"
    assert scores["map"] == 1.0
    rows = evaluator.table(scores)
    assert list(rows) == list(scores)
    assert rows["all_right"].interval == pytest.approx(tuple(100 * x for x in wilson(17 / 22, LENGTH)))
    assert rows["map"] == (100.0, None, None, None)
    evaluator.write(tmp_path / "x.jsonl")
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert records[5] == {"index": 5, "label": [1, 1, 0], "predicted": [1, 1, 1]}
    assert "round" in (tmp_path / "x.txt").read_text()
    with pytest.raises(
        ValueError, match=r"has the label \[3\], the classifier gives \[5\]: with multi_label"
    ):
        make(multi_label=True).run(
            lambda name, batch: ({"logits": np.zeros((BATCH, 5))}, batch), tmp_path / "x.png"
        )


def test_mistakes_are_named(make, tmp_path):
    def three_classes(name, batch):
        outputs, batch = predict(name, batch)
        return {"logits": outputs["logits"][..., :3]}, batch

    with pytest.raises(ValueError, match=r"task\.model\.classes is 3, the source has 5 classes"):
        make().run(three_classes, tmp_path / "x.png")
    with pytest.raises(ValueError, match='source "toy" has no classes, which OneLabel needs'):
        make(source={"labels": L}).run(predict, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"has the label \[\], the classifier gives \[3\]"):
        make(labels=L).run(
            lambda name, batch: ({"logits": np.zeros((BATCH, L, K))}, batch), tmp_path / "x.png"
        )
