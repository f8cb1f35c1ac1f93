"""scripts/answer.py on a tiny run: answers with probabilities, the attention picture, without an image, errors."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mmgen_jax.data import sources
from mmgen_jax.train import train


@pytest.fixture(scope="module")
def run(load_config, tmp_path_factory):
    """(workdir, the config's evaluation "test") of a run of four steps."""
    evals = (
        load_config.__globals__["runpy"]
        .run_path("configs/question_answering_scenes.py")["get_config"]("tiny")
        .evals
    )
    config = load_config("question_answering_scenes.py:tiny", steps=4, evals={"test": evals.test.to_dict()})
    workdir = tmp_path_factory.mktemp("runs") / "answers"
    train(config, workdir, console=Console(file=io.StringIO()))
    return workdir, config.evals.test


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_the_answers_of_its_evaluation(script, run, tmp_path):
    """A file with the pixels of a test scene gets the answer and probability that the evaluation wrote."""
    workdir, test = run
    (path,) = (workdir / "predictions").glob("test_*.jsonl")
    expected = lines(path.read_text())[3]
    source = sources.make(test.source.to_dict())
    Image.fromarray(source[3]["image"]).save(tmp_path / "a.png")
    figure = tmp_path / "new" / "looked.png"
    status, out, err = script(
        "answer", "--workdir", workdir, "--figure", figure, tmp_path / "a.png", expected["question"], "is there a star?"
    )  # fmt: skip
    assert status == 0, err
    first, second = lines(out)
    assert first["image"] == str(tmp_path / "a.png") and first["question"] == expected["question"]
    assert len(first["answers"]) == 3 and "without" not in first
    assert first["answers"][0]["answer"] == expected["answer"]
    assert first["answers"][0]["probability"] == pytest.approx(expected["probability"], abs=2e-4)
    assert second["question"] == "is there a star?"
    with Image.open(figure) as picture:
        assert min(picture.size) > 100


def test_without_an_image(script, run):
    status, out, err = script("answer", "--workdir", run[0], "--blind", "--n-best", 1, "is there a star?")
    (line,) = lines(out)
    assert (
        status == 0 and line["without"] == ["image"] and line["image"] is None and len(line["answers"]) == 1
    )
    assert "answered without the image" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png", "is there a star?"], "No image absent.png"),
        (["notes.txt", "is there a star?"], "notes.txt"),
        (["--blind", "--figure", "x.png", "is there a star?"], "needs an image"),
        (["--n-best", "0", "a.png", "is there a star?"], "n_best=0; it is at least 1"),
        (["a.png"], "a question is missing"),
    ],
)
def test_mistakes_are_named(script, run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save("a.png")
    status, _, err = script("answer", "--workdir", run[0], *arguments)
    assert status != 0 and message in err and "Traceback" not in err


def test_a_run_that_answers_nothing(script, tiny_run, tmp_path):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    status, _, err = script("answer", "--workdir", tiny_run[0], tmp_path / "a.png", "what is it?")
    assert status != 0 and 'answers no questions: its task is "captioning"' in err
