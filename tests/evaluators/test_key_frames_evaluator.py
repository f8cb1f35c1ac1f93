"""Key frames of drawn clips scored, with a model that the test plays itself."""

import json

import numpy as np
import pytest

from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators import key_frames

COMMON = {
    "source": {"name": "clips", "split": "val", "size": 24, "length": 10},
    "transforms": "array",
    "batch_size": 4,
}


def make(**more):
    common = {**COMMON, **more}
    pipeline = Pipeline(
        source=common["source"], transforms=common["transforms"], batch_size=4, tokenizer={"name": "bytes"}
    )
    return key_frames.make(**common, pipeline=pipeline)


def sees(name, batch):
    """It knows all, but says it one frame late of every third clip."""
    assert name == "score"
    late = np.roll(batch["key_frames"], 1, axis=1)
    return {"score": np.where(batch["index"][:, None] % 3 == 0, late, batch["key_frames"])}, batch


def test_scores_table_and_file(tmp_path):
    evaluator = make()
    scores = evaluator.run(sees, tmp_path / "x.png")
    planted = [np.flatnonzero(evaluator.source[i]["key_frames"]).tolist() for i in range(10)]
    right = sum(len(frames) for i, frames in enumerate(planted) if i % 3)
    assert scores["f1"] == pytest.approx(right / sum(map(len, planted)))
    assert scores["exact"] == pytest.approx(0.6)
    table = evaluator.table(scores)
    low, high = table["f1"].interval
    assert low < table["f1"].value < high and 0 < table["f1"].floor < 100 and table["f1"].ceiling == 100
    assert "tolerance:0" in evaluator.signature() and "n:10" in evaluator.signature()
    evaluator.write(tmp_path / "out" / "x.jsonl")
    records = [json.loads(line) for line in (tmp_path / "out" / "x.jsonl").read_text().splitlines()]
    assert [record["planted"] for record in records] == planted
    assert [record["chosen"] == record["planted"] for record in records] == [bool(i % 3) for i in range(10)]


def test_a_tolerance_forgives(tmp_path):
    assert make(tolerance=1).run(sees, tmp_path)["f1"] == 1.0


def test_the_floor_is_the_best_constant(tmp_path):
    evaluator = make()
    scores = evaluator.run(lambda name, batch: ({"score": np.ones((4, 12))}, batch), tmp_path)
    assert scores["recall"] == 1.0
    assert 100 * scores["f1"] <= evaluator.table(scores)["f1"].floor


def test_a_source_without_key_frames(tmp_path):
    source = {"name": "clip_questions", "split": "val", "size": 24, "length": 4}
    with pytest.raises(ValueError, match='come without "key_frames"'):
        make(source=source).run(lambda name, batch: ({"score": np.ones((4, 12))}, batch), tmp_path)
