"""A run moves from two processes to one to four, and is the run that one process makes: state, losses, scores, quarantine."""

import io
import json
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_processes import ROOT, command, finish, rows, start, state_of

BROKEN = (3, 12, 17, 30)

CONFIG = """
import runpy
def get_config(arg=None):
    config = runpy.run_path({path!r})["get_config"]("tiny")
    del config.data.source
    config.data.source = dict(name="parquet", path={table!r}, split="train")
    text = "decode | text(12, per_image=1, which='first')"
    config.data.update(transforms=text, shuffle=True, max_broken=0.5)
    held = dict(name="parquet", path={table!r}, split="val")
    evals = dict(retrieval=dict(name="retrieval", source=held, transforms=text, batch_size=8))
    config.evals = evals if arg == "7" else {{}}
    config.task.model = dict(embed_dim=16, image=dict(name="convnet", widths=(8, 16), blocks=1, pool="mean"),
        text=dict(name="text_transformer", width=16, depth=1, heads=2, causal=False, pool="mean", max_len=12))
    config.optimizer = dict(name="sgd", learning_rate=0.02, schedule="constant")
    config.steps, config.log_every, config.checkpoint.every = int(arg), 1, 100
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 images to train on, of which four cannot be read, and 11 to score, of which one cannot."""
    folder, rng = tmp_path_factory.mktemp("moving"), np.random.default_rng(0)
    images, captions = [], []
    for row in range(51):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(buffer, "PNG")
        images.append(b"" if row in (*BROKEN, 45) else buffer.getvalue())
        captions.append(" ".join(rng.choice(["red", "blue", "big", "small", "star", "cross"], 4)))
    split = ["train"] * 40 + ["val"] * 11
    table = {"image": images, "captions": captions, "split": split}
    pq.write_table(pa.table(table), folder / "x.parquet")
    path = str(ROOT / "configs" / "dual_encoder_scenes.py")
    (folder / "config.py").write_text(CONFIG.format(path=path, table=str(folder / "x.parquet")))
    return folder


def alone(folder, name, env, *more):
    done = subprocess.run(command(folder, name, *more), env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr


def quarantined(workdir, source):
    """The numbers of the broken examples of a source, over the files of all processes."""
    texts = [path.read_text() for path in workdir.glob("quarantine*.jsonl")]
    found = [json.loads(line) for text in texts for line in text.splitlines()]
    return {entry["index"] for entry in found if entry["source"] == source}


def test_two_one_four(folder, script_env, same):
    alone(folder, "straight", script_env, ":7")
    for count, steps in ((2, 2), (1, 4), (4, 7)):
        more = f":{steps}", "--override"
        if count == 1:
            alone(folder, "moved", script_env, *more)
            continue
        processes = start(count, folder, "moved", script_env, *more)
        outputs = finish(processes)
        assert [process.returncode for process in processes] == [0] * count, outputs
        assert (f"resuming at step {steps - 3} " in outputs[0][0]) == (count == 4)
        assert all("step" not in out for out, _ in outputs[1:]), "only the first process writes"
    straight, moved = folder / "straight", folder / "moved"
    same(state_of(moved), state_of(straight), rtol=1e-5, atol=1e-5)
    values = [{(row["step"], k): v for row in rows(d) for k, v in row.items()} for d in (straight, moved)]
    for step in range(1, 8):
        for name in ("train/loss", "train/grad_norm"):
            np.testing.assert_allclose(values[1][step, name], values[0][step, name], rtol=1e-5)
    scores = [key for key in values[0] if key[0] == 7 and key[1].startswith("retrieval/")]
    assert len(scores) > 8
    for key in scores:
        np.testing.assert_allclose(values[1][key], values[0][key], rtol=1e-5, err_msg=key[1])
    # Seven batches of eight are more than an epoch, so that all were seen.
    for workdir in (straight, moved):
        assert quarantined(workdir, "train") == set(BROKEN)
        assert quarantined(workdir, "val") == {5}
    assert len(list(moved.glob("quarantine*.jsonl"))) > 1
