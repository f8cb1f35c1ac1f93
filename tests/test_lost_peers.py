"""A process that dies or fails alone ends the others too, within a stated time and with a message; never a hang."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_processes import ROOT, finish, start_two

from mmgen_jax import peers

# A classifier that compiles fast; rows of a batch of 8: the first four are process 0's.
CONFIG = """
import runpy
def get_config(arg=None):
    config = runpy.run_path({path!r})["get_config"]("tiny")
    config.task.model.tower.update(widths=(4,), blocks=1, pool="mean")
    config.evals, config.steps, config.log_every = {{}}, 100000, 1
    config.checkpoint.every = 100000
    if arg == "broken":
        del config.data.source
        config.data.source = dict(name="parquet", path={table!r}, captions="name", label="name")
        config.data.update(transforms="decode()|resize(32)|array", max_broken=0.4)
        config.task.model.update(labels=1, classes=2)
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lost")
    path = str(ROOT / "configs" / "classifier_scenes.py")
    (folder / "config.py").write_text(CONFIG.format(path=path, table=str(folder / "x.parquet")))
    return folder


def until_step(process, step):
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("dead", [0, 1])
def test_a_killed_process_ends_the_other(folder, script_env, dead):
    """Also process 0, with which JAX loses what it knows of the run."""
    processes = start_two(folder, f"killed_{dead}", script_env)
    until_step(processes[0], 3)
    processes[dead].kill()
    begin = time.monotonic()
    outputs = finish(processes)
    assert time.monotonic() - begin < 45
    assert processes[1 - dead].returncode == peers.STATUS, outputs
    assert "error: Another process of this run died or cannot be reached" in outputs[1 - dead][1]


def test_too_many_broken_examples_of_one_end_both(folder, script_env):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(buffer, "PNG")
    images = [b"" if row % 8 >= 4 else buffer.getvalue() for row in range(16)]
    pq.write_table(pa.table({"image": images, "name": ["a", "b"] * 8}), folder / "x.parquet")
    processes = start_two(folder, "broken", script_env, ":broken")
    processes[1].wait(timeout=500)
    begin = time.monotonic()
    outputs = finish(processes)
    assert time.monotonic() - begin < 30
    assert [process.returncode for process in processes] == [1, 1], outputs
    message = "8 of 16 examples of 'train' are broken"
    assert f"error: {message}" in outputs[1][1]
    assert f"error: This process ends because process 1 did: {message}" in outputs[0][1]
    assert not (folder / "broken" / "quarantine.jsonl").exists()
    broken = (folder / "broken" / "quarantine.1.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["index"] for line in broken) == [4, 5, 6, 7, 12, 13, 14, 15]


SUPERVISED = """
import os, signal, sys, time
from mmgen_jax import peers
peers.supervise()
print(os.getpid(), flush=True)
{then}
"""


def supervised(then):
    code = SUPERVISED.format(then=then)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes)


def test_what_the_first_process_says_of_its_child():
    """All started together: most of their time is importing."""
    ends = {
        "sys.exit(75)": (75, ""),
        "os.abort()": (69, "error: Another process of this run died"),
        "os.kill(os.getpid(), 9)": (137, "error: This process was ended by SIGKILL: did the memory run out?"),
        "signal.signal(15, lambda *_: sys.exit(7)); print('ready', flush=True); time.sleep(60)": (7, ""),
        "time.sleep(60)": (-9, ""),
    }
    processes = [supervised(then) for then in ends]
    try:
        assert len(processes[3].stdout.readline()) > 1 and processes[3].stdout.readline() == "ready\n"
        processes[3].terminate()
        child = int(processes[4].stdout.readline())
        processes[4].kill()
        for process, (status, message) in zip(processes, ends.values(), strict=True):
            _, said = process.communicate(timeout=60)
            assert (process.returncode, message in said) == (status, True), said
        deadline = time.monotonic() + 10
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.kill(child, 0)
                time.sleep(0.05)
            os.kill(child, signal.SIGKILL)
            raise AssertionError("the child outlived its parent")
    finally:
        for process in processes:
            process.kill()
