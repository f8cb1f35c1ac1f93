"""Every second of a run has one kind, over all its starts; what a restart does again is lost."""

import json
import os
import time

import pytest

from mmgen_jax.core import goodput
from mmgen_jax.core.goodput import KINDS, Ledger


@pytest.fixture
def clock(monkeypatch):
    """clock(3.0) lets three seconds pass."""
    now = [1000.0]
    monkeypatch.setattr(goodput.time, "time", lambda: now[0])
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0] - 900)

    def passes(seconds):
        now[0] += seconds

    return passes


def one_start(path, clock, step, steps, *, save_at=()):
    """A start that takes 5 s to begin and 3 to compile; a step waits 1 s for data and takes 2, a checkpoint 4."""
    began = time.time()
    clock(5)
    ledger = Ledger(path, step, began)
    with ledger.phase("compile"):
        clock(3)
    ledger.write()
    ledger.switch("step")
    for n in range(step + 1, step + steps + 1):
        ledger.at(n)
        clock(2)
        with ledger.phase("data"):
            clock(1)
        if n in save_at:
            with ledger.phase("save"):
                clock(4)
            ledger.write()
    return ledger


def test_a_run_without_a_restart(tmp_path, clock):
    path = tmp_path / "time.jsonl"
    ledger = one_start(path, clock, 0, 10, save_at=(5, 10))
    with ledger.phase("evaluation"):
        clock(7)
        with ledger.phase("report"):
            clock(1)
    ledger.close()
    (start,) = goodput.read(path)
    assert (start.began, start.step, start.last) == (1000, 0, 10)
    spent = dict(start=5, compile=3, step=20, data=10, save=8, evaluation=7, report=1, lost=0, away=0)
    assert start.seconds == pytest.approx(spent)
    assert ledger.goodput() == pytest.approx(20 / 54)
    assert start.ended - start.began == pytest.approx(sum(spent.values()))


def test_a_killed_run_and_its_restart(tmp_path, clock):
    """Killed in step 8, after the checkpoint of step 5; ten seconds later it goes on and loses three steps."""
    path = tmp_path / "time.jsonl"
    one_start(path, clock, 0, 5, save_at=(5,))
    ledger = one_start(path, clock, 5, 3)  # the same, as if step 6 to 8 were made by a first restart
    ledger.write()
    clock(2)  # and these nobody wrote
    clock(10)
    last = one_start(path, clock, 5, 5, save_at=(10,))
    last.close()
    starts = goodput.read(path)
    assert [(start.step, start.last) for start in starts] == [(0, 5), (5, 8), (5, 10)]
    assert [start.seconds["lost"] for start in starts] == [0, 9, 0]
    assert [start.seconds["away"] for start in starts] == [0, 12, 0]
    assert starts[1].seconds["start"] == 5 and starts[1].seconds["compile"] == 3
    seconds = goodput.totals(starts)
    assert seconds["step"] == 20 and set(seconds) == set(KINDS)
    assert sum(seconds.values()) == pytest.approx(time.time() - 1000)
    assert last.goodput() == pytest.approx(20 / (sum(seconds.values()) - 12))


def test_half_a_line(tmp_path, clock):
    """A kill in the middle of a line costs that line and no other."""
    path = tmp_path / "time.jsonl"
    one_start(path, clock, 0, 5, save_at=(5,))
    with path.open("a") as file:
        file.write('{"time": 10')
    one_start(path, clock, 5, 1).close()
    assert [start.step for start in goodput.read(path)] == [0, 5]
    assert path.read_text().count('"began"') == 2 and '\n{"time": 10\n' in path.read_text()


def test_a_line_every_ten_seconds(tmp_path, clock):
    """So that what a kill leaves unaccounted is short, however seldom the run reports."""
    path = tmp_path / "time.jsonl"
    one_start(path, clock, 0, 20)
    times = [json.loads(line).get("time", 0) for line in path.read_text().splitlines()]
    assert time.time() - times[-1] <= 13 and len(times) < 10


def test_a_full_disk_does_not_end_the_run(tmp_path, clock):
    ledger = one_start(tmp_path / "time.jsonl", clock, 0, 1)
    ledger._path = tmp_path  # a folder cannot be written to
    ledger.write()
    ledger._path = tmp_path / "time.jsonl"
    ledger.close()
    assert sum(goodput.totals(goodput.read(tmp_path / "time.jsonl")).values()) == pytest.approx(11)


def test_a_clock_that_went_back(tmp_path, clock):
    path = tmp_path / "time.jsonl"
    one_start(path, clock, 0, 1).close()
    clock(-500)
    one_start(path, clock, 0, 1).close()
    assert all(value >= 0 for start in goodput.read(path) for value in start.seconds.values())


def test_other_processes_write_nothing(tmp_path, clock):
    ledger = one_start(None, clock, 0, 2)
    assert ledger.spent()["step"] == 4 and ledger.goodput() > 0
    assert not list(tmp_path.iterdir())


def test_when_the_process_began():
    """The imports of this test took some of it."""
    age = time.time() - goodput.process_began()
    assert 0 < age < 86400
    if os.path.exists("/proc/self/stat"):
        assert age > time.process_time() / os.cpu_count() / 2


def test_no_file_says_what_makes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"time\.jsonl.*scripts/train\.py"):
        goodput.read(tmp_path / "time.jsonl")
