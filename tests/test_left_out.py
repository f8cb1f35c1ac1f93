"""Steps that are not finite, in whole runs: left out, logged with tensor and examples, rolled back; never saved."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from mmgen_jax.core import goodput, parallel, sharding, step_folders
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.experiment import Experiment
from mmgen_jax.tasks.base import Task
from mmgen_jax.train import train


@pytest.fixture(scope="module")
def config(load_config):
    """A classifier that compiles fast."""
    config = load_config("classifier_scenes.py:tiny", steps=8, log_every=1)
    config.checkpoint = {"every": 2, "keep": 2}
    config.task.model.tower.update(widths=(4,), blocks=1, pool="mean")
    config.guard = {"in_a_row": 2}
    return config


def run(config, workdir):
    screen = io.StringIO()
    return train(config, workdir, console=Console(file=screen, width=400)), screen.getvalue()


def rows(workdir, name="metrics.jsonl"):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def steps(workdir):
    return step_folders.steps(workdir / "checkpoints")


def test_one_example_that_is_nan(config, tmp_path, monkeypatch):
    """It is named, by the data set's number; the run goes on, and the state of that step is the one before."""
    whole = Pipeline.train

    def spoiled(self, step, shift=0):
        for number, batch in enumerate(whole(self, step, shift), start=step + 1):
            batch = {**batch, "image": batch["image"].astype(np.float32)}
            if number == 3:
                batch["image"][5, 2, 2, 0] = np.nan
            yield batch

    monkeypatch.setattr(Pipeline, "train", spoiled)
    state, said = run(config, tmp_path)
    assert int(state.step) == 8 and int(state.guard["skipped"]) == 1
    (entry,) = rows(tmp_path, "skipped.jsonl")
    # Eight examples a batch, in order: the third batch has 16 to 23.
    assert entry == {
        "step": 3,
        "why": "the loss is nan",
        "tensor": "batch/image of example 21",
        "inputs": {"image": [21]},
        "examples": list(range(16, 24)),
    }
    assert (
        "step 3 is left out: the loss is nan. First tensor that is not finite: batch/image of example 21."
        in said
    )
    skipped = {row["step"]: row["train/skipped"] for row in rows(tmp_path) if "train/skipped" in row}
    assert skipped == {step: float(step == 3) for step in range(1, 9)}
    assert steps(tmp_path) == [6, 8]


def test_one_gradient_that_is_nan(config, tmp_path, monkeypatch):
    """At a step that would be saved: the next good one is, in its stead."""
    whole = Task.gradients

    def spoiled(self, params, variables, batch, rng, step):
        grads, metrics, variables = whole(self, params, variables, batch, rng, step)
        bias = grads["model"]["head"]["bias"]
        grads["model"]["head"]["bias"] = jnp.where(step == 3, jnp.nan, bias)
        return grads, metrics, variables

    monkeypatch.setattr(Task, "gradients", spoiled)
    state, _ = run(config, tmp_path)
    assert int(state.guard["skipped"]) == 1
    (entry,) = rows(tmp_path, "skipped.jsonl")
    assert entry["step"] == 4 and entry["why"] == "the gradient of model/head/bias is not finite"
    assert entry["tensor"] == "gradient of model/head/bias"
    assert steps(tmp_path) == [6, 8]


def spoil_parameter(monkeypatch, when):
    """Have an update leave a parameter that is not finite."""
    whole = Task.update

    def spoiled(self, state, grads):
        new = whole(self, state, grads)
        bias = jnp.where(when(state), jnp.nan, new.params["model"]["head"]["bias"])
        params = {"model": {**new.params["model"], "head": {**new.params["model"]["head"], "bias": bias}}}
        return new.replace(params=params)

    monkeypatch.setattr(Task, "update", spoiled)


def test_one_parameter_that_is_nan(config, tmp_path, monkeypatch):
    """It is never saved; after two steps the run goes back to the last good one, and on with other data, to the end."""
    spoil_parameter(monkeypatch, lambda state: (state.step == 3) & (state.guard["shift"] == 0))
    seen = []
    whole = Pipeline.train

    def watched(self, step, shift=0):
        seen.append((step, shift))
        return whole(self, step, shift)

    monkeypatch.setattr(Pipeline, "train", watched)
    state, said = run(config, tmp_path)
    assert "step 4 is not saved: params/model/head/bias is not finite." in said
    assert (
        "step 6: 2 steps in a row were left out; back to step 2, with another order of the data (rollback 1 of 3)"
        in said
    )
    assert seen == [(0, 0), (2, 1)]
    assert int(state.step) == 8 and int(state.guard["shift"]) == 1
    assert [entry["tensor"] for entry in rows(tmp_path, "skipped.jsonl")] == ["params/model/head/bias"] * 2
    assert [row["step"] for row in rows(tmp_path) if "train/loss" in row] == list(range(1, 9))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    (start,) = goodput.read(tmp_path / goodput.FILE)
    assert start.seconds["rolled_back"] > 0 and start.seconds["lost"] == 0
    assert (start.step, start.last, start.end) == (0, 8, "finished")
    # A run that is resumed goes on with the same other data.
    seen.clear()
    more = config.copy_and_resolve_references()
    more.steps = 9
    train(more, tmp_path, override=True, console=Console(file=io.StringIO()))
    assert seen == [(8, 1)]


def test_what_cannot_be_helped_ends_the_run(config, tmp_path, monkeypatch):
    spoil_parameter(monkeypatch, lambda state: state.step == 4)
    with pytest.raises(
        FloatingPointError, match=r"The loss is nan at step 7, the last of 2 steps in a row .*learning_rate"
    ):
        run(config, tmp_path / "back")
    assert steps(tmp_path / "back") == [2, 4]
    assert len(rows(tmp_path / "back", "skipped.jsonl")) == 2 * 4
    stop = config.copy_and_resolve_references()
    stop.guard = {"in_a_row": 2, "then": "stop"}
    with pytest.raises(FloatingPointError, match="at step 7"):
        run(stop, tmp_path / "stop")
    assert steps(tmp_path / "stop") == [2, 4]
    assert len(rows(tmp_path / "stop", "skipped.jsonl")) == 2


def test_all_networks_of_a_step_are_left_out_together(load_config, same, monkeypatch):
    """A gradient of the generator alone is bad; the discriminator, the text tower and all statistics stay as they were, too."""
    whole = Task.update

    def spoiled(self, state, grads):
        if "generator" in grads:
            grads = jax.tree.map(lambda g: jnp.where(state.step == 1, jnp.inf, g), grads)
        return whole(self, state, grads)

    monkeypatch.setattr(Task, "update", spoiled)
    experiment = Experiment(load_config("dcgan_scenes.py:tiny"))
    step = parallel.compile_step(experiment.train_step, experiment.layout, experiment.shardings)
    batches = experiment.pipeline.train(0)
    state, history = experiment.init(), []
    for _ in range(3):
        state, metrics = step(state, sharding.put_batch(next(batches), experiment.layout))
        history.append(jax.device_get((state.params, state.variables, state.opt_state, state.ema)))
        assert bool(metrics["notice"]["ok"]) == (len(history) != 2)
    same(history[1], history[0])
    with pytest.raises(AssertionError):
        same(history[2], history[1])
    assert int(state.guard["skipped"]) == 1 and int(state.step) == 3
