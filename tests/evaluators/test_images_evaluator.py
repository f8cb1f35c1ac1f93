"""Scores of samples against real images, with features that the test makes: each number can be computed from them."""

import numpy as np
import pytest
from PIL import Image

from mmgen_jax.data import sources
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators import images
from mmgen_jax.scores import images as scores_lib
from mmgen_jax.scores.classification import wilson

BATCH, FEATURES, LENGTH, N = 8, 6, 60, 100
NAMES = ["bag", "boot", "coat"]


class Toys:
    """Pictures of three classes, each of its own grey; `seed` makes others."""

    classes = NAMES

    def __init__(self, seed=0, length=LENGTH):
        self.seed, self.length = seed, length

    def __len__(self):
        return self.length

    def label(self, index):
        return index % 3

    def captions(self, index):
        return [f"a photo of a {NAMES[index % 3]} number {index}"]

    def __getitem__(self, index):
        image = np.full((16, 16, 3), 80 * (index % 3), np.uint8)
        image[0, 0] = self.seed
        image[0, 1] = index
        return {"image": image, "captions": self.captions(index), "label": np.int32(index % 3)}


SOURCE = {"name": "toys", "seed": 1}
COMMON = {"source": SOURCE, "transforms": "text(max_len=12)", "batch_size": BATCH}
DRAWN = 200  # the first pixel of a sample


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "toys", Toys)


@pytest.fixture
def pipeline(toys):
    return Pipeline(
        **{**COMMON, "source": {"name": "toys"}},
        tokenizer={"name": "words", "min_count": 1},
        seed=7,
    )


class Model:
    """Features are normal around the class; those of samples lie `shift` beside. Every third sample is of another class."""

    def __init__(self, shift=0.0, copy=False):
        self.shift, self.copy, self.calls = shift, copy, []

    def fingerprint(self, name=""):
        return {"inception": "aaaaaaaa", "reader": "bbbbbbbb", "matcher": "cccccccc"}[name.partition(".")[0]]

    def resize(self, name):
        return "tf1" if name.startswith("inception") else "none"

    def tokenise(self, name, texts):
        assert name == "matcher.embed_text"
        return np.array([int(text.split()[-1]) for text in texts], np.int32).reshape(-1, 1, 1)

    def features(self, seed, index):
        rng = np.random.default_rng([seed, index])
        if seed == DRAWN and self.copy:
            return self.features(0, index % LENGTH) + 1e-3 * rng.normal(size=FEATURES)
        return rng.normal(size=FEATURES) + 4 * np.eye(FEATURES)[index % 3] + (seed == DRAWN) * self.shift

    def __call__(self, name, batch):
        self.calls.append((name, batch))
        there = batch["mask"] > 0 if "mask" in batch else None
        if name == "generate":
            assert "image" not in batch
            image = np.zeros((BATCH, 16, 16, 3), np.uint8)
            image[:, 0, 0], image[:, 0, 1] = DRAWN, batch["index"][:, None]
            return {"image": image}, batch
        if name == "matcher.embed_text":
            return {"text": np.eye(LENGTH)[batch["tokens"][:, :, 0]]}, batch
        seed, index = (batch["image"][:, 0, k, 0].astype(int) for k in (0, 1))
        rows = np.array([self.features(*pair) for pair in zip(seed, index, strict=True)])
        rows[~there] = np.nan
        if name == "inception.features":
            return {"features": rows, "logits": 2 * rows[:, :3]}, batch
        if name == "reader.classify":
            return {"logits": 3 * rows[:, :3]}, batch
        assert name == "matcher.embed_image"
        text = np.eye(LENGTH)[index % LENGTH]
        text[(seed == DRAWN) & (index % 4 == 0)] = np.eye(LENGTH)[0]
        return {"image": text}, batch

    def all(self, seed, count):
        return np.array([self.features(seed, i) for i in range(count)])


def run(pipeline, tmp_path, model, **more):
    evaluator = images.make(**COMMON, pipeline=pipeline, n=N, **more)
    return evaluator, evaluator.run(model, tmp_path / "new" / "x.png")


def statistics(rows):
    return scores_lib.Statistics.of(rows)


def test_distances(pipeline, tmp_path):
    model = Model(shift=1.0)
    evaluator, scores = run(
        pipeline, tmp_path, model, scores=("fid", "kid", "precision_recall"), resamples=20
    )
    real, fake = model.all(1, LENGTH), model.all(DRAWN, N)
    assert scores["fid"] == pytest.approx(scores_lib.fid(statistics(real), statistics(fake)), rel=1e-9)
    assert scores["kid"] == pytest.approx(scores_lib.kid(real, fake, seed=7)["kid"])
    for name, value in scores_lib.manifold(real, fake).items():
        assert scores[name] == value
    rows = evaluator.table(scores)
    assert list(rows) == ["fid", "kid", "kid_std", "precision", "recall", "density", "coverage"]
    assert rows["fid"].interval[0] < scores["fid"] < rows["fid"].interval[1]
    # Half of the real images beside the other half: a shifted generator is worse.
    assert 0 < rows["fid"].floor < scores["fid"] and rows["fid"].ceiling is None
    assert rows["kid"].floor < scores["kid"] and rows["kid_std"][1:] == (None, None, None)
    low, high = wilson(scores["precision"], N)
    assert rows["precision"][:2] == (100 * scores["precision"], (100 * low, 100 * high))
    assert rows["precision"].ceiling > rows["precision"].value
    assert rows["density"].value == scores["density"] and rows["density"].floor is None
    line = evaluator.signature(step=5)
    assert line.startswith(
        "fid+kid+precision_recall|features:inception.features|weights:aaaaaaaa|n:100|resize:tf1|seed:7|real:60|split:toys|step:5|v:"
    )


def test_real_images_are_read_once_and_samples_have_their_own_noise(pipeline, tmp_path):
    model = Model()
    evaluator, _ = run(pipeline, tmp_path, model, scores=("fid",))
    drawn = np.concatenate([batch["index"] for name, batch in model.calls if name == "generate"])
    assert drawn[drawn >= 0].tolist() == list(range(N))
    asked = [batch for name, batch in model.calls if name == "inception.features"]
    assert len(asked) == -(-LENGTH // BATCH) + -(-N // BATCH)
    # Judges see samples and real images in one form, or they would be compiled twice.
    assert len({tuple((key, x.shape, x.dtype) for key, x in sorted(batch.items())) for batch in asked}) == 1
    before = len(asked)
    evaluator.run(model, tmp_path / "x.png")
    assert sum(name == "inception.features" for name, _ in model.calls) == before + -(-N // BATCH)


def test_other_real_images_are_the_floor(pipeline, tmp_path):
    model = Model()
    others = {"name": "toys", "seed": 2}
    evaluator, scores = run(pipeline, tmp_path, model, scores=("fid",), others=others, resamples=0)
    row = evaluator.table(scores)["fid"]
    expected = scores_lib.fid(statistics(model.all(1, LENGTH)), statistics(model.all(2, LENGTH)))
    assert row.floor == pytest.approx(expected, rel=1e-9)
    assert row.interval is None


def test_few_images(pipeline, tmp_path):
    def few(**more):
        evaluator = images.make(**COMMON, pipeline=pipeline, n=5, resamples=3, **more)
        return evaluator, evaluator.run(Model(), tmp_path / "x.png")

    with pytest.raises(scores_lib.TooFewSamples, match="Take 7 or more"):
        few()
    evaluator, scores = few(few=True)
    assert np.isfinite(scores["fid"]) and evaluator.table(scores)["fid"].floor > 0
    # KID has no such bound, but the halves of ten images have no five neighbours: no ceiling.
    evaluator = images.make(**COMMON, pipeline=pipeline, n=8, scores=("precision_recall",))
    rows = evaluator.table(evaluator.run(Model(), tmp_path / "x.png"))
    assert rows["coverage"].ceiling is None


def test_classes(pipeline, tmp_path):
    model = Model()
    evaluator, scores = run(
        pipeline, tmp_path, model, scores=("inception_score", "cas"), logits="reader.classify"
    )
    fake, real = model.all(DRAWN, N), model.all(1, LENGTH)
    label = np.arange(LENGTH) % 3
    # A sample's class is that of the caption it was drawn for.
    asked = np.arange(N) % LENGTH % 3
    assert scores["cas"] == scores_lib.classification_accuracy(fake, asked, real, label)
    assert 0.8 < scores["cas"] < 1.01
    expected = scores_lib.inception_score(3 * fake[:, :3], seed=7)
    assert scores["inception_score"] == pytest.approx(expected["inception_score"])
    rows = evaluator.table(scores)
    low, high = wilson(scores["cas"], LENGTH)
    assert rows["cas"].interval == (100 * low, 100 * high)
    best = scores_lib.inception_score(3 * real[:, :3], seed=7)
    assert rows["inception_score"].ceiling == pytest.approx(best["inception_score"])
    line = evaluator.signature()
    assert "|weights:aaaaaaaa,bbbbbbbb|" in line and "|resize:tf1,none|" in line


def test_a_judge_that_says_two_things_is_asked_once(pipeline, tmp_path):
    model = Model()
    run(pipeline, tmp_path, model, scores=("fid", "inception_score"))
    assert {name for name, _ in model.calls} == {"generate", "inception.features"}


def test_captions(pipeline, tmp_path):
    model = Model()
    evaluator, scores = run(pipeline, tmp_path, model, scores=("r_precision", "clip_score"), mismatched=50)
    # Every fourth sample shows caption 0.
    shown = np.arange(N) % LENGTH
    right = (np.arange(N) % 4 != 0) | (shown == 0)
    assert scores["r_precision"] == pytest.approx(right.mean())
    assert scores["clip_score"] == pytest.approx(100 * right.mean())
    # Each caption is embedded once, in whole batches.
    texts = [batch["tokens"] for name, batch in model.calls if name == "matcher.embed_text"]
    assert all(x.shape == (BATCH, 1, 1) for x in texts)
    assert len(texts) == 2 * -(-LENGTH // BATCH), "those of the real images and of the samples"
    # Real images show what they should.
    rows = evaluator.table(scores)
    assert rows["clip_score"].ceiling == rows["r_precision"].ceiling == 100


def test_copies(pipeline, tmp_path):
    model = Model(copy=True)
    evaluator, scores = run(pipeline, tmp_path, model, scores=("memorisation",), copies=30, pictures=3)
    expected = scores_lib.copy_ratio(model.all(DRAWN, 30), model.all(0, LENGTH), model.all(1, LENGTH))
    assert scores["copy_ratio"] == pytest.approx(expected) and expected < 0.05
    assert evaluator.table(scores)["copy_ratio"].ceiling == pytest.approx(1, abs=0.3)
    with Image.open(tmp_path / "new" / "x.png") as picture:
        assert picture.height > 3 * 140
    _, scores = run(pipeline, tmp_path, Model(), scores=("memorisation",))
    assert scores["copy_ratio"] == pytest.approx(1, abs=0.3)


def test_errors(pipeline, tmp_path):
    with pytest.raises(ValueError, match=r'Unknown score of images "fdi". Did you mean "fid"'):
        run(pipeline, tmp_path, Model(), scores=("fdi",))
    with pytest.raises(ValueError, match="scores names none"):
        run(pipeline, tmp_path, Model(), scores=())
    source = {"name": "scenes", "split": "val", "size": 24, "length": 9}
    common = {"source": source, "batch_size": BATCH, "pipeline": pipeline}
    evaluator = images.make(**common, transforms="array", scores=("cas",))
    with pytest.raises(ValueError, match='take a source with "label"'):
        evaluator.run(Model(), tmp_path / "x.png")
    evaluator = images.make(**common, transforms="array", scores=("clip_score",))
    with pytest.raises(ValueError, match=r"end the transforms with text\(...\)"):
        evaluator.run(Model(), tmp_path / "x.png")
