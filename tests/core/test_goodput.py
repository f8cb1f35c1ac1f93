"""Every second of a run has one kind, over all its starts; what a restart or a rollback does again is lost."""

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


@pytest.fixture
def steps(clock):
    """A step waits 1 s for data and takes 2, a checkpoint 4."""

    def run(ledger, first, last, *, save_at=()):
        for n in range(first, last + 1):
            ledger.at(n)
            clock(2)
            with ledger.phase("data"):
                clock(1)
            if n in save_at:
                with ledger.phase("save"):
                    clock(4)
                    ledger.write()

    return run


@pytest.fixture
def one_start(clock, steps):
    """A start that takes 5 s to begin and 3 to compile; as it is not left, it is one that was killed."""
    ledgers = []

    def run(path, step, last, *, save_at=()):
        began = time.time()
        clock(5)
        ledger = Ledger(path, began, {"host": "here"})
        ledgers.append(ledger)
        ledger.set_out(step)
        with ledger.phase("compile"):
            clock(3)
        steps(ledger, step + 1, last, save_at=save_at)
        return ledger

    yield run
    for ledger in ledgers:
        if ledger._lines:
            ledger._lines._file.close()


def finish(ledger):
    with ledger:
        pass


def test_a_run_without_a_restart(tmp_path, clock, one_start):
    path = tmp_path / "time.jsonl"
    ledger = one_start(path, 0, 10, save_at=(5, 10))
    with ledger.phase("evaluation"):
        clock(7)
        with ledger.phase("report"):
            clock(1)
    finish(ledger)
    (start,) = goodput.read(path)
    assert (start.began, start.step, start.last, start.ready) == (1000, 0, 10, 8)
    assert (start.end, start.facts) == ("finished", {"host": "here"})
    spent = dict.fromkeys(KINDS, 0) | dict(
        start=5, compile=3, step=20, data=10, save=8, evaluation=7, report=1
    )
    assert start.seconds == pytest.approx(spent)
    assert ledger.goodput() == pytest.approx(20 / 54)
    assert start.ended - start.began == pytest.approx(sum(spent.values()))


def test_a_killed_run_and_its_restart(tmp_path, clock, one_start):
    """Killed in step 8, after the checkpoint of step 5; ten seconds later it goes on and loses three steps."""
    path = tmp_path / "time.jsonl"
    one_start(path, 0, 5, save_at=(5,))
    ledger = one_start(path, 5, 8)
    ledger.write()
    clock(2)  # and these nobody wrote
    clock(10)
    last = one_start(path, 5, 10, save_at=(10,))
    finish(last)
    starts = goodput.read(path)
    assert [(start.step, start.last, start.end) for start in starts] == [
        (0, 5, ""),
        (5, 8, ""),
        (5, 10, "finished"),
    ]
    assert [start.seconds["lost"] for start in starts] == [0, 9, 0]
    assert [start.seconds["away"] for start in starts] == [0, 12, 0]
    assert starts[1].seconds["start"] == 5 and starts[1].seconds["compile"] == 3
    seconds = goodput.totals(starts)
    assert seconds["step"] == 20 and set(seconds) == set(KINDS)
    assert sum(seconds.values()) == pytest.approx(time.time() - 1000)
    assert last.goodput() == pytest.approx(20 / (sum(seconds.values()) - 12))


def test_a_rollback_and_a_restart_from_before_it(tmp_path, clock, one_start, steps):
    """Steps 6 to 8 were bad: back to 5, and on to 9; after a kill it goes on from 3, where an older checkpoint is."""
    path = tmp_path / "time.jsonl"
    ledger = one_start(path, 0, 8, save_at=(3, 5))
    clock(6)  # going back, with the last good state
    ledger.set_out(5)
    steps(ledger, 6, 9)
    ledger.write()
    (start,) = goodput.read(path)
    assert (start.step, start.last, start.ready) == (0, 9, 8)
    assert start.seconds["rolled_back"] == 3 * 3 + 6 and start.seconds["lost"] == 0
    assert start.seconds["step"] == 2 * 9 and start.seconds["save"] == 8
    assert ledger.goodput() == pytest.approx(18 / (time.time() - 1000))
    finish(one_start(path, 3, 4))
    first, again = goodput.read(path)
    # What the rollback undid is lost once, and not twice; the rest behind step 3 is lost to the restart.
    assert first.seconds["rolled_back"] == 15 and first.seconds["step"] == 6
    assert first.seconds["lost"] == pytest.approx(2 * 3 + 4 + 4 * 3)
    assert again.seconds["step"] == 2
    assert sum(goodput.totals([first, again]).values()) == pytest.approx(time.time() - 1000)


def test_a_process_that_gets_nowhere(tmp_path, clock, one_start):
    """What ends before it knows where to go on undoes nothing, and its time counts too."""
    path = tmp_path / "time.jsonl"
    one_start(path, 0, 5, save_at=(5,)).write()
    began = time.time()
    with pytest.raises(ValueError), Ledger(path, began):
        clock(4)
        raise ValueError("no\ngood")
    first, second = goodput.read(path)
    assert first.seconds["lost"] == 0 and second.seconds["start"] == 4
    assert (second.step, second.last, second.ready, second.end) == (None, None, None, "ValueError: no")


def test_an_error_leaves_the_right_kind(tmp_path, clock, one_start):
    ledger = one_start(None, 0, 1)
    with pytest.raises(KeyboardInterrupt), ledger.phase("data"):
        raise KeyboardInterrupt
    before = ledger.spent()["step"]
    clock(3)
    assert ledger.spent()["step"] == before + 3


def test_half_a_line(tmp_path, clock, one_start):
    """A kill in the middle of a line costs that line and no other."""
    path = tmp_path / "time.jsonl"
    one_start(path, 0, 5, save_at=(5,))
    with path.open("a") as file:
        file.write('{"time": 10')
    finish(one_start(path, 5, 6))
    assert [start.step for start in goodput.read(path)] == [0, 5]
    assert path.read_text().count('"began"') == 2 and '\n{"time": 10\n' in path.read_text()


def test_a_line_now_and_then_whatever_the_run_does(tmp_path, monkeypatch):
    """So that what a kill leaves unaccounted is short, also in a long evaluation."""
    monkeypatch.setattr(goodput, "WRITE_EVERY", 0.01)
    path = tmp_path / "time.jsonl"
    with Ledger(path, time.time()) as ledger, ledger.phase("evaluation"):
        limit = time.time() + 20
        while len(path.read_text().splitlines()) < 4 and time.time() < limit:
            time.sleep(0.01)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all("evaluation" in row["seconds"] for row in rows[2:4])


def test_a_full_disk_does_not_end_the_run(tmp_path, clock, one_start):
    path = tmp_path / "time.jsonl"
    ledger = one_start(path, 0, 1)
    clock(2)
    whole = ledger._lines._file
    with open("/dev/full", "ab", buffering=0) as ledger._lines._file:
        ledger.write()
    ledger._lines._file = whole
    finish(ledger)
    assert whole.closed and sum(goodput.totals(goodput.read(path)).values()) == pytest.approx(13)


def test_a_clock_that_went_back(tmp_path, clock, one_start):
    path = tmp_path / "time.jsonl"
    finish(one_start(path, 0, 1))
    clock(-500)
    finish(one_start(path, 0, 1))
    assert all(value >= 0 for start in goodput.read(path) for value in start.seconds.values())


def test_other_processes_write_nothing(tmp_path, clock, one_start):
    ledger = one_start(None, 0, 2)
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
