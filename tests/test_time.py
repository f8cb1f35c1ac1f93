"""What a run does with its time: accounted for to the second, compiled once, profiled and drawn as it goes."""

import gzip
import io
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from mmgen_jax import figures
from mmgen_jax.core import goodput
from mmgen_jax.core.profile import parse
from mmgen_jax.train import train

ROOT = Path(__file__).resolve().parents[1]

# Two checkpoints; without evaluations, which take most of a tiny run's time.
CONFIG = """
import runpy
def get_config(arg=None):
    config = runpy.run_path({path!r})["get_config"]("tiny")
    config.evals, config.steps, config.log_every, config.checkpoint.every = {{}}, 4, 1, 2
    config.data.tokenizer.examples = 50
    return config
"""


@pytest.fixture(scope="module")
def restarted(tmp_path_factory, script_env):
    """(workdir, outputs, wall seconds) of scripts/train.py, and once more from its first checkpoint."""
    folder = tmp_path_factory.mktemp("time")
    (folder / "config.py").write_text(CONFIG.format(path=str(ROOT / "configs" / "captioner_scenes.py")))
    # As a user has it: with no cache but the workdir's, and optimized.
    given = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT", "JAX_DISABLE_MOST")
    env = {key: value for key, value in script_env.items() if not key.startswith(given)}
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(folder / "config.py")]
    command += ["--workdir", str(folder / "run")]
    outputs, walls = [], []
    for more in (["--profile", "3:4"], []):
        begin = time.time()
        done = subprocess.run([*command, *more], env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        walls.append(time.time() - begin)
        outputs.append(done.stdout)
        # As after a kill behind the first checkpoint.
        if more:
            shutil.rmtree(folder / "run" / "checkpoints" / "4")
    return folder / "run", outputs, walls


def test_a_restart_reads_what_the_first_start_compiled(restarted):
    """docs/time.md has the times of the quickstart; here other tests share the machine, so the bound on the whole is wide."""
    workdir, outputs, _ = restarted
    assert "resuming at step 2" in outputs[1]
    first, again = goodput.read(workdir / goodput.FILE)
    assert again.seconds["compile"] < 0.5 * first.seconds["compile"]
    assert again.ready < 0.75 * first.ready
    assert list((workdir / "compilation_cache").rglob("jit_*"))


def test_every_second_is_accounted_for(restarted):
    """The kinds' sum is the wall time, but for what the interpreter takes to go away."""
    workdir, _, walls = restarted
    starts = goodput.read(workdir / goodput.FILE)
    for start, wall in zip(starts, walls, strict=True):
        ran = start.ended - start.began
        assert sum(start.seconds.values()) - start.seconds["away"] == pytest.approx(ran, abs=0.1)
        assert wall - 2.0 - 0.2 * wall < ran < wall + 0.1
        assert start.end == "finished" and start.facts["versions"]["jax"]
    whole = starts[-1].ended - starts[0].began
    assert sum(goodput.totals(starts).values()) == pytest.approx(whole, abs=0.2)
    assert (starts[0].step, starts[0].last, starts[1].step, starts[1].last) == (0, 4, 2, 4)
    assert starts[0].seconds["lost"] > 0 and starts[1].seconds["lost"] == 0
    assert all(starts[1].seconds[kind] > 0 for kind in ("start", "compile", "step", "save", "report"))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["train/goodput"] < 1 for row in rows)


def test_curves_are_drawn(restarted):
    with Image.open(restarted[0] / "figures" / "curves.png") as picture:
        assert min(picture.size) > 100


def test_a_profile_of_chosen_steps(restarted):
    """In the form that Perfetto reads: trace events in JSON, with the two steps and nothing of the others."""
    workdir, outputs, _ = restarted
    (path,) = (workdir / "profile").rglob("perfetto_trace.json.gz")
    assert f"profile of steps 3 to 4: {path}" in outputs[0]
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = {event["args"]["step_num"] for event in events if event.get("name") == "train"}
    assert steps == {"3", "4"}
    assert all({"ph", "pid"} <= event.keys() for event in events if event)


def test_a_profile_that_cannot_be(load_config, tmp_path):
    for text in ("10", "5:4", "0:3", "a:b"):
        with pytest.raises(ValueError, match=rf'--profile {text}: .* "10:15"'):
            parse(text)
    assert parse("3:3") == (3, 3) and parse(None) is None
    with pytest.raises(ValueError, match="--profile 8:9: the run ends at step 8"):
        train(load_config(), tmp_path, console=Console(file=io.StringIO()), profile=(8, 9))


def test_curves_that_cannot_be_drawn_end_no_run(load_config, tmp_path, monkeypatch):
    """And a profile of steps that were done before is told, and not waited for."""

    def broken(*args):
        raise RuntimeError("no letters")

    monkeypatch.setattr(figures, "curves", broken)
    config = load_config(steps=2, log_every=1, checkpoint={"every": 1})
    for expected in (
        "the curves could not be drawn: no letters",
        "no profile: this start made none of the steps 1 to 2",
    ):
        screen = io.StringIO()
        train(
            config, tmp_path, console=Console(file=screen), profile=(1, 2) if "profile" in expected else None
        )
        assert expected in re.sub(r"\s+", " ", screen.getvalue())
