"""Signals: save and stop, save and go on, stop at once; wherever in the run they come."""

import io
import os
import signal
import time

import pytest
from rich.console import Console

from mmgen_jax.core import step_folders
from mmgen_jax.core.writer import Writers
from mmgen_jax.evaluators.classification import SeveralLabels
from mmgen_jax.signals import Interrupted, Signals
from mmgen_jax.train import train


def send(number):
    os.kill(os.getpid(), number)


def test_what_is_asked():
    before = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        assert signals.asked(1) == (False, False)
        send(signal.SIGUSR1)
        assert signals.asked(2) == (True, False)
        assert signals.asked(3) == (False, False)
        send(signal.SIGINT)
        assert signals.asked(4) == signals.asked(5) == (False, True)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_storm_of_sigterm_spoils_nothing(monkeypatch):
    """Also not after the end, while the process goes down."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with Signals() as signals:
            for _ in range(50):
                send(signal.SIGTERM)
            assert signals.asked(1) == (False, True)
        send(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_is_given_up():
    with Signals() as signals:
        assert signals.unless_stopped(lambda: 7) == 7
        send(signal.SIGUSR1)
        assert signals.unless_stopped(lambda: 7) == 7
        begin = time.perf_counter()
        assert signals.unless_stopped(lambda: [send(signal.SIGINT), time.sleep(30)]) is None
        assert time.perf_counter() - begin < 10
        assert signals.unless_stopped(lambda: 7) is None, "it came before"


@pytest.fixture(scope="module")
def config(load_config):
    """A classifier that compiles fast, evaluated at step 4 of 6."""
    config = load_config("classifier_scenes.py:tiny", steps=6, log_every=2)
    config.checkpoint = {"every": 100, "keep": 2}
    config.task.model.tower.update(widths=(4,), blocks=1, pool="mean")
    source = {"name": "scenes", "split": "val", "size": 32, "cells": True, "length": 8}
    held = {"name": "classification", "source": source, "transforms": "array", "batch_size": 8}
    held["labels"] = config.task.model.labels
    config.evals = {"val": {**held, "every": 4}}
    return config


def run(config, workdir, **kwargs):
    screen = io.StringIO()
    return train(config, workdir, console=Console(file=screen, width=300), **kwargs), screen.getvalue()


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    return run(config, tmp_path_factory.mktemp("straight"))[0]


def at_step(monkeypatch, step, do):
    """Have the loop call `do` once, as it moves the bar to `step`."""
    with_hook = Writers.progress

    def progress(self, now):
        with_hook(self, now)
        if now == step:
            do()

    monkeypatch.setattr(Writers, "progress", progress)


def steps(workdir):
    return step_folders.steps(workdir / "checkpoints")


def scored(workdir):
    return (workdir / "metrics.jsonl").read_text().count("val/")


def test_sigusr1_saves_and_goes_on(config, straight, same, tmp_path, monkeypatch):
    at_step(monkeypatch, 3, lambda: send(signal.SIGUSR1))
    state, said = run(config, tmp_path)
    assert "step 3: saved, because SIGUSR1 came" in said
    assert steps(tmp_path) == [3, 6]
    same(state, straight)


def test_an_evaluation_is_given_up_and_done_again(config, straight, same, tmp_path, monkeypatch):
    """The state is saved within seconds, however long the evaluation would take."""
    with monkeypatch.context() as patch:
        patch.setattr(SeveralLabels, "run", lambda *_: [send(signal.SIGTERM), time.sleep(60)])
        begin = time.perf_counter()
        with pytest.raises(Interrupted, match="saved at step 4") as stop:
            run(config, tmp_path)
        assert time.perf_counter() - begin < 50
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert stop.value.status == 75
    assert steps(tmp_path) == [4] and scored(tmp_path) == 0
    state, said = run(config, tmp_path)
    assert "resuming at step 4" in said
    same(state, straight)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows if "val/" in row] == ['{"step": 4', '{"step": 6']


def test_before_the_first_step_there_is_nothing_to_save(config, tmp_path, monkeypatch):
    monkeypatch.setattr("mmgen_jax.train._compile", lambda *_: [send(signal.SIGINT), time.sleep(60)])
    with pytest.raises(Interrupted, match="Stopped before step 1: there is nothing new to save"):
        run(config, tmp_path)
    assert steps(tmp_path) == []


def test_a_second_sigint_ends_at_once(config, tmp_path, monkeypatch):
    at_step(monkeypatch, 3, lambda: [send(signal.SIGINT), send(signal.SIGINT)])
    with pytest.raises(KeyboardInterrupt) as stop:
        run(config, tmp_path)
    assert not isinstance(stop.value, Interrupted)
    assert steps(tmp_path) == []
