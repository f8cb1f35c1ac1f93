"""A run keeps its vocabulary of answers: in the workdir, beside the checkpoints, and in what is converted from them."""

import pytest

from mmgen_jax import checkpoints
from mmgen_jax.core.checkpoint import CheckpointError
from mmgen_jax.data.answers import Answers
from mmgen_jax.data.pipeline import ANSWERS
from mmgen_jax.experiment import Experiment, load


@pytest.fixture
def config(load_config):
    """Questions beside a task that does not read them, which is enough here and compiles in no time."""
    kept = {"checkpoint": {"every": 1, "keep": 2}}
    config = load_config("gan_gaussians.py:tiny", **kept)
    config.data = {
        "source": {"name": "scene_questions", "split": "train", "size": 32},
        "transforms": "question(max_len=12) | answers",
        "batch_size": 8,
        "tokenizer": {"name": "words", "min_count": 1, "examples": 100},
        "answers": {"size": 10, "examples": 100},
    }
    config.task.generator = {"name": "dcgan", "image_size": 32, "width": 2}
    config.task.discriminator = {"name": "dcgan", "width": 2}
    config.task.loss = {"name": "non_saturating"}
    return config


def test_answers_stay_with_the_run(config, tmp_path, monkeypatch):
    workdir, state = tmp_path / "run", None
    experiment = Experiment(config, workdir)
    experiment.settle()
    words = experiment.pipeline.answers.words
    assert len(words) == 10 and (workdir / ANSWERS).is_file()
    state = experiment.init()
    checkpointer = experiment.checkpointer()
    checkpointer.save(1, state.replace(step=state.step + 1), wait=True)
    checkpointer.close()

    with monkeypatch.context() as patch:  # nothing of the training data is read again
        patch.setattr(Answers, "train", None)
        assert load(workdir)[0].pipeline.context["answers"].words == words
        checkpoints.convert(workdir, "evaluation", tmp_path / "small")
        assert load(tmp_path / "small")[0].pipeline.answers.words == words

    Answers(words[::-1]).save(workdir / ANSWERS)
    with pytest.raises(
        CheckpointError, match=r"was written with another answers .* Restore the workdir's answers file"
    ):
        load(workdir)


def test_runs_without_answers_are_as_they_were(load_config, tmp_path):
    experiment = Experiment(load_config("gan_gaussians.py:tiny"), tmp_path)
    experiment.settle()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "example.json",
        "tokenizer.json",
    ]
    assert experiment.checkpointer().facts == {"tokenizer": experiment.pipeline.tokenizer.fingerprint}
