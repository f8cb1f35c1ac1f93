"""Writers: JSON lines that survive a kill, TensorBoard, Weights & Biases, the bar's lines."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mmgen_jax.core import writer
from mmgen_jax.core.writer import Writers


def console():
    return Console(file=io.StringIO(), width=200)


def write(workdir, names=("jsonl",), start=0, steps=(1, 2), screen=None):
    with Writers(workdir, names, 10, start, screen or console()) as writers:
        for step in steps:
            writers.progress(step)
            writers.scalars(step, {"train/loss": 2.0 / step, "train/examples_per_s": 100.0})


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_json_lines(tmp_path):
    write(tmp_path)
    write(tmp_path, start=2, steps=(3,))
    assert [(row["step"], row["train/loss"]) for row in lines(tmp_path)] == [(1, 2.0), (2, 1.0), (3, 2.0 / 3)]
    assert all(row["time"] > 1e9 for row in lines(tmp_path))


def test_numbers_that_json_has_not(tmp_path):
    values = {"a": float("nan"), "b": float("inf"), "c": 1.5, "d": 3}
    with Writers(tmp_path, ("jsonl",), 10, 0, console()) as writers:
        writers.scalars(1, values)
    (row,) = lines(tmp_path)
    assert (row["a"], row["b"], row["c"], row["d"]) == (None, None, 1.5, 3)


def test_a_line_cut_by_a_kill_is_dropped(tmp_path):
    write(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "train/lo')
    write(tmp_path, start=2, steps=(3,))
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3]


def test_steps_after_the_checkpoint_are_written_once(tmp_path):
    write(tmp_path, steps=(1, 2, 3, 4))
    write(tmp_path, start=2, steps=(3, 4))
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4]
    before = (tmp_path / "metrics.jsonl").read_bytes()
    write(tmp_path, start=4, steps=())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_that_is_evaluated_again_writes_its_numbers_once(tmp_path):
    for number in (0.5, 0.5, 0.25):
        with Writers(tmp_path, ("jsonl",), 10, 4, console()) as writers:
            writers.scalars(4, {"test/score": number})
    assert [row["test/score"] for row in lines(tmp_path)] == [0.5, 0.25]


def test_every_line_is_on_disk_at_once(tmp_path):
    with Writers(tmp_path, ("jsonl",), 10, 0, console()) as writers:
        writers.scalars(1, {"a": 1.0})
        assert len(lines(tmp_path)) == 1


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(writer.jax, "process_index", lambda: 1)
    write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_line_a_report_without_a_terminal(tmp_path):
    screen = console()
    write(tmp_path, screen=screen)
    said = screen.file.getvalue().splitlines()
    assert said[0].startswith("step 1/10  loss 2.000  100 examples/s  ")
    assert said[0].endswith(" s left") and len(said) == 2


def test_a_bar_on_a_terminal(tmp_path):
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    write(tmp_path, screen=screen)
    assert "2/10" in screen.file.getvalue() and "loss 1.000" in screen.file.getvalue()


def test_unknown_writer(tmp_path):
    with pytest.raises(ValueError, match=r'Unknown writer "tensorbord"\. Did you mean "tensorboard"'):
        write(tmp_path, names=("tensorbord",))


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_writer_that_is_not_installed(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=rf'pip install "mmgen_jax\[{name}\]"'):
        write(tmp_path, names=(name,))


def picture(workdir):
    path = workdir / "picture.png"
    Image.fromarray(np.full((4, 5, 3), 200, np.uint8)).save(path)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra [tensorboard] is not installed")
    with Writers(tmp_path, ("tensorboard",), 10, 2, console()) as writers:
        writers.scalars(3, {"val/loss": 0.5})
        writers.picture(3, "val/figure", picture(tmp_path))
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"val/loss" in file.read_bytes() and b"val/figure" in file.read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for start in (0, 2):
        write(tmp_path, names=("wandb",), start=start, steps=(start + 1,))
    assert (tmp_path / "wandb_id").read_text()


def test_a_full_disk_costs_no_row(tmp_path):
    """The rows wait, and are written once there is room, each whole and once; the run is told, and goes on."""

    class Full:
        """A disk with room for 30 bytes, until more is made."""

        def __init__(self, file):
            self.file, self.room = file, 30

        def write(self, data):
            if not self.room:
                raise OSError(28, "No space left on device")
            taken = self.file.write(data[: self.room])
            self.room -= taken
            return taken

        def close(self):
            self.file.close()

    screen = console()
    with Writers(tmp_path, ("jsonl",), 10, 0, screen) as writers:
        first = writers._writers[0]
        first._lines._file = full = Full(first._lines._file)
        for step in (1, 2, 3):
            writers.scalars(step, {"a": 0.5})
        full.room = 10**6
        writers.scalars(4, {"a": 0.5})
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4]
    said = screen.file.getvalue()
    assert said.count("JsonLines cannot write (No space left on device); training goes on.") == 1
    assert said.count("JsonLines writes again.") == 1
