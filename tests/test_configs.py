"""Every config, tiny or not: shapes of init, train_step and every prediction. Nothing is computed."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mmgen_jax import plan
from mmgen_jax.core import config as config_lib
from mmgen_jax.experiment import Experiment
from mmgen_jax.nn import fusion

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.name != "__init__.py")


@pytest.fixture
def get(monkeypatch):
    monkeypatch.chdir(ROOT)  # paths in configs are relative to the repository

    def load(path, arg):
        config = runpy.run_path(str(path))["get_config"](arg)
        config.judges = {}  # other runs, which nobody has trained here
        return config

    return load


@pytest.mark.parametrize(
    ("path", "arg"),
    [
        *((path, arg) for path in FILES for arg in (None, "tiny")),
        (ROOT / "configs" / "question_answering_scenes.py", "answers=generated"),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else value or "full",
)
def test_shapes(path, arg, get, tmp_path):
    config = get(path, arg)
    config_lib.check(config)
    try:
        experiment = Experiment(config)
    except FileNotFoundError:
        experiment = Experiment(plan.stand_in(get(path, arg), tmp_path))
    task, state = experiment.task, experiment.abstract
    for leaf in jax.tree.leaves(state.params):
        assert leaf.dtype == jnp.float32
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), experiment.pipeline.example_batch()
    )
    after, metrics = jax.eval_shape(task.train_step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    jax.tree.map(lambda a, b: _same(a, b), after, state)
    assert {"loss", "grad_norm", "learning_rate"} <= metrics.keys()
    assert all(leaf.shape == () and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(metrics))
    assert task.predict
    for name, predict in task.predict.items():
        output = jax.eval_shape(predict, state.params, state.variables, batch, state.rng)
        rows = {leaf.shape[0] for leaf in jax.tree.leaves(output)}
        assert rows == {batch["mask"].shape[0]}, name


@pytest.mark.parametrize("name", ["classifier_digits", "dcgan_fashion_mnist", "gan_stacked_digits"])
def test_without_data_digits_have_their_size(name, get, tmp_path):
    """Images of the MNIST family go through no transform that would resize what stands in for them."""
    experiment = Experiment(plan.stand_in(get(ROOT / "configs" / f"{name}.py", "tiny"), tmp_path))
    assert experiment.pipeline.example_batch()["image"].shape == (8, 28, 28, 3)
    jax.eval_shape(experiment.task.train_step, experiment.abstract, experiment.pipeline.example_batch())


def _same(left, right):
    assert (left.shape, left.dtype) == (right.shape, right.dtype)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_headers(path, get):
    """A config opens with its command; an unknown argument is refused."""
    text = path.read_text(encoding="utf-8")
    assert f"--config configs/{path.name}" in text.split('"""')[1], "the docstring holds the command"
    with pytest.raises(ValueError, match=r'Unknown config argument "tny".*Did you mean "tiny"'):
        get(path, "tny")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_tiny_run_is_short(path, get):
    tiny = get(path, "tiny")
    assert tiny.steps <= 20 and tiny.data.batch_size <= 16


FUSING = [path for path in FILES if "\nFUSIONS = {" in path.read_text()]


@pytest.mark.parametrize("name", sorted(fusion.FUSIONS))
@pytest.mark.parametrize("path", FUSING, ids=lambda path: path.stem)
def test_every_fusion_can_be_chosen(path, name, get):
    for form in ("", "tiny,"):
        spec = get(path, f"{form}fusion={name}").task.model.fusion
        fusion.build(spec.to_dict(), "task.model.fusion", dtype=jnp.float32)
