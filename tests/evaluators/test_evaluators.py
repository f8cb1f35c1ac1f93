"""Evaluators with a model that the test plays itself: every number can be computed by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.data.text import BOS, EOS, PAD
from mmgen_jax.evaluators import captions, likelihood
from mmgen_jax.evaluators.base import Row
from mmgen_jax.scores import captions as scores_lib

MAX_LEN, LENGTH, BATCH = 23, 10, 4
SOURCE = {"name": "scenes", "split": "test", "size": 24, "length": LENGTH}
TRANSFORMS = f"caption(max_len={MAX_LEN}, per_image=5, which='first')"
COMMON = {"source": SOURCE, "transforms": TRANSFORMS, "batch_size": BATCH}


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(
        source={**SOURCE, "split": "train", "length": 1000},
        transforms=TRANSFORMS,
        batch_size=BATCH,
        tokenizer={"name": "words", "min_count": 1, "examples": 1000},
    )


class Model:
    """A `predict` that writes what it is told, and keeps what it was called with.

    say: (example's index, its true captions as tokens [C, T + 1]) -> tokens [T].
    """

    def __init__(self, say):
        self.say, self.calls = say, []

    def __call__(self, name, batch):
        self.calls.append((name, batch))
        rows = len(batch["tokens"])
        if name == "attend":
            weights = np.random.default_rng(0).dirichlet(np.ones(4), (rows, 1, batch["tokens"].shape[2] - 1))
            return {"weights": weights.astype(np.float32)}, batch
        tokens = np.stack([self.say(i, t) for i, t in zip(batch["index"], batch["tokens"], strict=True)])[
            :, None
        ]
        return {
            "tokens": tokens,
            "log_prob": np.full((rows, 1), -1.5, np.float32),
            "score": np.zeros((rows, 1), np.float32),
            "finished": (tokens == EOS).any(axis=-1),
        }, batch


def first_reference(index, tokens):
    return tokens[0, 1:]


def constant(pipeline, text):
    ids = [*pipeline.tokenizer.encode(text), EOS]
    return np.array(ids + [PAD] * (MAX_LEN - len(ids)), np.int32)


@pytest.fixture(scope="module")
def told(pipeline, tmp_path_factory):
    """An evaluation of a model that says the first reference, with its scores and its picture."""
    evaluator = captions.Captions(**COMMON, pictures=8, floor_images=50, pipeline=pipeline)
    model = Model(first_reference)
    figure = tmp_path_factory.mktemp("figures") / "new" / "test.png"
    return evaluator, model, evaluator.run(model, figure), figure


def test_padding_of_the_last_batch_is_masked(told):
    evaluator, model, _, _ = told
    shapes = {batch["tokens"].shape for name, batch in model.calls if name == "generate"}
    masks = [batch["mask"].sum() for name, batch in model.calls if name == "generate"]
    assert shapes == {(BATCH, 5, MAX_LEN + 1)}
    assert masks == [4, 4, 2]
    assert [record["index"] for record in evaluator.records] == list(range(LENGTH))


def test_scores_are_those_of_the_records(told):
    evaluator, _, scores, _ = told
    expected = scores_lib.score(
        [r["references"] for r in evaluator.records], [r["caption"] for r in evaluator.records]
    )
    assert {name: scores[name] for name in expected} == expected
    for i, record in enumerate(evaluator.records):
        assert record["references"] == evaluator.source.captions(i)
        assert record["caption"] == record["references"][0]
        assert record["log_prob"] == -1.5
        assert record["true"] is True
    assert scores["truth"] == 1.0
    assert scores["finished"] == 1.0
    assert scores["length"] == np.mean([len(record["caption"].split()) for record in evaluator.records])
    # The caption is one of the references.
    assert scores["bleu4"] == pytest.approx(1.0)


def test_table(told):
    evaluator, _, scores, _ = told
    rows = evaluator.table(scores)
    assert list(rows) == [*scores_lib.NAMES, "truth"]
    for name in scores_lib.NAMES:
        row = rows[name]
        assert row.value == 100 * scores[name]
        assert row.interval[0] <= row.value + 1e-9
        assert row.floor < row.value
        assert row.ceiling == 100 * scores_lib.ceiling(evaluator.references)[name]
    # Wilson's interval of ten in ten.
    assert rows["truth"][:2] == (100.0, pytest.approx((100 * 10 / (10 + 1.96**2), 100.0)))
    train = [evaluator.pipeline.source.captions(i) for i in range(50)]
    floors = [scores_lib.floor(train, evaluator.references, by)[1] for by in ("cider", "bleu4")]
    assert rows["cider"].floor == pytest.approx(100 * max(floor["cider"] for floor in floors))
    signature = evaluator.signature(step=7, beam=3)
    assert signature.startswith("captions|")
    for part in ("step:7", "beam:3", "split:test", f"n:{LENGTH}", "refs:5"):
        assert part in signature.split("|")


def test_predictions_file(told, tmp_path):
    evaluator, *_ = told
    evaluator.write(tmp_path / "new" / "test.jsonl")
    lines = (tmp_path / "new" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == evaluator.records


def test_figure(told):
    evaluator, model, _, figure = told
    with Image.open(figure) as image:
        assert image.format == "PNG"
        assert 300 < image.width < 4000
        assert 8 * 80 < image.height < 8 * 600
    # The weights of eight pictures are asked for in batches of four, with what was said.
    batches = [batch for name, batch in model.calls if name == "attend"]
    assert [batch["image"].shape for batch in batches] == [(BATCH, 24, 24, 3)] * 2
    tokens = np.concatenate([batch["tokens"][:, 0] for batch in batches])
    assert np.all(tokens[:, 0] == BOS)
    decode = evaluator.pipeline.tokenizer.decode
    assert [decode(row[1:]) for row in tokens] == [record["caption"] for record in evaluator.records[:8]]


def test_attention_of_any_number_of_images():
    """Three images in batches of two: the rest of the last batch is filled up and left out."""

    def predict(name, batch):
        assert len(batch["image"]) == len(batch["tokens"]) == 2
        weights = np.broadcast_to(batch["image"].mean(axis=(1, 2, 3))[:, None, None, None], (2, 1, 3, 4))
        # The rows of a second process.
        return {"weights": np.concatenate([weights, weights - 100])}, batch

    images = [np.full((8, 8, 3), value, np.uint8) for value in (10, 20, 30)]
    weights = captions.attend(predict, images, np.zeros((3, 3), np.int32), 2)
    np.testing.assert_array_equal(weights[:, 0, 0], [10, 20, 30])
    assert weights.shape == (3, 3, 4)


def test_truth_of_a_lie(pipeline, tmp_path):
    """One caption for every image: true where the source says so; then nothing at all."""
    evaluator = captions.Captions(**COMMON, pictures=0, floor_images=50, pipeline=pipeline)
    text = "there is a red circle"
    said = constant(pipeline, text)
    scores = evaluator.run(Model(lambda index, tokens: said), tmp_path / "x.png")
    true = [evaluator.source.is_true(i, text) for i in range(LENGTH)]
    assert [record["true"] for record in evaluator.records] == true
    assert scores["truth"] == np.mean(true)
    assert not (tmp_path / "x.png").exists()
    silent = np.full(MAX_LEN, PAD, np.int32)
    scores = evaluator.run(Model(lambda index, tokens: silent), tmp_path / "x.png")
    assert (scores["truth"], scores["length"], scores["finished"], scores["bleu1"]) == (0, 0, 0, 0)
    assert evaluator.table(scores)["truth"].value == 0


def test_likelihood_against_the_grammar(pipeline, tmp_path):
    """The true probabilities leave no gap; a tenth of a nat more a token is a gap of that."""
    evaluator = likelihood.Likelihood(**COMMON, pipeline=pipeline)
    total = words = 0.0
    for i in range(LENGTH):
        for caption in evaluator.source.captions(i):
            total -= evaluator.source.log_prob(i, caption)
            words += len(pipeline.tokenizer.encode(caption)) + 1

    def predict(extra):
        def run(name, batch):
            assert name == "loss"
            mask = batch["tokens"][:, :, 1:] != PAD
            nll = np.zeros(mask.shape, np.float32)
            for b, i in enumerate(batch["index"]):
                for c, caption in enumerate(evaluator.source.captions(int(i)) if i >= 0 else ()):
                    count = mask[b, c].sum()
                    nll[b, c, :count] = -evaluator.source.log_prob(int(i), caption) / count + extra
            # What a padded example would say must not count.
            nll[batch["mask"] == 0] = 1e9
            return {"nll": nll}, batch

        return run

    scores = evaluator.run(predict(0.0), tmp_path / "x.png")
    assert scores["entropy"] == pytest.approx(total / words, rel=1e-9)
    assert scores["gap"] == pytest.approx(0.0, abs=1e-6)
    scores = evaluator.run(predict(0.1), tmp_path / "x.png")
    assert scores["gap"] == pytest.approx(0.1, abs=1e-6)
    assert scores["nll"] == pytest.approx(total / words + 0.1, abs=1e-6)
    assert scores["perplexity"] == pytest.approx(np.exp(scores["nll"]))
    assert evaluator.table(scores)["nll"] == Row(scores["nll"])


def test_photos_have_no_truth_and_no_entropy(pipeline, tmp_path):
    """A data set on disk, with a broken picture, which is left out and noted."""
    rng = np.random.default_rng(0)
    with (tmp_path / "data.jsonl").open("w") as file:
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / f"{i}.png")
            file.write(json.dumps({"image": f"{i}.png", "captions": ["a red circle", "a blue star"]}) + "\n")
    (tmp_path / "3.png").write_bytes(b"")
    common = {
        "source": {"name": "jsonl", "path": str(tmp_path / "data.jsonl")},
        "transforms": "decode | resize((16, 16)) | caption(max_len=23, per_image=2, which='first')",
        "batch_size": BATCH,
    }
    workdir = tmp_path / "run"
    workdir.mkdir()
    pipeline = Pipeline(
        **{**common, "tokenizer": {"name": "words", "min_count": 1}}, workdir=workdir, max_broken=0.5
    )
    evaluator = captions.Captions(**common, floor_images=50, pipeline=pipeline)
    scores = evaluator.run(Model(first_reference), tmp_path / "x.png")
    assert "truth" not in scores
    assert [record["index"] for record in evaluator.records] == [0, 1, 2, 4]
    assert "true" not in evaluator.records[0]
    assert "truth" not in evaluator.table(scores)
    broken = [json.loads(line) for line in (workdir / "quarantine.jsonl").read_text().splitlines()]
    assert len(broken) == 1
    assert "zero bytes" in json.dumps(broken)
    plain = likelihood.Likelihood(**common, pipeline=pipeline)
    nll = lambda name, batch: ({"nll": (batch["tokens"][:, :, 1:] != PAD).astype(np.float32)}, batch)
    assert plain.run(nll, tmp_path / "x.png") == {"nll": 1.0, "perplexity": pytest.approx(np.e)}
