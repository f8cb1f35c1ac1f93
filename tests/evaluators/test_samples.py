"""Samples as a grid of pictures: the same rows and noise at every evaluation, words of attention models, the animation."""

import numpy as np
import pytest
from PIL import Image

from mmgen_jax.data import scenes
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators import samples

SOURCE = {"name": "scenes", "split": "val", "size": 24, "length": 6}
TRANSFORMS = "text(max_len=24)"
BATCH = 4


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(
        source={**SOURCE, "split": "train", "length": 300},
        transforms=TRANSFORMS,
        batch_size=BATCH,
        tokenizer={"name": "words", "min_count": 1, "examples": 300},
    )


def make(pipeline, **more):
    return samples.make(source=SOURCE, transforms=TRANSFORMS, batch_size=BATCH, pipeline=pipeline, **more)


class Model:
    """Draws grey squares, a little brighter from sample to sample; knows what it was asked."""

    def __init__(self, step=1):
        self.calls, self.step = [], step

    def __call__(self, name, batch):
        assert "image" not in batch
        self.calls.append((name, batch))
        grey = (10 * (batch["index"] % 7) + self.step).astype(np.uint8)
        image = np.broadcast_to(grey[:, None, None, None], (BATCH, 16, 16, 3))
        if name == "attend":
            tokens = batch["tokens"].shape[-1]
            return {"weights1": np.ones((BATCH, 2, 2, tokens)), "weights2": _lit(BATCH, tokens)}, batch
        return {"image": image}, batch


def _lit(rows, tokens):
    """The word number k is looked at in position k."""
    weights = np.zeros((rows, 4, 4, tokens), np.float32)
    for k in range(tokens):
        weights[:, k // 4 % 4, k % 4, k] = 1
    return weights


def test_each_row_has_one_caption_and_its_own_noise(pipeline, tmp_path):
    evaluator, model = make(pipeline, rows=3, columns=4), Model()
    scores = evaluator.run(model, tmp_path / "new" / "grid_000010.png")
    index = np.concatenate([batch["index"] for _, batch in model.calls])
    assert index[index >= 0].tolist() == list(range(12))
    tokens = np.concatenate([batch["tokens"][:, 0] for _, batch in model.calls])[:12]
    said = [pipeline.tokenizer.decode(row) for row in tokens]
    first = [scenes.Scenes("val", size=24, length=6).captions(i)[0] for i in (0, 2, 4)]
    assert said == [caption for caption in first for _ in range(4)]
    # Neighbours differ by 10; the samples of a row by 10, 20 or 30 but where the number starts again.
    assert 10 / 255 < scores["spread"] < 40 / 255
    # Again, and the same is asked.
    again = Model()
    evaluator.run(again, tmp_path / "grid_000020.png")
    for (_, one), (_, two) in zip(model.calls, again.calls, strict=True):
        for key, value in one.items():
            np.testing.assert_array_equal(value, two[key])


def test_given_captions(pipeline, tmp_path):
    captions = ["a red circle", "a blue square and a green star"]
    model = Model()
    make(pipeline, captions=captions, columns=2).run(model, tmp_path / "x_000001.png")
    tokens = np.concatenate([batch["tokens"][:, 0] for _, batch in model.calls])
    assert [pipeline.tokenizer.decode(row) for row in tokens] == [c for c in captions for _ in range(2)]


def test_without_captions(pipeline, tmp_path):
    evaluator = samples.make(
        source=SOURCE, transforms="array", batch_size=BATCH, rows=2, columns=3, pipeline=pipeline
    )
    evaluator.run(Model(), tmp_path / "x_000001.png")
    with Image.open(tmp_path / "x_000001.png") as image:
        assert image.width < 300, "no column of captions"


def test_words_of_attention(pipeline, tmp_path):
    evaluator, model = make(pipeline, rows=3, columns=2, words=2), Model()
    evaluator.run(model, tmp_path / "x_000001.png")
    assert [name for name, _ in model.calls] == ["generate", "attend"] * 2
    for (_, drawn), (_, attended) in zip(model.calls[::2], model.calls[1::2], strict=True):
        assert drawn is attended or all(np.array_equal(drawn[key], attended[key]) for key in drawn)
    with Image.open(tmp_path / "x_000001_words.png") as image:
        assert image.height > 2 * 100


def test_animation_of_training(pipeline, tmp_path):
    evaluator = make(pipeline, rows=2, columns=2, words=1)
    for step in (5, 100, 20, 300):
        evaluator.run(Model(step=step % 200), tmp_path / f"grid_{step:06d}.png")
    # Another evaluation's pictures are not part of it, nor later steps.
    evaluator.run(Model(), tmp_path / "grid_unseen_000100.png")
    evaluator.run(Model(step=100), tmp_path / "grid_000100.png")
    evaluator.write(tmp_path / "predictions" / "grid_000100.jsonl")
    with Image.open(tmp_path / "grid.gif") as movie, Image.open(tmp_path / "grid_000100.png") as last:
        assert movie.format == "GIF" and movie.n_frames == 3
        assert movie.width == last.width and movie.height > last.height
        greys = []
        for frame in range(3):
            movie.seek(frame)
            # The first sample of the first row: black plus the step.
            greys.append(movie.convert("RGB").getpixel((210, 40))[0])
    assert greys == sorted(greys) and greys[2] > greys[0] + 50, greys


def test_points_are_no_pictures(pipeline, tmp_path):
    def points(name, batch):
        return {"image": np.zeros((BATCH, 1, 1, 2), np.float32)}, batch

    with pytest.raises(ValueError, match="for points there is the evaluation modes"):
        make(pipeline).run(points, tmp_path / "x.png")
    with pytest.raises(ValueError, match="no more rows than there are"):
        make(pipeline, rows=2, words=3)


def test_rows_of_a_process(pipeline, monkeypatch):
    """Samples are whole on each process, and each asks a judge with its own."""
    batch = {"index": np.arange(BATCH), "mask": np.ones(BATCH)}
    assert make(pipeline).own(batch)["index"].tolist() == [0, 1, 2, 3]
    for process, own in (((0, 2), [0, 1]), ((1, 2), [2, 3])):
        monkeypatch.setattr(pipeline, "process", process)
        assert make(pipeline).own(batch)["index"].tolist() == own
