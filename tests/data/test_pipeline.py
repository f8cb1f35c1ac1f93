"""The pipeline: a config's data section, ready to use."""

import itertools
import json

import numpy as np
import pytest

from mmgen_jax.core import registry
from mmgen_jax.data import scene_questions, text
from mmgen_jax.data.pipeline import ANSWERS, SHAPES, Pipeline
from mmgen_jax.data.quarantine import BrokenExample

SPEC = {
    "source": {"name": "scenes", "split": "train", "size": 32, "length": 40},
    "transforms": "color_jitter(0.2) | caption(max_len=23, per_image=2)",
    "batch_size": 8,
    "tokenizer": {"name": "words", "min_count": 1, "examples": 30},
}


def make(**more):
    return Pipeline(**{**SPEC, **more})


def first(pipeline, step=0, count=3):
    return list(itertools.islice(pipeline.train(step), count))


def test_batches_are_as_the_example_batch_says():
    pipeline = make()
    example, (batch, *_) = pipeline.example_batch(), first(pipeline)
    assert {k: (v.shape, v.dtype) for k, v in example.items()} == {
        k: (v.shape, v.dtype) for k, v in batch.items()
    }
    assert batch["image"].shape == (8, 32, 32, 3) and batch["image"].dtype == np.uint8
    assert batch["tokens"].shape == (8, 2, 24) and batch["tokens"].dtype == np.int32
    assert (batch["tokens"][:, :, 0] == text.BOS).all()


def test_processes_and_steps():
    whole = first(make(seed=1))
    for index in range(2):
        part = make(seed=1, process=(index, 2))
        assert part.example_batch()["image"].shape[0] == 4
        for a, b in zip(first(part), whole, strict=True):
            np.testing.assert_array_equal(a["image"], b["image"][4 * index : 4 * index + 4])
            np.testing.assert_array_equal(a["tokens"], b["tokens"][4 * index : 4 * index + 4])
    np.testing.assert_array_equal(first(make(seed=1), step=2, count=1)[0]["image"], whole[2]["image"])
    assert not np.array_equal(first(make(seed=2))[0]["index"], whole[0]["index"])


def test_the_tokenizer_is_trained_on_the_first_examples_and_kept(tmp_path):
    pipeline = make(workdir=tmp_path)
    assert not list(tmp_path.iterdir()), "a pipeline alone writes nothing: its config may still be refused"
    captions = [caption for i in range(30) for caption in pipeline.source.captions(i)]
    assert (
        pipeline.tokenizer.fingerprint == text.train({"name": "words", "min_count": 1}, captions).fingerprint
    )
    kept = text.train({"name": "bytes"}, [])
    kept.save(tmp_path / "tokenizer.json")
    assert make(workdir=tmp_path).tokenizer.fingerprint == kept.fingerprint


def test_a_finished_run_needs_no_data(tmp_path):
    pipeline = make(workdir=tmp_path)
    pipeline.tokenizer.save(tmp_path / "tokenizer.json")
    pipeline.save_shapes(tmp_path / SHAPES)
    gone = dict(source={"name": "jsonl", "path": str(tmp_path / "gone.jsonl")}, workdir=tmp_path)
    finished = make(**gone, finished=True)
    expected = pipeline.example_batch()
    assert finished.tokenizer.fingerprint == pipeline.tokenizer.fingerprint
    for name, value in finished.example_batch().items():
        assert (value.shape, value.dtype) == (expected.pop(name).shape, value.dtype)
    assert not expected
    for needs in (lambda: finished.source, lambda: make(**gone).example_batch()):
        with pytest.raises(FileNotFoundError, match=r"gone\.jsonl"):
            needs()
    (tmp_path / SHAPES).write_text("{")
    with pytest.raises(ValueError, match=r"example\.json is not whole .* Delete it"):
        make(**gone, finished=True).example_batch()


QUESTIONS = {
    "source": {"name": "scene_questions", "split": "train", "size": 32},
    "transforms": "question(max_len=16) | answers",
    "batch_size": 8,
    "tokenizer": {"name": "words", "min_count": 1, "examples": 300},
    "answers": {"size": 3129, "examples": 300},
}


def test_questions_and_answers(tmp_path):
    pipeline = Pipeline(**QUESTIONS, workdir=tmp_path)
    assert set(pipeline.answers.words) == set(scene_questions.ANSWERS)
    assert pipeline.context == {"tokenizer": pipeline.tokenizer, "answers": pipeline.answers}
    (batch,) = first(pipeline, count=1)
    shapes = {key: (value.shape, str(value.dtype)) for key, value in batch.items()}
    assert shapes == {
        "image": ((8, 32, 32, 3), "uint8"), "question": ((8, 16), "int32"), "answer": ((8, 24), "float32"),
        "mask": ((8,), "float32"), "index": ((8,), "int32"),
    }  # fmt: skip
    for index, question, answer in zip(batch["index"], batch["question"], batch["answer"], strict=True):
        said = pipeline.source.question(int(index)).removesuffix("?")
        assert pipeline.tokenizer.decode(question[1:]) == said, "the tokenizer knows the questions' words"
        assert [pipeline.answers.words[k] for k in np.flatnonzero(answer)] == pipeline.source.answers(
            int(index)
        )
    assert not pipeline.tokenizer.unknown(" ".join(scene_questions.ANSWERS)), "and the answers'"


def test_the_answers_are_kept(tmp_path):
    pipeline = Pipeline(**QUESTIONS, workdir=tmp_path)
    kept = type(pipeline.answers)(["yes", "no"])
    kept.save(tmp_path / ANSWERS)
    pipeline.tokenizer.save(tmp_path / "tokenizer.json")
    again = Pipeline(
        **{**QUESTIONS, "source": {"name": "jsonl", "path": "gone.jsonl"}}, workdir=tmp_path, finished=True
    )
    assert again.answers.words == ["yes", "no"]
    assert "answers" not in make().context and make().answers is None


def test_words_and_answers_of_another_run(tmp_path):
    other = Pipeline(**QUESTIONS)
    run, workdir = tmp_path / "other", tmp_path / "own"
    run.mkdir()
    workdir.mkdir()
    other.tokenizer.save(run / "tokenizer.json")
    with pytest.raises(FileNotFoundError, match=r"No answers at .*other"):
        Pipeline(**QUESTIONS, words_from=str(run))
    other.answers.save(run / ANSWERS)
    few = {**QUESTIONS, "tokenizer": {"name": "bytes"}, "answers": {"size": 1}, "words_from": str(run)}
    taken = Pipeline(**few, workdir=workdir)
    assert taken.tokenizer.fingerprint == other.tokenizer.fingerprint
    assert taken.answers.words == other.answers.words
    taken.tokenizer.save(workdir / "tokenizer.json")
    taken.answers.save(workdir / ANSWERS)
    # A run that goes on has its own.
    Pipeline(**{**few, "words_from": str(tmp_path / "gone")}, workdir=workdir)


def test_mistakes_about_answers():
    with pytest.raises(
        ValueError, match=r'the source "scenes" has none\. Take one of questions, such as scene_questions'
    ):
        make(answers={"size": 10})
    with pytest.raises(ValueError, match=r'Unknown key "sise" in data\.answers\. Did you mean "size"'):
        Pipeline(**{**QUESTIONS, "answers": {"sise": 10, "examples": 3}})
    with pytest.raises(ValueError, match=r"needs answers, which .* where the config has data\.answers"):
        Pipeline(**{**QUESTIONS, "answers": None})


@pytest.fixture
def broken(tmp_path):
    """A data set of ten pictures, the first of them broken."""
    from PIL import Image

    rows = []
    for i in range(10):
        Image.new("RGB", (20, 20), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
        rows.append(json.dumps({"image": f"{i}.png", "captions": [f"red {i}"]}))
    (tmp_path / "0.png").write_bytes(b"no picture")
    (tmp_path / "data.jsonl").write_text("\n".join(rows) + "\n")
    return {
        "source": {"name": "jsonl", "path": str(tmp_path / "data.jsonl")},
        "transforms": "decode | resize((16, 16)) | caption(max_len=4)",
        "tokenizer": {"name": "words", "min_count": 1},
        "batch_size": 5,
    }


@pytest.mark.parametrize(("index", "file"), [(0, "quarantine.jsonl"), (1, "quarantine.1.jsonl")])
def test_each_process_lists_broken_images_in_its_own_file(broken, tmp_path, index, file):
    workdir = tmp_path / "run"
    pipeline = Pipeline(**{**broken, "batch_size": 10}, workdir=workdir, process=(index, 2), shuffle=False)
    batches = first(pipeline)
    listed = [p.name for p in workdir.iterdir()] if workdir.exists() else []
    assert listed == ([file] if index == 0 else []), "without shuffling the broken one is the first process's"
    assert all(batch["image"].shape == (5, 16, 16, 3) for batch in batches)
    if index == 0:
        assert batches[0]["mask"].tolist() == [0, 1, 1, 1, 1]
        (entry,) = map(json.loads, (workdir / file).read_text().splitlines())
        assert entry["index"] == 0 and "0.png" in entry["name"] and entry["source"] == "train"
    assert pipeline.quarantine(pipeline.source, "train").path.name == file


def test_without_a_workdir_a_broken_image_is_an_error(broken):
    with pytest.raises(BrokenExample):
        first(Pipeline(**broken))


def test_mistakes_in_a_config_name_the_nearest():
    with pytest.raises(ValueError, match=r'Unknown key "shufle" in data\. Did you mean "shuffle"'):
        registry.call(Pipeline, {**SPEC, "shufle": True}, "data")
    with pytest.raises(ValueError, match=r'color_jiter.*Did you mean "color_jitter"'):
        make(transforms="color_jiter(0.2) | caption(max_len=23)")
    with pytest.raises(ValueError, match=r'Unknown data source "scene".*Did you mean "scenes"'):
        _ = make(source={"name": "scene"}).source
    with pytest.raises(ValueError, match=r'Did you mean "words"'):
        make(tokenizer={"name": "word"})
    with pytest.raises(
        ValueError, match=r"data needs a value for: source, transforms, batch_size, tokenizer"
    ):
        registry.call(Pipeline, {}, "data")
