"""Retrieval with embeddings that the test makes: every rank can be computed by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators import retrieval
from mmgen_jax.scores import retrieval as scores_lib

LENGTH, BATCH, FEATURES = 10, 4, 6
SOURCE = {"name": "scenes", "split": "test", "size": 24, "length": LENGTH}
TRANSFORMS = "text(max_len=24, per_image=5, which='first')"
COMMON = {"source": SOURCE, "transforms": TRANSFORMS, "batch_size": BATCH}


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(
        source={**SOURCE, "split": "train", "length": 300},
        transforms=TRANSFORMS,
        batch_size=BATCH,
        tokenizer={"name": "words", "min_count": 1, "examples": 300},
    )


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


class Model:
    """A `predict` that gives each example of a data set its row; padding gets what must not count."""

    def __init__(self, image, text):
        self.image, self.text, self.calls = image, text, []

    def __call__(self, name, batch):
        self.calls.append((name, batch))
        there = batch["mask"] > 0
        image = np.full((len(there), FEATURES), np.nan, np.float32)
        text = np.full((len(there), batch["tokens"].shape[1], FEATURES), np.nan, np.float32)
        image[there], text[there] = self.image[batch["index"][there]], self.text[batch["index"][there]]
        return {"image": image, "text": text}, batch


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    image = unit(rng, LENGTH, FEATURES)
    text = image[:, None] + 0.8 * rng.normal(size=(LENGTH, 5, FEATURES))
    return Model(image, (text / np.linalg.norm(text, axis=-1, keepdims=True)).astype(np.float32))


@pytest.fixture(scope="module")
def ran(pipeline, model, tmp_path_factory):
    evaluator = retrieval.make(**COMMON, pipeline=pipeline)
    figure = tmp_path_factory.mktemp("figures") / "new" / "test.png"
    return evaluator, evaluator.run(model, figure), figure


def plain(image, text):
    """Ranks of both directions; image [I, F], text [I, C, F]."""
    count, captions = text.shape[:2]
    scores = image.astype(np.float64) @ text.reshape(count * captions, -1).astype(np.float64).T
    own = np.repeat(np.eye(count, dtype=bool), captions, axis=1)
    best = np.where(own, scores, -9).max(axis=1, keepdims=True)
    i2t = 1 + np.sum((scores >= best) & ~own, axis=1)
    best = np.where(own, scores, -9).max(axis=0, keepdims=True)
    t2i = 1 + np.sum((scores >= best) & ~own, axis=0)
    return scores_lib.Ranks(i2t, t2i, np.repeat(np.arange(count), captions))


def test_scores_of_the_whole_set(ran, model):
    evaluator, scores, _ = ran
    expected = plain(model.image, model.text)
    for found, wanted in zip(evaluator.galleries[0].ranks, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert len(set(expected.text)) > 3, "some are right and some wrong"
    for name, value in scores_lib.score([expected]).items():
        assert scores[name] == value
    apart = np.mean(np.sum((model.image[:, None] - model.text) ** 2, axis=-1))
    assert scores["alignment"] == pytest.approx(apart, rel=1e-6)
    assert scores["uniformity_image"] == pytest.approx(scores_lib.uniformity(model.image))
    assert scores["uniformity_text"] == pytest.approx(
        scores_lib.uniformity(model.text.reshape(-1, FEATURES)), rel=1e-5
    )
    assert {name for name, _ in model.calls} == {"embed"}
    assert [batch["mask"].sum() for _, batch in model.calls[:3]] == [4, 4, 2]


def test_table_and_signature(ran):
    evaluator, scores, _ = ran
    rows = evaluator.table(scores)
    assert list(rows) == list(scores)
    for name in ("i2t_r1", "t2i_r5", "t2i_mrr", "rsum"):
        row = rows[name]
        assert row.value == 100 * scores[name]
        assert row.interval[0] <= row.value <= row.interval[1]
        assert row.floor < row.value
    # One of ten images; five of fifty texts.
    assert rows["t2i_r1"].floor == rows["i2t_r1"].floor == pytest.approx(10)
    assert rows["i2t_median"].value == scores["i2t_median"]
    assert rows["alignment"][1:] == (None, None, None)
    line = evaluator.signature(step=7)
    assert line.startswith("retrieval|ties:pessimistic|images:10|texts:50|folds:1|split:test|step:7|v:")


def test_ceiling_of_a_source_that_knows_it(ran, monkeypatch):
    evaluator, scores, _ = ran
    asked = []
    monkeypatch.setattr(
        type(evaluator.source),
        "retrieval_ceiling",
        lambda self, *given: asked.append(given) or {"i2t_r1": 0.9, "t2i_r1": 0.75},
        raising=False,
    )
    rows = evaluator.table(scores)
    assert asked == [(LENGTH, 5)]
    assert (rows["i2t_r1"].ceiling, rows["t2i_r1"].ceiling, rows["t2i_r5"].ceiling) == (90, 75, None)


def test_predictions_file(ran, model, tmp_path):
    evaluator, *_ = ran
    evaluator.write(tmp_path / "new" / "test.jsonl")
    records = [json.loads(line) for line in (tmp_path / "new" / "test.jsonl").read_text().splitlines()]
    expected = plain(model.image, model.text)
    assert [record["index"] for record in records] == list(range(LENGTH))
    assert [record["rank"] for record in records] == expected.image.tolist()
    assert [text["rank"] for record in records for text in record["texts"]] == expected.text.tolist()
    for i, record in enumerate(records):
        assert [text["text"] for text in record["texts"]] == evaluator.source.captions(i)
        assert record["found"][0]["right"] == (record["rank"] == 1)
        assert [answer["score"] for answer in record["found"]] == sorted(
            (answer["score"] for answer in record["found"]), reverse=True
        )
        for text in record["texts"]:
            assert (text["found"][0]["index"] == i) == (text["rank"] == 1)


def test_figure(ran):
    with Image.open(ran[2]) as image:
        assert image.format == "PNG"
        # Eight texts and four images, each with its row.
        assert image.height > 12 * 100
        green = np.asarray(image.convert("RGB")).reshape(-1, 3) == np.array([26, 166, 51])
        assert green.all(axis=1).sum() > 1000


def test_folds(pipeline, model, tmp_path):
    """Galleries of 4, 3 and 3 images, each searched alone, and their mean."""
    evaluator = retrieval.make(**COMMON, folds=3, pictures=0, pipeline=pipeline)
    scores = evaluator.run(model, tmp_path / "x.png")
    parts = [plain(model.image[rows], model.text[rows]) for rows in np.split(np.arange(LENGTH), [4, 7])]
    for name, value in scores_lib.score(parts).items():
        assert scores[name] == value
    assert "|folds:3|" in evaluator.signature()
    assert evaluator.table(scores)["t2i_r1"].floor == pytest.approx(100 * np.mean([1 / 4, 1 / 3, 1 / 3]))
    evaluator.write(tmp_path / "x.jsonl")
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == LENGTH
    assert not (tmp_path / "x.png").exists()
    with pytest.raises(ValueError, match="folds is 11: 10 images"):
        retrieval.make(**COMMON, folds=11, pipeline=pipeline).run(model, tmp_path / "x.png")


def test_collapse_is_the_last_rank(pipeline, tmp_path):
    one = np.ones((LENGTH, FEATURES), np.float32) / FEATURES**0.5
    same = Model(one, np.repeat(one[:, None], 5, axis=1))
    scores = retrieval.make(**COMMON, pictures=0, pipeline=pipeline).run(same, tmp_path / "x.png")
    assert (scores["rsum"], scores["alignment"], scores["i2t_median"], scores["t2i_median"]) == (
        1.0,
        0,
        46,
        10,
    )
    assert scores["uniformity_image"] == pytest.approx(0, abs=1e-5)


def test_nan_embeddings(pipeline, model, tmp_path):
    broken = Model(model.image.copy(), model.text)
    broken.image[2] = np.nan
    with pytest.raises(ValueError, match=r"1 of 10 queries \(the first is row 2\)"):
        retrieval.make(**COMMON, pictures=0, pipeline=pipeline).run(broken, tmp_path / "x.png")


def test_broken_pictures_and_images_with_few_captions(tmp_path):
    """A picture that cannot be read leaves the gallery with its texts; repeats of a caption are no texts."""
    rng = np.random.default_rng(0)
    captions = [["one", "two"], ["three"], ["four", "five"], ["six", "seven"], ["eight"]]
    with (tmp_path / "data.jsonl").open("w") as file:
        for i, texts in enumerate(captions):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / f"{i}.png")
            file.write(json.dumps({"image": f"{i}.png", "captions": texts}) + "\n")
    (tmp_path / "2.png").write_bytes(b"")
    common = {
        "source": {"name": "jsonl", "path": str(tmp_path / "data.jsonl")},
        "transforms": "decode | resize((16, 16)) | text(max_len=5, per_image=2, which='first')",
        "batch_size": BATCH,
    }
    (tmp_path / "run").mkdir()
    pipeline = Pipeline(
        **{**common, "tokenizer": {"name": "words", "min_count": 1}}, workdir=tmp_path / "run", max_broken=0.5
    )
    evaluator = retrieval.make(**common, pipeline=pipeline)
    model = Model(unit(rng, 5, FEATURES), unit(rng, 5, 2, FEATURES))
    scores = evaluator.run(model, tmp_path / "x.png")
    evaluator.write(tmp_path / "x.jsonl")
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [record["index"] for record in records] == [0, 1, 3, 4]
    said = [[text["text"] for text in record["texts"]] for record in records]
    assert said == [["one", "two"], ["three"], ["six", "seven"], ["eight"]]
    assert "|images:4|texts:6|" in evaluator.signature()
    assert evaluator.table(scores)["t2i_r1"].floor == pytest.approx(25)
