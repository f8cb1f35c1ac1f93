"""scripts/answer.py on a tiny run: answers with probabilities, the attention picture, without an image, errors."""

import io
import json
import runpy

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mmgen_jax.data import sources
from mmgen_jax.train import train


@pytest.fixture(scope="module")
def trained(load_config, tmp_path_factory):
    """trained("tiny") -> (workdir, the config's evaluation "test") of a run of four steps."""

    def make(arg):
        evals = runpy.run_path("configs/question_answering_scenes.py")["get_config"](arg).evals
        test = {"test": evals.test.to_dict()}
        config = load_config(f"question_answering_scenes.py:{arg}", steps=4, evals=test)
        workdir = tmp_path_factory.mktemp("runs") / "answers"
        train(config, workdir, console=Console(file=io.StringIO()))
        return workdir, config.evals.test

    return make


@pytest.fixture(scope="module")
def run(trained):
    return trained("tiny")


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


def test_a_run_that_writes_its_answers(script, trained, tmp_path):
    """The beam's sequences with their probabilities, the first as its evaluation wrote it; a map a word."""
    workdir, test = trained("tiny,answers=generated")
    (path,) = (workdir / "predictions").glob("test_*.jsonl")
    expected = lines(path.read_text())[3]
    scores = json.loads((workdir / "scores" / path.with_suffix(".json").name).read_text())["rows"]
    assert 0 <= scores["finished"]["value"] <= 100 and "outside" not in scores
    assert scores["accuracy"]["ceiling"] == 100
    source = sources.make(test.source.to_dict())
    Image.fromarray(source[3]["image"]).save(tmp_path / "a.png")
    figure = tmp_path / "looked.png"
    status, out, err = script(
        "answer", "--workdir", workdir, "--n-best", 4, "--figure", figure, tmp_path / "a.png", expected["question"]
    )  # fmt: skip
    assert status == 0, err
    (line,) = lines(out)
    probabilities = [answer["probability"] for answer in line["answers"]]
    assert len(probabilities) == 4 and probabilities == sorted(probabilities, reverse=True)
    assert probabilities[0] >= expected["probability"] - 2e-4, "of four beams, where the evaluation had three"
    assert expected["answer"] in [answer["answer"] for answer in line["answers"]]
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
        (["absent.png", "is there a star?"], "No image or video absent.png"),
        (["notes.txt", "is there a star?"], "notes.txt"),
        (["--blind", "--figure", "x.png", "is there a star?"], "needs the image"),
        (["--n-best", "0", "a.png", "is there a star?"], "n_best=0; it is at least 1"),
        (["a.png"], "a question is missing"),
        (["a.png", "what is it?", __file__], "is a file, not a question"),
        (["absent.png", 300 * "is it there "], "No image or video absent.png"),
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
