"""A judge reads samples: the test plays a generator that draws what it likes, and a judge that sees what it drew."""

import json

import numpy as np
import pytest
from PIL import Image

from mmgen_jax.data import scenes, sources
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators import reading
from mmgen_jax.scores.classification import wilson

BATCH, SIZE = 4, 28
SCENES = {"name": "scenes", "split": "test", "size": SIZE, "length": 30}
TEXT = "text(max_len=24)"


def pipeline_of(source, **more):
    return Pipeline(
        source=source,
        transforms=TEXT,
        batch_size=BATCH,
        tokenizer={"name": "words", "min_count": 1},
        **more,
    )


class Painter:
    """Writes into the first pixels of a picture what is to be seen in it; wrong where `spoil` says so of its number.

    The judge reads them again, so that it is never wrong; of real pictures, whose pixels say nothing, it knows a table.
    """

    def __init__(self, content, real=(), spoil=lambda index: False, kinds=0):
        self.content, self.real, self.spoil, self.kinds, self.calls = content, real, spoil, kinds, []

    def fingerprint(self, name=""):
        return "12345678"

    def __call__(self, name, batch):
        self.calls.append((name, batch))
        if name == "generate":
            assert "image" not in batch
            image = np.zeros((len(batch["mask"]), SIZE, SIZE, 3), np.uint8)
            for i, (there, index) in enumerate(zip(batch["mask"], batch["index"], strict=True)):
                if there:
                    said = np.atleast_1d(self.content(batch, i))
                    image[i, 0, : len(said), 0] = 0 if self.spoil(index) else said
            image[:, 0, 0, 1] = 1  # drawn
            return {"image": image}, batch
        assert name == "reader.classify"
        drawn = batch["image"][:, 0, 0, 1] == 1
        seen = [
            image[0, :27, 0] if own else self.real[index] if there else np.zeros(27, int)
            for image, own, index, there in zip(
                batch["image"], drawn, batch["index"], batch["mask"], strict=True
            )
        ]
        if self.kinds:
            return {"logits": np.eye(self.kinds)[[np.atleast_1d(row)[0] for row in seen]]}, batch
        return {"logits": np.eye(9)[np.array(seen)]}, batch


# ----------------------------------------------------------------------------------------------- scenes


@pytest.fixture(scope="module")
def pipeline():
    return pipeline_of({**SCENES, "split": "train", "length": 300})


def cells(index):
    return scenes.to_cells(scenes.Scenes(**{k: v for k, v in SCENES.items() if k != "name"}).scene(index))


@pytest.fixture
def ran(pipeline, tmp_path):
    evaluator = reading.make(
        source=SCENES, transforms=TEXT, batch_size=BATCH, n=40, pictures=6, pipeline=pipeline
    )
    # A third is spoilt; of real picture 4 the judge sees nothing.
    real = [cells(i) for i in range(30)]
    real[4] = np.zeros(27, int)
    model = Painter(lambda batch, i: cells(batch["index"][i] % 30), real, lambda index: index % 3 == 0)
    return evaluator, model, evaluator.run(model, tmp_path / "new" / "x.png"), tmp_path / "new" / "x.png"


def test_shares_of_true_captions(ran):
    evaluator, model, scores, _ = ran
    assert [record["index"] for record in evaluator.records] == list(range(40))
    right = [i % 3 != 0 for i in range(40)]
    assert [record["true"] for record in evaluator.records] == right
    assert scores["true"] == scores["objects"] == np.mean(right)
    count = [len(scenes.parse(record["caption"]).objects) for record in evaluator.records]
    for k in (1, 2, 3):
        own = [ok for ok, number in zip(right, count, strict=True) if number == k]
        assert scores[f"true_{k}"] == np.mean(own)
    # The source's 30 examples come again, and each sample has its own number.
    drawn = [batch["index"] for name, batch in model.calls if name == "generate"]
    assert np.concatenate(drawn).tolist() == list(range(40))
    assert evaluator.records[1]["seen"] != "nothing" == evaluator.records[0]["seen"]


def test_table_with_the_judge_on_real_images_as_ceiling(ran):
    evaluator, model, scores, _ = ran
    rows = evaluator.table(scores)
    low, high = wilson(scores["true"], 40)
    assert rows["true"] == (100 * scores["true"], (100 * low, 100 * high), None, pytest.approx(100 * 29 / 30))
    assert set(rows) == {f"{k}{n}" for k in ("true", "objects") for n in ("", "_1", "_2", "_3")}
    line = evaluator.signature(step=7)
    assert line.startswith("reading|judge:reader.classify|weights:12345678|n:40|seed:0|split:test|step:7|v:")
    # Real images are read once in a run.
    calls = sum(name == "reader.classify" for name, _ in model.calls)
    evaluator.run(model, ran[3])
    assert sum(name == "reader.classify" for name, _ in model.calls) - calls == calls - 8 == 10


def test_predictions_and_what_captions_mention(ran, tmp_path):
    evaluator, *_ = ran
    evaluator.write(tmp_path / "new" / "test.jsonl")
    records = [json.loads(line) for line in (tmp_path / "new" / "test.jsonl").read_text().splitlines()]
    assert [record["true"] for record in records] == [record["true"] for record in evaluator.records]
    table = {
        line.split()[0]: line.split()[1:]
        for line in (tmp_path / "new" / "test.txt").read_text().splitlines()
        if line
    }
    assert set(table) - {"captions"} == {*scenes.RADIUS, *scenes.COLOURS, *scenes.SHAPES}
    own = [record for record in evaluator.records if any("red" in words for words in record["mentioned"])]
    assert int(table["red"][0]) == len(own)
    assert float(table["red"][1]) == pytest.approx(np.mean([record["true"] for record in own]), abs=1e-3)


def test_objects_without_their_places(pipeline):
    evaluator = reading.make(source=SCENES, transforms=TEXT, batch_size=BATCH, pipeline=pipeline)
    scene = scenes.Scene(
        (scenes.Object("red", "circle", "large", 0, 0), scenes.Object("blue", "star", "small", 2, 2))
    )

    def judged(caption):
        record = evaluator._scene(caption, scene)
        return record["true"], record["objects"]

    assert judged("a large red circle above a blue star") == (True, True)
    assert judged("a red circle below a tiny blue star") == (False, True)
    assert judged("a red circle in the middle") == (False, True)
    assert judged("there is a small red circle") == (False, False)
    assert judged("a star and a star") == (False, False)
    with pytest.raises(ValueError, match='"red circles" is no caption of the grammar'):
        judged("red circles")


def test_a_picture_of_right_and_wrong_ones(ran):
    with Image.open(ran[3]) as image:
        assert image.format == "PNG" and image.height > 300


# ---------------------------------------------------------------------------------------------- classes

NAMES = ["bag", "boot", "coat"]


class Clothes:
    """Blank pictures of three classes in turn."""

    classes = NAMES

    def __len__(self):
        return 7

    def label(self, index):
        return index % 3

    def captions(self, index):
        return [f"a photo of a {NAMES[index % 3]}"]

    def __getitem__(self, index):
        image = np.full((SIZE, SIZE, 3), 50, np.uint8)
        return {"image": image, "captions": self.captions(index), "label": np.int32(index % 3)}


@pytest.fixture
def clothes(monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "clothes", Clothes)
    return pipeline_of({"name": "clothes"})


def test_agreement_with_the_class(clothes, tmp_path):
    evaluator = reading.make(
        source={"name": "clothes"}, transforms=TEXT, batch_size=BATCH, n=9, pipeline=clothes
    )
    # The judge takes the real picture 2 (a coat) for a bag; every coat of the generator is one.
    real = [0, 1, 0, 0, 1, 2, 0]
    model = Painter(lambda batch, i: batch["label"][i], real, lambda index: index in (2, 5), kinds=3)
    scores = evaluator.run(model, tmp_path / "x.png")
    assert scores == {"agree": pytest.approx(7 / 9)}
    row = evaluator.table(scores)["agree"]
    assert row.ceiling == pytest.approx(100 * 6 / 7)
    evaluator.write(tmp_path / "x.jsonl")
    record = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[2])
    assert record == {
        "index": 2,
        "caption": "a photo of a coat",
        "asked": "coat",
        "seen": "bag",
        "agree": False,
    }
    report = (tmp_path / "x.txt").read_text()
    assert [line.split()[:3] for line in report.splitlines() if "boot" in line] == [
        ["boot", "1.000", "1.000"]
    ]


def test_a_judge_of_other_things(clothes, pipeline, tmp_path):
    evaluator = reading.make(source={"name": "clothes"}, transforms=TEXT, batch_size=BATCH, pipeline=clothes)
    with pytest.raises(ValueError, match="says class 5, of 3 in the source"):
        evaluator.run(Painter(lambda batch, i: 5, [0] * 7, kinds=9), tmp_path / "x.png")
    with pytest.raises(ValueError, match="is no caption of the grammar"):
        evaluator.run(Painter(lambda batch, i: 5, [np.zeros(27, int)] * 7), tmp_path / "x.png")
    evaluator = reading.make(source=SCENES, transforms=TEXT, batch_size=BATCH, pipeline=pipeline)
    with pytest.raises(ValueError, match='the examples of "scenes" have none'):
        evaluator.run(Painter(lambda batch, i: 1, [0] * 30, kinds=3), tmp_path / "x.png")
