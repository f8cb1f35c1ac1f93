"""Two and four real processes equal one: training, evaluation, and stopping; through scripts/train.py's flags."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmgen_jax.core import step_folders
from mmgen_jax.core.config import load_json
from mmgen_jax.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]

# Samples as captions: a random key that differed between processes would show. The last batch is padded.
CONFIG = """
import runpy
def get_config(arg=None):
    config = runpy.run_path({path!r})["get_config"]("tiny")
    source = dict(config.data.source, length=64)
    config.data.update(source=source, shuffle=True)
    held = dict(source=dict(source, split="val", length=11), batch_size=8,
                transforms="caption(max_len=23, per_image=5, which='first')")
    config.evals = dict(captions=dict(held, name="captions", pictures=2), nats=dict(held, name="likelihood"))
    config.task.decode = dict(max_len=12, temperature=1.0)
    config.optimizer = dict(name="sgd", learning_rate=0.1, schedule="constant", ema=0.5)
    config.steps, config.log_every = 2, 1
    if arg == "long":
        config.steps, config.evals = 100000, {{}}
    if arg == "wild":
        config.steps, config.evals, config.optimizer.learning_rate = 6, {{}}, 1e30
        config.guard = dict(in_a_row=2, then="stop")
    return config
"""

# Retrieval gathers embeddings, zero-shot embeds texts that no loader cuts, the probe reads two data sets.
DUAL = """
import runpy
def get_config(arg=None):
    config = runpy.run_path({path!r})["get_config"]("tiny")
    source = dict(name="scenes", size=24, max_objects=1, length=64)
    config.data.update(source=dict(source, split="train"), batch_size=8)
    held = dict(source=dict(source, split="val", length=11), batch_size=8)
    config.evals = dict(
        retrieval=dict(held, name="retrieval", transforms="text(24, per_image=5, which='first')", pictures=2),
        zero_shot=dict(held, name="zero_shot", transforms="resize(24)", max_len=24),
        probe=dict(held, name="linear_probe", transforms="resize(24)", train_source=dict(source, length=20), c=1.0),
    )
    config.task.model = dict(embed_dim=16, image=dict(name="convnet", widths=(8, 16), blocks=1, pool="mean"),
        text=dict(name="text_transformer", width=16, depth=1, heads=2, causal=False, pool="mean", max_len=24))
    config.optimizer = dict(name="sgd", learning_rate=0.1, schedule="constant")
    config.steps, config.log_every = 2, 1
    return config
"""

# Both networks' batch statistics, noise and mismatches over all processes; samples that a judge reads on each of them.
GAN = """
import runpy
def get_config(arg=None):
    config = runpy.run_path({path!r})["get_config"]("tiny")
    scenes = dict(name="scenes", size=32, length=11)
    held = dict(source=dict(scenes, split="val"), transforms="text(24, which='first')", batch_size=8)
    config.evals = dict(
        reading=dict(held, name="reading", n=13),
        quality=dict(held, name="images", scores=("fid", "kid"), features="reader.features", few=True, resamples=0),
        samples=dict(held, name="samples", rows=3, columns=2),
    )
    config.judges = dict(reader=dict(name="run", workdir={judge!r}))
    config.task.discriminator = dict(name="dcgan", width=8, unconditional=True)
    config.task.loss = dict(name="non_saturating")
    config.optimizer = dict(name="sgd", learning_rate=0.02, schedule="constant", networks=dict(generator=dict(ema=0.9)))
    config.steps, config.log_every = 2, 1
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    path = str(ROOT / "configs" / "captioner_scenes.py")
    (folder / "config.py").write_text(CONFIG.format(path=path))
    return folder


def command(folder, name, arg="", *more):
    script = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", f"{folder / 'config.py'}{arg}"]
    return [*script, "--workdir", str(folder / name), *more]


def start(count, folder, name, env, arg="", *more):
    """Processes of one device each, found through the flags."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ["--coordinator", address, "--num_processes", str(count), "--process_id"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    script = command(folder, name, arg, *more)
    return [subprocess.Popen([*script, *flags, str(i)], env=env, **pipes) for i in range(count)]


def start_two(*args):
    return start(2, *args)


def finish(processes):
    """[(stdout, stderr)] of all; none is left behind."""
    try:
        return [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def state_of(workdir):
    experiment = Experiment(load_json(workdir / "config.json"), workdir)
    checkpointer = experiment.checkpointer()
    state = checkpointer.restore(experiment.abstract, experiment.shardings)
    checkpointer.close()
    return state


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(folder, script_env):
    """One process of two devices."""
    env = {**script_env, "JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run(command(folder, "one"), env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder / "one"


@pytest.fixture(scope="module")
def two(folder, script_env):
    processes = start_two(folder, "two", script_env)
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    return folder / "two", outputs


def test_only_the_first_process_writes(two):
    workdir, outputs = two
    assert "step 2/2" in outputs[0][0]
    assert [line for line in outputs[1][0].splitlines() if "Gloo" not in line] == []
    assert [row["step"] for row in rows(workdir) if "train/loss" in row] == [1, 2]
    assert not list(workdir.glob("*.part"))


def test_training_is_the_same(one, two, same):
    same(state_of(two[0]), state_of(one), rtol=0, atol=1e-5)
    for left, right in zip(rows(two[0]), rows(one), strict=True):
        for name in ("train/loss", "train/grad_norm"):
            np.testing.assert_allclose(left.get(name, 0), right.get(name, 0), rtol=1e-5)


def test_evaluators_give_the_same_numbers(one, two):
    scores = []
    for workdir in (one, two[0]):
        merged = {key: value for row in rows(workdir) for key, value in row.items()}
        scores.append({k: v for k, v in merged.items() if k.startswith(("captions/", "nats/"))})
    assert scores[0].keys() == scores[1].keys() and len(scores[0]) > 8
    for name, value in scores[0].items():
        np.testing.assert_allclose(scores[1][name], value, rtol=1e-5, err_msg=name)


def test_evaluation_counts_every_example_once(one, two):
    for workdir in (one, two[0]):
        (path,) = (workdir / "predictions").glob("captions_*.jsonl")
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert [record["index"] for record in records] == list(range(11))
    left, right = ((workdir / "predictions" / path.name).read_text() for workdir in (one, two[0]))
    captions = [[json.loads(line)["caption"] for line in text.splitlines()] for text in (left, right)]
    assert captions[0] == captions[1]
    assert len(set(captions[0])) > 5, "samples differ from image to image"


def test_retrieval_and_classification_are_the_same(tmp_path, script_env):
    path = str(ROOT / "configs" / "dual_encoder_scenes.py")
    (tmp_path / "config.py").write_text(DUAL.format(path=path))
    processes = start_two(tmp_path, "two", script_env)
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    env = {**script_env, "JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run(command(tmp_path, "one"), env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    scores, files = [], []
    for workdir in (tmp_path / "one", tmp_path / "two"):
        merged = {key: value for row in rows(workdir) for key, value in row.items()}
        scores.append(
            {k: v for k, v in merged.items() if k.startswith(("retrieval/", "zero_shot/", "probe/"))}
        )
        files.append({path.name: path for path in (workdir / "predictions").iterdir()})
        assert (workdir / "figures" / "retrieval_000002.png").exists()
    assert scores[0].keys() == scores[1].keys() and len(scores[0]) == 14 + 2 * 6
    for name, value in scores[0].items():
        np.testing.assert_allclose(scores[1][name], value, rtol=1e-5, err_msg=name)
    assert files[0].keys() == files[1].keys() and len(files[0]) == 5
    for name in ("zero_shot_000002.jsonl", "zero_shot_000002.txt", "probe_000002.jsonl"):
        assert files[0][name].read_text() == files[1][name].read_text(), name
    texts = [paths["retrieval_000002.jsonl"].read_text() for paths in files]
    found = [[json.loads(line) for line in text.splitlines()] for text in texts]
    assert [record["index"] for record in found[0]] == list(range(11))
    assert [record["rank"] for record in found[0]] == [record["rank"] for record in found[1]]


def test_a_gan_and_the_scores_of_its_samples_are_the_same(tmp_path, script_env, same):
    judge, config = tmp_path / "judge", str(ROOT / "configs" / "classifier_scenes.py:tiny")
    script = [sys.executable, str(ROOT / "scripts" / "train.py")]
    subprocess.run([*script, "--config", config, "--workdir", judge], env=script_env, check=True, timeout=200)
    path = str(ROOT / "configs" / "dcgan_scenes.py")
    (tmp_path / "config.py").write_text(GAN.format(path=path, judge=str(judge)))
    processes = start_two(tmp_path, "two", script_env)
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    env = {**script_env, "JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run(command(tmp_path, "one"), env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    same(state_of(two), state_of(one), rtol=0, atol=1e-5)
    scores = [{k: v for row in rows(workdir) for k, v in row.items() if "/" in k} for workdir in (one, two)]
    found = [k for k in scores[0] if not k.startswith("train/")]
    assert {"reading/true", "quality/fid", "quality/kid", "samples/spread"} <= set(found)
    for name in found:
        np.testing.assert_allclose(scores[1][name], scores[0][name], rtol=1e-3, atol=1e-6, err_msg=name)
    texts = [(workdir / "predictions" / "reading_000002.jsonl").read_text() for workdir in (one, two)]
    assert texts[0] == texts[1] and len(texts[0].splitlines()) == 13


def test_a_signal_to_one_stops_both(folder, script_env):
    """A machine that is taken away tells its own process only; all must stop after the same step."""
    processes = start_two(folder, "stopped", script_env, ":long")
    for line in processes[0].stdout:
        if line.startswith("step 3/"):
            processes[1].send_signal(signal.SIGTERM)
            break
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [75, 75], outputs
    saved = int(state_of(folder / "stopped").step)
    assert saved < 100000
    assert all(f"Stopped and saved at step {saved}." in errors for _, errors in outputs)
    # Both leave out a damaged step, and go on from the same older one.
    checkpoints = folder / "stopped" / "checkpoints"
    (checkpoints / str(saved) / "state" / "_METADATA").write_text("{}")
    older = step_folders.steps(checkpoints)[-2]
    processes = start_two(folder, "stopped", script_env, ":long")
    said = []
    for line in processes[0].stdout:
        said.append(line)
        if "GFLOP a step" in line:
            processes[0].send_signal(signal.SIGTERM)
            break
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [75, 75], outputs
    assert f"{saved} is damaged (state/_METADATA has 2 bytes of " in "".join(said)
    assert f"resuming at step {older} " in "".join(said)
    assert (checkpoints / f"{saved}.aside").is_dir()
    assert int(state_of(folder / "stopped").step) > older


def test_steps_that_are_not_finite_are_left_out_on_both(folder, script_env):
    """Both stop at the same step, and the log has the examples of the whole batch."""
    processes = start_two(folder, "wild", script_env, ":wild")
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [1, 1], outputs
    assert all("at step 3, the last of 2 steps in a row that were left out" in said for _, said in outputs)
    entries = [json.loads(line) for line in (folder / "wild" / "skipped.jsonl").read_text().splitlines()]
    assert [(entry["step"], len(set(entry["examples"]))) for entry in entries] == [(2, 8), (3, 8)]


def test_flags_that_belong_together(folder, script_env):
    done = subprocess.run(
        [*command(folder, "lone"), "--coordinator", "127.0.0.1:1"],
        env=script_env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "error: --coordinator, --num_processes and --process_id belong together" in done.stderr
    assert not (folder / "lone").exists()
