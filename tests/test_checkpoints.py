"""scripts/checkpoint.py: what it lists, what it finds, what it writes and what it deletes."""

import json
import os
import shutil
import time

import jax
import numpy as np
import pytest
from safetensors import safe_open

from mmgen_jax import checkpoints
from mmgen_jax.core import step_folders
from mmgen_jax.core.checkpoint import Checkpointer, CheckpointError
from mmgen_jax.core.lock import Lock, Locked
from mmgen_jax.core.optimizer import path_name
from mmgen_jax.experiment import Experiment, load

leftovers = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def made(load_config, tmp_path_factory):
    """(a workdir with the steps 1 to 4, the last state): no training; its average is another than its parameters."""
    workdir = tmp_path_factory.mktemp("made")
    config = load_config("classifier_scenes.py:tiny", checkpoint={"every": 1, "keep": 2})
    config.task.model.tower.update(widths=(4,), blocks=1, pool="mean")
    experiment = Experiment(config, workdir)
    experiment.settle()
    state = experiment.init()
    state = state.replace(ema=jax.tree.map(lambda x: x + 1.0, state.ema))
    facts = {"tokenizer": experiment.pipeline.tokenizer.fingerprint}
    checkpointer = Checkpointer(workdir / "checkpoints", keep=0, facts=facts)
    for step in range(1, 5):
        state = state.replace(step=state.step + 1)
        checkpointer.save(step, state, {"val/nats": float(step)})
    checkpointer.close()
    return workdir, state


@pytest.fixture
def workdir(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "run")
    return tmp_path / "run"


def flip(folder):
    """Change a bit in every file that holds arrays."""
    for path in (folder / "state").rglob("d/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def test_list(workdir, script):
    checkpoint = workdir / "checkpoints"
    (checkpoint / "7.orbax-checkpoint-tmp").mkdir()
    (checkpoint / "9").mkdir()
    step_folders.set_aside(checkpoint / "1")
    os.utime(checkpoint / "4", (time.time() + 5000,) * 2)
    status, out, _ = script("checkpoint", "list", "--workdir", workdir)
    assert status == 0
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows[:3]] == ["2", "3", "4"]
    assert "newest" not in rows[0] and "newest" in rows[1] and "newest" in rows[2]
    assert out.splitlines()[0].endswith("val/nats 2")
    assert out.splitlines()[3:] == [
        "1.aside: set aside",
        "7.orbax-checkpoint-tmp: half-written or half-deleted",
        "9: holds no checkpoint",
        "4: written in the future by this machine's clock",
    ]


@leftovers
def test_verify(workdir, script):
    assert script("checkpoint", "verify", "--workdir", workdir)[0] == 0
    flip(workdir / "checkpoints" / "2")
    status, out, _ = script("checkpoint", "verify", "--workdir", workdir)
    assert status == 1
    lines = out.splitlines()
    assert "has other bytes than were written; " in lines[1]
    assert "the numbers of " in lines[1] or "is damaged (" in lines[1]
    assert [line.split(maxsplit=1)[1] for line in (lines[0], *lines[2:])] == ["as it was written"] * 3
    assert script("checkpoint", "verify", "--workdir", workdir, "--step", 3)[0] == 0
    status, _, errors = script("checkpoint", "verify", "--workdir", workdir, "--step", 8)
    assert status == 1 and "No checkpoint 8 under" in errors and "there: 1, 2, 3, 4" in errors


def test_convert_to_safetensors(made, workdir, script, tmp_path):
    """The newest step's average, by the names that messages use too; the config and the step as metadata."""
    _, state = made
    out = tmp_path / "a" / "model.safetensors"
    status, said, _ = script(
        "checkpoint", "convert", "--workdir", workdir, "--to", "safetensors", "--out", out
    )
    assert status == 0 and said == f"{out}: step 4\n"
    expected = {"params": state.ema, "variables": state.variables}
    leaves = {path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(expected)}
    with safe_open(out, "np") as file:
        assert set(file.keys()) == set(leaves)
        for name, value in leaves.items():
            np.testing.assert_array_equal(file.get_tensor(name), value)
        assert file.metadata()["step"] == "4"
        assert json.loads(file.metadata()["config"])["task"]["name"] == "classification"
    status, _, errors = script(
        "checkpoint", "convert", "--workdir", workdir, "--to", "safetensors", "--out", out
    )
    assert status == 1 and "is already there" in errors


def test_convert_for_evaluation(made, workdir, same, tmp_path):
    """What evaluation opens as any other run; the optimizer is not there, and the average is there once."""
    _, state = made
    assert checkpoints.convert(workdir, "evaluation", tmp_path / "small") == 4
    _, params, variables, step = load(tmp_path / "small")
    assert step == 4
    same(params, state.ema)
    same(variables, state.variables)
    whole, small = (
        sum(f.stat().st_size for f in (d / "checkpoints").rglob("*")) for d in (workdir, tmp_path / "small")
    )
    assert small < whole / 4 / 2
    checkpoints.convert(workdir, "evaluation", tmp_path / "own", step=2, average=False)
    same(load(tmp_path / "own")[1], state.params)
    experiment = Experiment(load(tmp_path / "own")[0].config, tmp_path / "own", finished=True)
    with pytest.raises(CheckpointError, match=r"ema/.*: not in the checkpoint"):
        experiment.checkpointer().restore(experiment.abstract, experiment.shardings)


def test_convert_whole(made, workdir, same, tmp_path):
    """Also one without fingerprints, which gets them; training can go on from it."""
    _, state = made
    (workdir / "checkpoints" / "4" / "manifest.json").unlink()
    facts = workdir / "checkpoints" / "4" / "facts" / "metadata"
    facts.write_text(facts.read_text().replace('"sealed": true, ', ""))
    checkpoints.convert(workdir, "whole", tmp_path / "whole")
    assert step_folders.is_sealed(tmp_path / "whole" / "checkpoints" / "4")
    assert checkpoints.verify(tmp_path / "whole") == {4: []}
    experiment = Experiment(load(tmp_path / "whole")[0].config, tmp_path / "whole", finished=True)
    same(experiment.checkpointer().restore(experiment.abstract, experiment.shardings), state)


@leftovers
def test_prune(workdir, script):
    def prune(*args):
        return script("checkpoint", "prune", "--workdir", workdir, *args)

    there = lambda: {path.name for path in (workdir / "checkpoints").iterdir()}
    step_folders.set_aside(workdir / "checkpoints" / "1")
    assert prune("--dry-run", "--keep", 1)[1] == "would delete: 2, 3\n"
    assert there() == {"1.aside", "2", "3", "4"}
    assert prune()[1] == "deleted: 2\n"
    assert prune("--aside")[1] == "deleted: 1.aside\n"
    assert there() == {"3", "4"}
    flip(workdir / "checkpoints" / "4")
    status, _, errors = prune("--keep", 1)
    assert status == 1 and "None of the checkpoints" in errors and there() == {"3", "4"}
    assert prune("--steps", 4)[0] == 0 and there() == {"3"}
    with Lock(workdir), pytest.raises(Locked):
        checkpoints.prune(workdir)


def test_a_folder_without_checkpoints(tmp_path, script):
    status, _, errors = script("checkpoint", "list", "--workdir", tmp_path)
    assert status == 1 and f"No checkpoints under {tmp_path}" in errors
