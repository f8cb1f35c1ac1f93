"""scripts/compare.py: the table is what its runs logged; it resumes, names what fails, and mixes nothing."""

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

from mmgen_jax import compare, figures
from mmgen_jax.core import parallel
from mmgen_jax.core.lock import Lock, Locked
from mmgen_jax.experiment import WorkdirError

ROOT = Path(__file__).resolve().parents[1]

CONFIG = """
from ml_collections import ConfigDict
from mmgen_jax.core.config import parse_arg

BASELINES = {"image alone": "fusion=image", "concatenation": "fusion=concat"}

def get_config(arg=None):
    arg = parse_arg(arg, fusion="concat", steps=10, seconds=0.0, fold=0)
    return ConfigDict(dict(seed=0, steps=arg.steps, task=dict(fusion=arg.fusion, seconds=arg.seconds), checkpoint=dict(every=5),
                           evals=dict(test=dict(name="classification", fold=arg.fold))))
"""

# Trains nothing: the accuracy is a function of the config. It leaves what a run leaves, and counts how often it was started.
STUB = """
import json, os, signal, sys, time
from pathlib import Path
text, more = sys.argv[2], [flag[2:].split("=") for flag in sys.argv if flag.startswith("--config.")]
values = dict(fusion="concat", steps=10, seconds=0.0, seed=0, fold=0)
for name, value in [part.split("=") for part in text.partition(":")[2].split(",") if part] + more:
    name = name.removeprefix("config.")
    values[name] = value if name == "fusion" else type(values[name])(value)
fusion, seconds, seed = values["fusion"], values["seconds"], values["seed"]
workdir = Path(sys.argv[sys.argv.index("--workdir") + 1])
config = dict(seed=seed, steps=values["steps"], task=dict(fusion=fusion, seconds=seconds), checkpoint=dict(every=5),
              evals=dict(test=dict(name="classification", fold=values["fold"])))
(workdir / "config.json").write_text(json.dumps(config))
with (workdir / "starts").open("a") as log:
    print(*sys.argv[1:], file=log)
def stop(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("step 5/10 [/x]", flush=True)
if not (workdir / "slow").exists():
    (workdir / "slow").touch()
    time.sleep(seconds)
if fusion == "broken":
    print("error: no such fusion\\nTake another.")
    sys.exit(1)
if fusion == "killed":
    os.kill(os.getpid(), 9)
accuracy = {"image": 0.5, "concat": 0.7, "film": 0.8, "nan": None}[fusion]
accuracy = accuracy and accuracy + (0.0, 0.02, 0.1)[seed] + (0.01 * seed if fusion == "film" else 0)
rows = [{"step": 5, "test/accuracy": 0.1}, {"step": 10, "train/loss": 1.0}, {"step": 10, "test/accuracy": accuracy}]
(workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
facts = {"host": "here", "devices": "1 cpu", "versions": {"mmgen_jax": "0", "jax": "1", "python": "3"}}
lines = [{"began": 100.0, **facts}, {"time": 160.0, "step": 10, "seconds": {"step": 60}, "from": 0, "end": "finished"}]
(workdir / "time.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr(compare, "TRAIN", tmp_path / "stub.py")
    return str(tmp_path / "config.py")


def run(config, workdir, vary="fusion=concat,film", **more):
    """-> results, the printed lines of runs."""
    screen = Console(file=io.StringIO(), width=300)
    more = {"metrics": ["test/accuracy"], **more}
    results = compare.compare(config, vary, workdir, console=screen, **more)
    said = screen.file.getvalue()
    return results, said[: said.index("# ")].splitlines()


def starts(workdir):
    return {
        path.parent.relative_to(workdir).as_posix(): len(path.read_text().splitlines())
        for path in workdir.rglob("starts")
    }


def test_the_table(config, tmp_path):
    workdir = tmp_path / "new" / "runs"
    results, lines = run(config, workdir)
    first, second, third = results["rows"]
    names = [row["name"] for row in results["rows"]]
    assert names == ["image alone", "concatenation (fusion=concat)", "fusion=film"], (
        "the same config is one row"
    )
    assert [row["baseline"] for row in results["rows"]] == [True, True, False]
    values = np.array([0.8, 0.83, 0.92])
    score = third["scores"]["test/accuracy"]
    assert (score["n"], third["minutes"]) == (3, 1.0)
    assert score["mean"] == pytest.approx(values.mean())
    half = 4.302653 * values.std(ddof=1) / 3**0.5  # Student's t, two degrees of freedom
    assert score["interval"] == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-6)
    # Seeds take and give alike: the difference is known far better than either.
    assert score["difference"] == pytest.approx(0.31)
    assert score["difference_interval"] == pytest.approx(
        (0.31 - 4.302653 * 0.01 / 3**0.5, 0.31 + 4.302653 * 0.01 / 3**0.5)
    )
    assert second["scores"]["test/accuracy"]["difference_interval"] == pytest.approx((0.2, 0.2))
    assert first["scores"]["test/accuracy"]["difference"] is None
    # Every row's first seed, then the second.
    assert [line.split("  ")[1].split(":")[0] for line in lines[:4]] == [
        *(f"{name}, seed 0" for name in names),
        f"{names[0]}, seed 1",
    ]
    assert lines[5].startswith("6/9  fusion=film, seed 1: test/accuracy 0.83 (")
    assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))
    text = (workdir / "results.md").read_text()
    assert (
        f"--config {config} --vary fusion=concat,film --seeds 3 --metric test/accuracy --workdir {workdir}\n"
        in text
    )
    assert (
        "9 of 9 runs, seeds 0, 1, 2; " in text
        and "Trained on here, 1 cpu device(s), mmgen_jax 0, jax 1, python 3." in text
    )
    (line,) = [line for line in text.splitlines() if line.startswith("| fusion=film ")]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[1:7] == ["fusion=film", "0.85", "0.6949 .. 1.005", "3", "+0.31", "+0.2852 .. +0.3348"]
    assert (workdir / "concatenation" / "seed_2" / "log.txt").read_text() == "step 5/10 [/x]\n"
    with Image.open(workdir / "results.png") as image:
        assert image.format == "PNG" and image.width > 300


def test_it_goes_on_with_what_is_missing(config, tmp_path):
    """Finished runs count as they are, also where seeds and values are added."""
    run(config, tmp_path / "runs", vary="fusion=film", seeds=2)
    before = starts(tmp_path / "runs")
    assert len(before) == 6
    (tmp_path / "runs" / "fusion=film" / "seed_1" / "time.jsonl").unlink()
    results, lines = run(config, tmp_path / "runs", seeds=3)
    assert "(finished before)" in lines[0] and "(finished before)" not in lines[5]
    after = starts(tmp_path / "runs")
    again = {name for name in after if after[name] != before.get(name)}
    assert again == {"image_alone/seed_2", "concatenation/seed_2", "fusion=film/seed_1", "fusion=film/seed_2"}
    assert [len(row["runs"]) for row in results["rows"]] == [3, 3, 3]


def test_folds_count_with_the_seeds(config, tmp_path):
    for given in (config, f"{config}:steps=10"):
        runs = compare.plan(given, "fusion=film", tmp_path, over="fold")
        assert [(run.seed, run.config.seed, run.config.evals.test.fold) for run in runs] == [
            (k, k, k) for k in (0, 0, 0, 1, 1, 1, 2, 2, 2)
        ]
        assert runs[5].flags[1].endswith("fusion=film,fold=1") and runs[5].row == "fusion=film"
    results, _ = run(config, tmp_path, vary="fusion=concat", over="fold", seeds=2)
    assert "--seeds 2 --over fold --metric" in results["command"]
    with pytest.raises(ValueError, match="--vary and --over both say fold"):
        run(config, tmp_path, vary="fold=1", over="fold")
    with pytest.raises(ValueError, match=r'Unknown config argument "flod"'):
        run(config, tmp_path, over="flod")


def test_one_that_fails_is_named_and_the_others_go_on(config, tmp_path, script):
    workdir = tmp_path / "runs"
    code, out, _ = script("compare", "--config", config, "--vary", "fusion=broken,killed,nan,film", "--workdir", workdir,
                          "--seeds", 2, "--metric", "test/accuracy")  # fmt: skip
    assert code == 1
    assert "- FAILED: fusion=broken, seed 0: no such fusion (fusion=broken/seed_0/log.txt)" in out
    assert "![test/accuracy](results.png)" in out
    assert "3/12  fusion=broken, seed 0 FAILED: no such fusion" in out
    assert (
        "fusion=killed, seed 1: SIGKILL ended it" in out
        and "fusion=nan, seed 1: test/accuracy is not finite" in out
    )
    rows = {row["name"]: row for row in json.loads((workdir / "results.json").read_text())["rows"]}
    assert rows["fusion=broken"]["scores"]["test/accuracy"] == {
        "n": 0, "mean": None, "interval": None, "difference": None, "difference_interval": None
    }  # fmt: skip
    assert rows["fusion=film"]["scores"]["test/accuracy"]["n"] == 2
    assert "fusion=broken" in (workdir / "results.md").read_text()


def test_a_changed_config_is_refused(config, tmp_path):
    """Before anything is trained, and with both values."""
    run(config, tmp_path / "runs", seeds=2)
    before = starts(tmp_path / "runs")
    with pytest.raises(
        WorkdirError,
        match=r"image_alone/seed_0 was made by a different config:\n  steps: 10 -> 20\nOne table",
    ):
        run(config + ":steps=20", tmp_path / "runs", seeds=2)
    assert starts(tmp_path / "runs") == before
    results, _ = run(config, tmp_path / "others", seeds=2, changes=["--config.steps=20"])
    assert "--config.steps=20" in results["command"]
    assert json.loads((tmp_path / "others/image_alone/seed_1/config.json").read_text())["seed"] == 1


def test_mistakes_are_named(config, tmp_path):
    workdir = tmp_path / "runs"
    for more, message in (
        ({"vary": "fusoin=film"}, 'Unknown config argument "fusoin". Did you mean "fusion"?'),
        ({"vary": "fusion"}, r'--vary is NAME=VALUE,VALUE.*not "fusion"'),
        ({"vary": "fusion=film,"}, r"--vary is NAME=VALUE,VALUE"),
        ({"seeds": 1}, "at least 2 of them"),
        ({"changes": ["--config.seed=4"]}, "say with --seeds how many"),
        ({"changes": ["--config.stesp=4"]}, 'the config has no key "stesp"'),
        (
            {"metrics": ["tset/accuracy"]},
            'Unknown evaluation in --metric "tset/accuracy": "tset". Did you mean "test"?',
        ),
        (
            {"metrics": []},
            r"Say with --metric which score to compare, such as test/NAME\. Parts: test, train\.",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(config, workdir, **more)
    assert not workdir.exists()
    with pytest.raises(ValueError, match=r'metric "test/acuracy"\. Did you mean "test/accuracy"\?'):
        run(config, workdir, metrics=["test/acuracy"])
    assert len(starts(workdir)) == 1, "known as soon as the first run has ended"
    with pytest.raises(ValueError, match="No config file"):
        run(str(tmp_path / "cnofig.py"), workdir)
    shutil.copy(config, tmp_path / "alike.py")
    text = (tmp_path / "alike.py").read_text().replace('"concatenation"', '"image_alone"')
    (tmp_path / "alike.py").write_text(text)
    with pytest.raises(ValueError, match="would share a folder"):
        run(str(tmp_path / "alike.py"), workdir)


def test_two_in_one_workdir(config, tmp_path, monkeypatch):
    """The second is refused with the first's name, starts nothing and writes nothing; then the lock is gone."""
    workdir = tmp_path / "runs"
    monkeypatch.setattr(parallel, "from_first", None)  # JAX is not asked: the devices are the runs'
    with (
        Lock(workdir, alone=True),
        pytest.raises(Locked, match=f"{workdir} is in use by process {os.getpid()} "),
    ):
        run(config, workdir, seeds=2)
    assert not list(workdir.iterdir())
    run(config, workdir, seeds=2)
    assert not (workdir / "lock").exists() and set(starts(workdir).values()) == {1}


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_started_again(config, tmp_path, script_env, sent):
    """The run that is on saves first; then the same command does the rest."""
    (tmp_path / "compare.py").write_text(
        f"import runpy, signal\nfrom pathlib import Path\nfrom mmgen_jax import compare\n"
        # Tests that a shell runs in the background ignore it, and so would what they start.
        f"signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"compare.TRAIN = Path({str(compare.TRAIN)!r})\n"
        f"runpy.run_path({str(ROOT / 'scripts' / 'compare.py')!r}, run_name='__main__')\n"
    )
    workdir = tmp_path / "runs"
    command = [sys.executable, str(tmp_path / "compare.py"), "--config", f"{config}:seconds=600.0", "--vary", "fusion=film",
               "--seeds", "2", "--workdir", str(workdir), "--metric", "test/accuracy"]  # fmt: skip
    (workdir / "image_alone" / "seed_0").mkdir(parents=True)
    (workdir / "image_alone" / "seed_0" / "slow").touch()  # so that the first is quick
    with subprocess.Popen(
        command, env=script_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        log, until = workdir / "concatenation" / "seed_0" / "log.txt", time.monotonic() + 300
        while not (log.exists() and log.read_text()) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(sent)
        out, errors = process.communicate(timeout=300)
    assert process.returncode == 75, out + errors
    assert "Stopped in 2/6  concatenation, seed 0. All runs are kept" in errors
    assert log.read_text() == "step 5/10 [/x]\nsaved\n"
    assert len(json.loads((workdir / "results.json").read_text())["rows"][0]["runs"]) == 1
    for path in list(workdir.glob("*/seed_*")) + [
        workdir / name / f"seed_{n}"
        for name in ("image_alone", "concatenation", "fusion=film")
        for n in (0, 1)
    ]:
        path.mkdir(parents=True, exist_ok=True)
        (path / "slow").touch()
    done, lines = run(f"{config}:seconds=600.0", workdir, vary="fusion=film", seeds=2)
    assert [row["scores"]["test/accuracy"]["n"] for row in done["rows"]] == [2, 2, 2]
    assert "(finished before)" in lines[0] and "(finished before)" not in lines[1]
    assert starts(workdir)["concatenation/seed_0"] == 2


def test_real_runs(tmp_path, script, monkeypatch, script_env):
    """Two seeds of a real config through scripts/train.py; once more, and they count as they are."""
    for name, value in script_env.items():
        if name.startswith("JAX_") or name == "PYTHONPATH":
            monkeypatch.setenv(name, value)
    arguments = ("--config", ROOT / "configs/gan_gaussians.py:tiny", "--vary", "layout=ring", "--seeds", 2, "--workdir",
                 tmp_path, "--metric", "modes/high_quality", "train/loss")  # fmt: skip
    code, out, _ = script("compare", *arguments)
    assert code == 0, out
    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    values = [run["values"]["modes/high_quality"] for run in row["runs"]]
    for seed, value in enumerate(values):
        rows = [
            json.loads(line)
            for line in (tmp_path / f"layout=ring/seed_{seed}/metrics.jsonl").read_text().splitlines()
        ]
        assert value == [row["modes/high_quality"] for row in rows if "modes/high_quality" in row][-1]
    losses = [run["values"]["train/loss"] for run in row["runs"]]
    assert losses[0] != losses[1], "they differ in their seed"
    assert row["minutes"] > 0 and "1 cpu device(s), mmgen_jax" in out
    code, out, _ = script("compare", *arguments)
    assert code == 0 and out.count("(finished before)") == 2


def test_the_picture(tmp_path):
    """One panel a score; what no run has yet is left out."""
    row = {"name": "a $b$", "baseline": True, "values": [0.1, 0.2], "mean": 0.15, "interval": (0.0, 0.3)}
    empty = {"name": "c", "baseline": False, "values": [], "mean": None, "interval": None}
    sizes = []
    for count in (1, 2):
        panels = {f"test/{i}": [row, empty] for i in range(count)}
        with Image.open(figures.dots(tmp_path / "new" / "x.part", panels)) as image:
            assert image.format == "PNG"
            sizes.append(image.width)
    assert sizes[1] > sizes[0] + 200
    figures.dots(tmp_path / "x.png", {"test/x": [empty]})
