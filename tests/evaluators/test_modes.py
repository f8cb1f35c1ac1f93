"""Modes of toy sets: the test draws points and digits itself, and knows what is found."""

import numpy as np
import pytest
from PIL import Image

from mmgen_jax.data import sources
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.data.toys import Gaussians
from mmgen_jax.evaluators import modes

BATCH = 8


def make(source, **more):
    common = {"source": source, "transforms": "array", "batch_size": BATCH}
    pipeline = Pipeline(**common, tokenizer={"name": "bytes"})
    return modes.make(**common, pipeline=pipeline, **more)


RING = {"name": "gaussians", "layout": "ring"}


class Points:
    """Points on the first seven modes of the ring, every fifth in the middle of nowhere."""

    def __call__(self, name, batch):
        assert name == "generate" and set(batch) == {"mask", "index"}
        place = Gaussians("ring").modes[batch["index"] % 7].astype(np.float32)
        place[batch["index"] % 5 == 4] = 0
        place[batch["mask"] == 0] = np.nan
        return {"image": place.reshape(BATCH, 1, 1, 2)}, batch


def test_points(tmp_path):
    evaluator = make(RING, n=70)
    scores = evaluator.run(Points(), tmp_path / "new" / "x.png")
    assert scores["modes"] == 7
    assert scores["high_quality"] == pytest.approx(0.8)
    assert scores["kl"] == pytest.approx(np.log(8 / 7), abs=0.02)
    rows = evaluator.table(scores)
    assert rows["modes"][:2] == (7, None) and rows["modes"].ceiling == 8
    assert rows["high_quality"].interval[0] < 80 < rows["high_quality"].interval[1]
    assert 95 < rows["high_quality"].ceiling <= 100
    assert 0 < rows["kl"].floor < 0.2
    assert evaluator.signature(step=3).startswith("modes|ring|n:70|seed:0|step:3|v:")
    with Image.open(tmp_path / "new" / "x.png") as image:
        assert image.format == "PNG"


def test_an_endless_source_wants_a_number():
    with pytest.raises(ValueError, match="2,147,483,647 examples: say with n how many"):
        make(RING).run(Points(), None)


class Digits:
    """Pictures whose three channels are as bright as their digits; a stack of real ones for every number up to 40."""

    def __len__(self):
        return 40

    def captions(self, index):
        return []

    def __getitem__(self, index):
        digits = np.array([0, index // 10, index % 10], np.int32)
        image = np.broadcast_to(digits.astype(np.uint8), (28, 28, 3))
        return {"image": image, "label": digits}


class Model:
    """Draws only stacks whose last digit is even; the judge reads what is there."""

    def fingerprint(self, name=""):
        assert name == "reader.classify"
        return "12345678"

    def __call__(self, name, batch):
        if name == "generate":
            number = np.stack(
                [batch["index"] % 1, batch["index"] // 10 % 10, batch["index"] // 2 * 2 % 10], axis=1
            )
            image = np.broadcast_to(number.astype(np.uint8)[:, None, None], (len(number), 28, 28, 3))
            return {"image": image}, batch
        return {"logits": np.eye(10)[batch["image"][:, 0, 0]]}, batch


def test_stacked_digits(monkeypatch, tmp_path):
    monkeypatch.setitem(sources.SOURCES, "digits", Digits)
    evaluator = make({"name": "digits"}, n=90)
    scores = evaluator.run(Model(), tmp_path / "x.png")
    assert scores["modes"] == 9 * 5
    assert scores["kl"] == pytest.approx(np.log(1000 / 45), abs=1e-6)
    rows = evaluator.table(scores)
    assert rows["modes"].ceiling == 40
    assert rows["kl"].floor == pytest.approx(np.log(25))
    assert "|judge:reader.classify|weights:12345678|n:90|" in evaluator.signature()
    with Image.open(tmp_path / "x.png") as image:
        assert image.height > 8 * 64

    def single(name, batch):
        output, given = Model()(name, batch)
        return {key: x[:, 0] if key == "logits" else x for key, x in output.items()}, given

    single.fingerprint = Model().fingerprint
    with pytest.raises(ValueError, match=r"configs/classifier_digits.py trains"):
        make({"name": "digits"}).run(single, tmp_path / "x.png")
