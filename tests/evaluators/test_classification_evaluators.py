"""Zero-shot and linear-probe evaluation with a model that the test plays itself."""

import json

import numpy as np
import pytest

from mmgen_jax.data import sources
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators import linear_probe, zero_shot
from mmgen_jax.scores.classification import wilson

metrics = pytest.importorskip("sklearn.metrics")

NAMES = ["red", "green", "blue", "yellow", "pink", "white", "black"]
LENGTH, BATCH = 30, 4
MAX_LEN = 8


class Toy:
    """Grey images whose brightness is 10 times their class, plus a little that says which example it is."""

    def __init__(self, length=LENGTH, classes=7, seed=0):
        self.classes = NAMES[:classes]
        self._labels = np.random.default_rng(seed).choice(classes, length, p=_frequency(classes))

    def __len__(self):
        return len(self._labels)

    def label(self, index):
        return int(self._labels[index])

    def captions(self, index):
        return [f"a picture of a {self.classes[self.label(index)]} thing"]

    def __getitem__(self, index):
        image = np.full((8, 8, 3), 10 * self.label(index) + index % 5, np.uint8)
        return {"image": image, "captions": self.captions(index), "label": np.int32(self.label(index))}


def _frequency(classes):
    weights = np.arange(classes, 0, -1.0)
    return weights / weights.sum()


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "toy", Toy)


@pytest.fixture
def pipeline(toy):
    return Pipeline(
        source={"name": "toy"},
        transforms=f"text({MAX_LEN})",
        batch_size=BATCH,
        tokenizer={"name": "words", "min_count": 1},
    )


def common(pipeline, **source):
    return {
        "source": {"name": "toy", **source},
        "transforms": "resize(8)",
        "batch_size": BATCH,
        "pipeline": pipeline,
    }


class Model:
    """Embeds an image as its class (or, one time in four, the next) and a text as the class that it names.

    A template's own words pull its texts aside by `pull`, more the longer it is.
    """

    def __init__(self, tokenizer, pull=0.0):
        self.words, self.pull, self.calls = tokenizer.words, pull, []
        self.ids = [tokenizer.encode(name)[0] for name in NAMES]

    def __call__(self, name, batch):
        self.calls.append((name, batch))
        if name == "embed_text":
            return {"text": self.text(batch["tokens"])}, batch
        level = batch["image"][:, 0, 0, 0].astype(int)
        place = (level // 10 + (level % 10 == 1)) % 7
        return {"image": np.eye(8, dtype=np.float32)[place]}, batch

    def text(self, tokens):
        assert tokens.shape == (BATCH, 1, MAX_LEN)
        x = np.zeros((BATCH, 1, 8), np.float32)
        for row, ids in zip(x[:, 0], tokens[:, 0], strict=True):
            (place,) = [k for k, word in enumerate(self.ids) if word in ids]
            row[place] = 1
            row[7] = self.pull * np.sum(ids > 0)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)


def answers(source):
    level = [10 * source.label(i) + i % 5 for i in range(len(source))]
    return np.array([(value // 10 + (value % 10 == 1)) % 7 for value in level])


@pytest.fixture
def ran(pipeline, tmp_path):
    evaluator = zero_shot.make(**common(pipeline), max_len=MAX_LEN)
    model = Model(pipeline.tokenizer, pull=0.1)
    return evaluator, model, evaluator.run(model, tmp_path / "x.png")


def test_zero_shot_scores(ran):
    evaluator, _, scores = ran
    label = np.array([evaluator.source.label(i) for i in range(LENGTH)])
    predicted = answers(evaluator.source)
    macro = metrics.precision_recall_fscore_support(label, predicted, average="macro", zero_division=0)
    assert scores["top1"] == metrics.accuracy_score(label, predicted)
    assert 0.5 < scores["top1"] < 0.9 < scores["top5"] <= 1
    assert [scores[k] for k in ("precision", "recall", "f1")] == pytest.approx(macro[:3])


def test_classes_are_unit_means_of_unit_templates(ran):
    evaluator, model, _ = ran
    embedding = evaluator._embed_classes(model)
    assert embedding.shape == (7, 8)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-6)
    expected = np.zeros((len(zero_shot.TEMPLATES), 8))
    for row, template in zip(expected, zero_shot.TEMPLATES, strict=True):
        tokens = evaluator.pipeline.tokenizer.encode(template.format(name="blue"))
        row[2], row[7] = 1, 0.1 * (len(tokens) + 2)
        row /= np.linalg.norm(row)
    mean = expected.mean(axis=0)
    np.testing.assert_allclose(embedding[2], mean / np.linalg.norm(mean), rtol=1e-5)


def test_zero_shot_table_and_signature(ran):
    evaluator, _, scores = ran
    rows = evaluator.table(scores)
    assert rows["top1"].value == 100 * scores["top1"]
    assert rows["top1"].interval == tuple(100 * x for x in wilson(scores["top1"], LENGTH))
    label = [evaluator.source.label(i) for i in range(LENGTH)]
    assert rows["top1"].floor == pytest.approx(100 * np.bincount(label).max() / LENGTH)
    assert rows["f1"].interval is None
    assert evaluator.signature(step=3).startswith(
        f"zero_shot|templates:{len(zero_shot.TEMPLATES)}|classes:7|n:30|split:toy|step:3|v:"
    )


def test_predictions_and_report(ran, tmp_path):
    evaluator, *_ = ran
    evaluator.write(tmp_path / "new" / "test.jsonl")
    records = [json.loads(line) for line in (tmp_path / "new" / "test.jsonl").read_text().splitlines()]
    predicted = answers(evaluator.source)
    assert [record["index"] for record in records] == list(range(LENGTH))
    assert [record["predicted"] for record in records] == [NAMES[k] for k in predicted]
    assert records[4]["label"] == NAMES[evaluator.source.label(4)]
    report = (tmp_path / "new" / "test.txt").read_text()
    label = [evaluator.source.label(i) for i in range(LENGTH)]
    present = sorted({*label, *predicted})
    assert report == metrics.classification_report(
        label, predicted, labels=present, target_names=[NAMES[k] for k in present], digits=3, zero_division=0
    )


def test_other_names_for_the_classes(pipeline, tmp_path):
    """Names in another order are other classes: the answers follow them."""
    turned = [*NAMES[1:], NAMES[0]]
    evaluator = zero_shot.make(
        **common(pipeline), max_len=MAX_LEN, templates=["a {name} thing"], classes=turned
    )
    evaluator.run(Model(pipeline.tokenizer), tmp_path / "x.png")
    np.testing.assert_array_equal(evaluator._scores.argmax(axis=1), (answers(evaluator.source) - 1) % 7)


def test_zero_shot_wants_names_and_labels(pipeline, tmp_path):
    options = common(pipeline)
    with pytest.raises(ValueError, match=r"'a thing' lacks \{name\}"):
        zero_shot.make(**options, max_len=MAX_LEN, templates=["a {name}", "a thing"])
    with pytest.raises(ValueError, match="at least one template"):
        zero_shot.make(**options, max_len=MAX_LEN, templates=[])
    model = Model(pipeline.tokenizer)
    evaluator = zero_shot.make(**options, max_len=MAX_LEN, classes=["red", "green"])
    with pytest.raises(ValueError, match="classes has 2 names, the source 7"):
        evaluator.run(model, tmp_path / "x.png")
    scenes = {**options, "source": {"name": "scenes", "size": 24, "length": 4}}
    with pytest.raises(ValueError, match='source "scenes" has no classes, which ZeroShot needs'):
        zero_shot.make(**scenes, max_len=MAX_LEN).run(model, tmp_path / "x.png")
    bare = {**options, "transforms": f"caption({MAX_LEN})"}
    with pytest.raises(ValueError, match=r'without "label".*leave caption'):
        zero_shot.make(**bare, max_len=MAX_LEN).run(model, tmp_path / "x.png")


def features(name, batch):
    """A noisy code of the class, of very unequal scales; one feature says nothing and never changes."""
    assert name == "features"
    rng = np.random.default_rng(batch["image"][0].sum())
    label = batch["image"][:, 0, 0, 0].astype(int) // 10
    x = np.eye(7)[label] + 0.4 * rng.normal(size=(len(label), 7))
    x = np.concatenate([x * 10.0 ** np.arange(-3, 4), np.ones((len(label), 1))], axis=1)
    return {"features": x.astype(np.float32)}, batch


def probe(pipeline, train, **options):
    return linear_probe.make(**common(pipeline), train_source={"name": "toy", "seed": 1, **train}, **options)


def test_linear_probe_is_scikit_learns(pipeline, tmp_path):
    from sklearn.linear_model import LogisticRegression

    evaluator = probe(pipeline, {"length": 80}, c=0.5)
    scores = evaluator.run(features, tmp_path / "x.png")
    train, given = evaluator._train.outputs(features, "features")
    asked, truth = evaluator.outputs(features, "features")
    x, y = train["features"].astype(np.float64), asked["features"].astype(np.float64)
    scale = np.where(x.std(axis=0) > 0, x.std(axis=0), 1)
    model = LogisticRegression(C=0.5, max_iter=1000).fit((x - x.mean(axis=0)) / scale, given["label"])
    standard = (y - x.mean(axis=0)) / scale
    assert scores["top1"] == model.score(standard, truth["label"]) > 0.7
    np.testing.assert_allclose(
        evaluator._scores[:, model.classes_], model.decision_function(standard), atol=1e-3
    )
    assert evaluator.signature().startswith("linear_probe|features:features|c:0.5|train:80|classes:7|n:30|")
    assert evaluator.table(scores)["top1"].floor < 50


def test_c_is_chosen_without_the_test_set(pipeline, tmp_path):
    evaluator = probe(pipeline, {"length": 80}, c=(1.0, 1e-6))
    evaluator.run(features, tmp_path / "x.png")
    assert "|c:1.0|train:80|" in evaluator.signature()


def test_probe_on_part_of_the_training_data(pipeline, tmp_path):
    """Evenly spaced; a class that the part lacks is never the answer."""
    evaluator = probe(pipeline, {"length": 60}, c=1.0, examples=10)
    evaluator.run(features, tmp_path / "x.png")
    assert "|train:10|" in evaluator.signature()
    whole, part = Toy(60, seed=1), evaluator._train.source
    assert [int(part[i]["label"]) for i in range(10)] == [whole.label(6 * i) for i in range(10)]
    absent = sorted(set(range(7)) - {int(part[i]["label"]) for i in range(10)})
    assert absent
    assert not np.isin(evaluator._scores.argmax(axis=1), absent).any()


def test_probe_of_two_classes(pipeline, tmp_path):
    evaluator = linear_probe.make(
        **common(pipeline, classes=2), train_source={"name": "toy", "classes": 2, "seed": 1}, c=1.0
    )
    scores = evaluator.run(features, tmp_path / "x.png")
    assert scores["top1"] > 0.8
    assert evaluator._scores.shape == (LENGTH, 2)


def test_probe_errors(pipeline, tmp_path):
    with pytest.raises(ValueError, match="one positive number, or several"):
        probe(pipeline, {}, c=())
    with pytest.raises(ValueError, match="one class only"):
        probe(pipeline, {}, c=1.0, examples=1).run(features, tmp_path / "x.png")
    with pytest.raises(ValueError, match="other classes"):
        probe(pipeline, {"classes": 5}).run(features, tmp_path / "x.png")
