"""scripts/train.py's tables and pictures, scripts/evaluate.py on the tiny run, readable errors."""

import json
import shutil

import pytest
from PIL import Image

from mmgen_jax.scores import captions as scores


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_training_prints_tables_and_next_commands(tiny_run):
    workdir, printed = tiny_run
    for word in ("bleu1", "bleu4", "rouge_l", "cider", "truth", "95 % interval", "floor", "ceiling", "gap"):
        assert word in printed
    assert "captions|tok:ptb|step:8|beam:5|" in printed
    tail = printed[printed.index("Next:") :]
    for command in ("scripts/caption.py", "scripts/evaluate.py"):
        assert f"python {command} --workdir {workdir}" in tail
    assert "step 8/8" in printed


def test_training_leaves_the_run(tiny_run):
    workdir, _ = tiny_run
    assert {path.name for path in workdir.iterdir()} >= {
        "config.json", "metrics.jsonl", "tokenizer.json", "checkpoints", "figures", "predictions",
    }  # fmt: skip
    names = {name for line in metrics(workdir) for name in line}
    assert {
        "step",
        "time",
        "train/loss",
        "train/grad_norm",
        "train/learning_rate",
        "train/examples_per_s",
    } <= names
    assert {"train/step_time", "train/data_wait", "val/bleu4", "test/truth", "test_likelihood/gap"} <= names
    # During training and at its end.
    assert {path.name for path in (workdir / "figures").glob("val*")} == {"val_000004.png", "val_000008.png"}
    for path in (workdir / "figures").iterdir():
        with Image.open(path) as image:
            # Eight rows of a picture and its maps.
            assert image.height > 8 * 100
            assert 300 < image.width < 4000


def test_predictions_give_the_printed_scores(tiny_run):
    workdir, _ = tiny_run
    last = {name: value for line in metrics(workdir) for name, value in line.items()}
    for name in ("val", "test", "unseen"):
        path = workdir / "predictions" / f"{name}_000008.jsonl"
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert [record["index"] for record in records] == list(range(16))
        expected = scores.score([r["references"] for r in records], [r["caption"] for r in records])
        for score, value in expected.items():
            assert last[f"{name}/{score}"] == pytest.approx(value, abs=1e-12)
        assert last[f"{name}/truth"] == sum(record["true"] for record in records) / 16


def test_all_evaluations_again(script, tiny_run, tmp_path):
    """On eight devices where one trained: the same numbers."""
    workdir, out = tmp_path / "run", tmp_path / "new" / "table.json"
    shutil.copytree(tiny_run[0], workdir)
    status, printed, _ = script(
        "evaluate", "--workdir", workdir, "--evals", "test", "test_likelihood", "--out", out
    )
    assert status == 0
    tables = json.loads(out.read_text())
    assert set(tables) == {"test", "test_likelihood"}
    last = {name: value for line in metrics(workdir) for name, value in line.items()}
    assert tables["test_likelihood"]["gap"]["value"] == pytest.approx(last["test_likelihood/gap"], rel=1e-4)
    row = tables["test"]["cider"]
    assert row["value"] == pytest.approx(100 * last["test/cider"], rel=1e-4)
    assert row["interval"][0] <= row["value"] <= row["interval"][1]
    assert row["floor"] < row["ceiling"]
    assert tables["test"]["truth"]["ceiling"] == 100
    assert tables["test"]["signature"] in printed
    assert "n:16" in tables["test"]["signature"]
    # Reading a finished run adds nothing to its history.
    assert {name: value for line in metrics(workdir) for name, value in line.items()} == last


def test_split_and_beam(script, tiny_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run[0], workdir)
    out = tmp_path / "table.json"
    options = ("--split", "compositional", "--beam", 2, "--length-penalty", 0.7, "--out", out)
    status, printed, _ = script("evaluate", "--workdir", workdir, *options)
    assert status == 0
    tables = json.loads(out.read_text())
    # One of each kind, whatever split it had.
    assert set(tables) == {"test", "test_likelihood"}
    assert "test (compositional)" in printed
    assert "beam:2" in tables["test"]["signature"]
    assert "split:compositional" in tables["test"]["signature"]
    assert (workdir / "predictions" / "test_compositional_000008.jsonl").exists()
    assert json.loads((workdir / "config.json").read_text())["task"]["decode"]["beam"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--evals", "tset"], 'Unknown evaluation "tset". Did you mean "test"?'),
        (["--split", "tes"], '"test"'),
        (["--step", "7"], "No checkpoint 7 under"),
        (["--beam", "0"], "beam=0"),
        (["--out", "{workdir}/config.json/x.json"], "Cannot write --out"),
    ],
)
def test_errors_are_one_line(script, tiny_run, arguments, message):
    workdir, _ = tiny_run
    arguments = [argument.format(workdir=workdir) for argument in arguments]
    status, _, err = script("evaluate", "--workdir", workdir, *arguments)
    assert status == 1
    assert err.startswith("\nerror: ")
    assert message in err


def test_no_run(script, tmp_path):
    status, _, err = script("evaluate", "--workdir", tmp_path)
    assert status == 1
    assert f"error: No {tmp_path}/config.json" in err


def test_a_cut_config(script, tiny_run, tmp_path):
    (tmp_path / "config.json").write_text((tiny_run[0] / "config.json").read_text()[:100])
    status, _, err = script("evaluate", "--workdir", tmp_path)
    assert status == 1
    assert "config.json is not whole JSON" in err


def test_another_vocabulary(script, tiny_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run[0], workdir)
    path = workdir / "tokenizer.json"
    content = json.loads(path.read_text())
    content["words"] = [*content["words"], "zebra"]
    path.write_text(json.dumps(content))
    status, _, err = script("evaluate", "--workdir", workdir)
    assert status == 1
    assert "another tokenizer" in err
