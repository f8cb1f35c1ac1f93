"""A run stopped and resumed equals one that was not, bit for bit; a workdir belongs to its config."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mmgen_jax.core import step_folders
from mmgen_jax.core.checkpoint import CheckpointError
from mmgen_jax.core.lock import Locked
from mmgen_jax.core.writer import Writers
from mmgen_jax.data.quarantine import TooManyBroken
from mmgen_jax.experiment import WorkdirError
from mmgen_jax.tasks.collapse import Collapsed
from mmgen_jax.train import Interrupted, train

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def config(load_config, tmp_path_factory):
    """The tiny captioner on 20 pictures, with an EMA and all that is drawn: order, augmentation, dropout."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    words = ["a", "big", "small", "red", "dog", "cat", "runs", "sits"]
    with (folder / "data.jsonl").open("w") as file:
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / f"{i}.png")
            captions = [" ".join(rng.choice(words, rng.integers(2, 7))) for _ in range(3)]
            file.write(json.dumps({"image": f"{i}.png", "captions": captions}) + "\n")
    config = load_config(checkpoint={"every": 4, "keep": 2}, log_every=2, steps=8)
    augment = "decode | random_resized_crop(32, min_area=0.5) | flip | color_jitter(0.2)"
    config.data.transforms = f"{augment} | caption(max_len=8, per_image=2)"
    config.data.shuffle = True
    config.data.source = {"name": "jsonl", "path": str(folder / "data.jsonl")}
    config.data.tokenizer = {"name": "words", "min_count": 1}
    config.task.model.decoder.dropout = 0.3
    config.optimizer.ema = 0.9
    return config


def run(config, workdir, **kwargs):
    return train(config, workdir, console=Console(file=io.StringIO()), **kwargs)


def reported(workdir):
    """The steps in metrics.jsonl that a training report was written for."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "train/loss" in row]


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """(final state, workdir) of eight steps without a break."""
    workdir = tmp_path_factory.mktemp("straight")
    return run(config, workdir), workdir


def at_step(monkeypatch, step, do):
    """Have the loop call `do` once, as it moves the bar to `step`."""
    with_hook = Writers.progress

    def progress(self, now):
        with_hook(self, now)
        if now == step:
            do()

    monkeypatch.setattr(Writers, "progress", progress)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal(config, straight, same, tmp_path, monkeypatch, sent):
    """The signal comes while step 3 is at work; it is finished, saved, and the run goes on from there."""
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), sent))
        with pytest.raises(Interrupted, match="saved at step 3"):
            run(config, tmp_path)
    assert (tmp_path / "checkpoints" / "3").is_dir()
    same(run(config, tmp_path), straight[0])
    assert reported(tmp_path) == reported(straight[1]) == [2, 4, 6, 8]


def test_stopped_by_a_crash(config, straight, same, tmp_path, monkeypatch):
    """Steps after the last checkpoint are done again, and stand in metrics.jsonl once."""

    def crash():
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        at_step(patch, 7, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            run(config, tmp_path)
    assert reported(tmp_path) == [2, 4, 6]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "ti')
    same(run(config, tmp_path), straight[0])
    assert reported(tmp_path) == [2, 4, 6, 8]


def test_a_gan_stopped_by_a_signal(load_config, same, tmp_path, monkeypatch):
    """All its networks, the generator's average, batch statistics and the spectral norm's vectors; noise and augmentation."""
    config = load_config("dcgan_scenes.py:tiny", checkpoint={"every": 4, "keep": 2}, log_every=2)
    with config.unlocked():
        config.task.discriminator = {"name": "dcgan", "width": 8, "spectral": True}
        config.task.loss = {"name": "hinge"}
        config.task.augment = ("colour", "translation", "cutout")
        config.task.discriminator_steps = 2
    straight = run(config, tmp_path / "straight")
    assert {"text", "generator", "discriminator"} == straight.params.keys() and set(straight.ema) == {
        "generator"
    }
    assert (
        "batch_stats" in straight.variables["generator"] and "spectral" in straight.variables["discriminator"]
    )
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="saved at step 1"):
            run(config, tmp_path / "stopped")
    same(run(config, tmp_path / "stopped"), straight)


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("question_answering_scenes.py:tiny", "dropout"),
        ("question_answering_scenes.py:tiny,answers=generated", "modality_dropout"),
        ("key_frames_clips.py:tiny", None),
    ],
)
def test_answers_and_key_frames_stopped_by_a_signal(name, drawn, load_config, same, tmp_path, monkeypatch):
    """What is drawn in a step is the same again: dropout, which modality is left out, whose answer is learnt."""
    config = load_config(name, checkpoint={"every": 4, "keep": 2}, log_every=2, steps=4)
    if drawn:
        config.task.model[drawn] = 0.3
    straight = run(config, tmp_path / "straight")
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="saved at step 1"):
            run(config, tmp_path / "stopped")
    same(run(config, tmp_path / "stopped"), straight)


def test_a_damaged_checkpoint_costs_only_its_steps(config, straight, same, tmp_path):
    """It is set aside, the one before is taken, and the end is the same; also from an older step by force, and from none."""
    shutil.copytree(straight[1], tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert {p.name for p in checkpoints.iterdir()} == {"4", "8"}
    (checkpoints / "8" / "facts" / "metadata").write_text("{}")
    screen = Console(file=io.StringIO(), width=300)
    same(train(config, tmp_path / "run", console=screen), straight[0])
    said = screen.file.getvalue()
    assert "8 is damaged (facts/metadata has 2 bytes of" in said and "It is now 8.aside." in said
    assert "resuming at step 4" in said
    assert reported(tmp_path / "run") == [2, 4, 6, 8]
    same(run(config, tmp_path / "run", step=4), straight[0])
    assert {p.name for p in checkpoints.iterdir()} == {"4", "8", "8.aside", "8.aside.2"}
    for step in (4, 8):
        shutil.rmtree(checkpoints / str(step) / "state")
    same(run(config, tmp_path / "run"), straight[0])
    assert reported(tmp_path / "run") == [2, 4, 6, 8]


def test_saves_that_fail_end_the_run_only_after_several(config, straight, same, tmp_path, monkeypatch):
    """Training goes on meanwhile, and says so."""
    seal = step_folders.seal

    def full_until(last):
        def write(folder, step):
            if step <= last:
                raise OSError(28, "No space left on device")
            seal(folder, step)

        return write

    brave = config.copy_and_resolve_references()
    brave.checkpoint = {"every": 1, "keep": 2, "failures": 3}
    screen = Console(file=io.StringIO(), width=300)
    monkeypatch.setattr("mmgen_jax.core.step_folders.seal", full_until(3))
    same(train(brave, tmp_path / "brave", console=screen), straight[0])
    assert screen.file.getvalue().count("could not be saved: No space left on device") == 3
    monkeypatch.setattr("mmgen_jax.core.step_folders.seal", full_until(8))
    with pytest.raises(CheckpointError, match="4 saves in a row failed"):
        run(brave, tmp_path / "full")
    assert reported(tmp_path / "full") == [2, 4]


def test_a_second_run_in_one_workdir_is_refused(config, tmp_path, monkeypatch):
    refused = []

    def start_another():
        with pytest.raises(Locked, match=f"{tmp_path} is in use by process {os.getpid()} "):
            run(config, tmp_path)
        refused.append(True)

    at_step(monkeypatch, 2, start_another)
    run(config, tmp_path)
    assert refused


def test_a_finished_run_does_not_train_again(config, straight, same):
    state, workdir = straight
    same(run(config, workdir), state)
    assert reported(workdir) == [2, 4, 6, 8]


def test_every_step_sees_other_numbers(straight):
    """The comparison above would hold for a run that never changes, too."""
    state, workdir = straight
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len({row["train/loss"] for row in rows if "train/loss" in row}) == 4
    assert int(state.step) == 8
    kernel, average = (tree["model"]["decoder"]["key_kernel"] for tree in (state.params, state.ema))
    assert not np.array_equal(kernel, average)


def test_another_config_is_refused(config, straight, tmp_path):
    _, workdir = straight
    other = config.copy_and_resolve_references()
    other.steps, other.optimizer.learning_rate = 9, 0.5
    with pytest.raises(WorkdirError) as error:
        run(other, workdir)
    assert "optimizer.learning_rate: " in str(error.value) and "steps: 8 -> 9" in str(error.value)
    assert "--override" in str(error.value) and str(workdir) in str(error.value)


def test_override_goes_on(config, tmp_path):
    first = config.copy_and_resolve_references()
    first.steps, first.optimizer.schedule = 2, "constant"
    run(first, tmp_path)
    first.steps = 4
    state = run(first, tmp_path, override=True)
    assert int(state.step) == 4
    assert reported(tmp_path) == [2, 4]
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 4
    assert int(run(first, tmp_path).step) == 4, "the workdir is the new config's now"


def test_a_config_with_a_mistake_claims_no_workdir(config, tmp_path):
    wrong = config.copy_and_resolve_references()
    wrong.task.model.decoder.featurs = 3
    workdir = tmp_path / "run"
    with pytest.raises(ValueError, match=r'Unknown key "featurs" .*Did you mean "features"'):
        run(wrong, workdir)
    assert not workdir.exists()


def test_a_learning_rate_that_explodes_ends_the_run(config, tmp_path):
    wild = config.copy_and_resolve_references()
    wild.optimizer.update(name="sgd", learning_rate=1e30, clip_norm=0.0, warmup=0)
    wild.checkpoint.every, wild.guard = 1, {"in_a_row": 2, "rollbacks": 2}
    with pytest.raises(
        FloatingPointError, match=r"The loss is (nan|inf) at step \d.*optimizer.learning_rate"
    ):
        run(wild, tmp_path)
    # The first step's parameters are finite, and lead nowhere.
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "1.aside"}


def test_a_collapse_ends_the_run_where_the_config_says_so(load_config, tmp_path):
    """A generator that learns nothing draws the same always; the checkpoint from before that is named stays, and is whole."""
    config = load_config("dcgan_scenes.py:tiny", checkpoint={"every": 2, "keep": 2}, log_every=1, steps=8)
    with config.unlocked():
        config.task.watch = {"every": 1, "after": 3, "stop": True, "patience": 2}
    with pytest.raises(
        Collapsed, match=r"Stopped at step 4, after 2 reports in a row of mode collapse"
    ) as stop:
        run(config, tmp_path)
    assert "from before step 3 are whole" in str(stop.value)
    assert (tmp_path / "checkpoints" / "2").is_dir()


def test_too_many_broken_images_end_the_run(config, tmp_path):
    """From a loader's thread, through grain and the loop, with the summary."""
    folder = Path(config.data.source.path).parent
    broken = tmp_path / "data.jsonl"
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        row["image"] = str(folder / row["image"])
        if i % 2:
            (tmp_path / f"{i}.png").write_bytes(b"")
            row["image"] = str(tmp_path / f"{i}.png")
    broken.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad = config.copy_and_resolve_references()
    bad.data.source.path = str(broken)
    with pytest.raises(TooManyBroken, match=r"(?s)of 20 examples of 'train' are broken.*zero bytes.*jsonl"):
        run(bad, tmp_path / "run")
    # Other threads may find one more while the first stops the run.
    assert len((tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()) >= 8


def test_a_stop_while_the_step_compiles(tmp_path, script_env):
    """Status 75 too, though XLA goes on compiling; there is no checkpoint yet."""
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--workdir", str(tmp_path / "run")]
    command += ["--config", str(ROOT / "configs" / "captioner_scenes.py"), "--compilation_cache", ""]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=script_env, **pipes) as process:
        for line in process.stdout:
            if line.startswith("training in"):
                time.sleep(1.0)
                process.send_signal(signal.SIGTERM)
                break
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 75, errors
    assert "Stopped before step 1: there is nothing new to save." in errors and "Segmentation" not in errors


SCRIPT_CONFIG = """
import runpy
def get_config(arg=None):
    config = runpy.run_path({path!r})["get_config"]("tiny")
    config.evals, config.steps, config.log_every, config.checkpoint.every = {{}}, 300, 2, 1000
    config.data.tokenizer.examples = 50
    return config
"""


def test_ctrl_c_on_the_script(tmp_path, script_env):
    """Status 75, the state is saved, and the same command goes on to the end."""
    path = str(ROOT / "configs" / "captioner_scenes.py")
    (tmp_path / "config.py").write_text(SCRIPT_CONFIG.format(path=path))
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(tmp_path / "config.py")]
    command += ["--workdir", str(tmp_path / "run")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=script_env, **pipes) as process:
        for line in process.stdout:
            if line.startswith("step 2/300"):
                process.send_signal(signal.SIGINT)
                break
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 75, rest + errors
    assert "The same command goes on from there" in errors
    assert "Traceback" not in errors
    (saved,) = (int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit())
    assert 2 <= saved < 300
    again = subprocess.run(command, env=script_env, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert f"resuming at step {saved}" in again.stdout
    assert reported(tmp_path / "run") == list(range(2, 301, 2))
