"""train(config, workdir): the one loop. It knows `state, metrics = step(state, batch)` and nothing of any task."""

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from rich.console import Console

from mmgen_jax.core import flops, parallel, registry, sharding
from mmgen_jax.core import metrics as metrics_lib
from mmgen_jax.core.checkpoint import Checkpointer, NoCheckpoint
from mmgen_jax.core.lock import Lock
from mmgen_jax.core.state import State
from mmgen_jax.core.writer import Writers
from mmgen_jax.evaluate import print_table, run_evaluator
from mmgen_jax.experiment import Experiment, check_workdir
from mmgen_jax.signals import Interrupted, Signals


def train(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    override: bool = False,
    step: int | None = None,
    console: Console | None = None,
) -> State:
    """Train until `config.steps`, from the newest checkpoint that is whole, where there is one.

    Args:
      config: see configs/.
      workdir: gets config.json, metrics.jsonl, tokenizer.json, example.json, checkpoints/, figures/.
      override: go on in a workdir that a different config made.
      step: go on from this checkpoint; newer ones are set aside.
      console: where to print.

    Returns:
      The last state.

    Raises:
      WorkdirError: the workdir belongs to a different config.
      Locked: another process trains in the workdir.
      CheckpointError: saving failed more often than `checkpoint.failures`, or `step` cannot be read.
      FloatingPointError: the loss is not finite; the last checkpoint stays.
      Interrupted: SIGINT or SIGTERM came; a checkpoint of the last step is saved. The same call goes on from it.
    """
    workdir, console = Path(workdir), console or Console(quiet=jax.process_index() != 0)
    check_workdir(workdir, config, override)
    experiment = Experiment(config, workdir)
    say = partial(console.print, highlight=False, soft_wrap=True)
    checkpointer = experiment.checkpointer(say=partial(say, style="yellow"))
    with Lock(workdir), closing(checkpointer), Signals() as signals:
        experiment.settle()
        checkpointer.tidy()
        state = _restore(experiment, checkpointer, step)
        start = int(state.step)
        names = config.get("writers", ("jsonl",))
        with Writers(workdir, names, config.steps, start, console) as writers:
            size = sum(x.size for x in jax.tree.leaves(state.params))
            say(f"{'resuming at step ' + str(start) if start else 'training'} in {workdir}: {size:,} parameters, "
                f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)")  # fmt: skip
            for report in experiment.reports:
                say(str(report))
            if start < config.steps:
                state = _loop(experiment, checkpointer, state, writers, signals)
            tables = {}
            for name in experiment.evaluators:
                tables[name] = signals.unless_stopped(
                    partial(_evaluate, experiment, name, state, config.steps, writers, table=True)
                )
                if tables[name] is None:
                    raise Interrupted(
                        "Stopped after the last step, which is saved. The same command evaluates it."
                    )
    for name, (_, rows, signature) in tables.items():
        print_table(name, rows, signature, console)
    return state


def _restore(experiment: Experiment, checkpointer: Checkpointer, step: int | None) -> State:
    """The state to go on from: of the newest checkpoint that is whole, or of `step`; a new one where there is none."""
    try:
        return checkpointer.restore(experiment.abstract, experiment.shardings, step)
    except NoCheckpoint:
        if step is not None:
            raise
        return experiment.init()


def _loop(
    experiment: Experiment, checkpointer: Checkpointer, state: State, writers: Writers, signals: Signals
) -> State:
    """From the state to the last step, which is on the disk when this returns."""
    config, start = experiment.config, int(state.step)
    batches = experiment.pipeline.train(start)

    def fetch(wait: Callable[[Iterator], Any] = next) -> Any:
        return sharding.put_batch(wait(batches), experiment.layout)

    def prepare() -> tuple:
        # A run that was stopped while it evaluated does the rest of that first.
        scores = checkpointer.scores(start)
        for name in _due(config, start) if start else ():
            if not any(key.startswith(f"{name}/") for key in scores):
                _evaluate(experiment, name, state, start, writers)
        batch = fetch()
        return batch, *_compile(experiment, state, batch, writers.console.print)

    ready = signals.unless_stopped(prepare)
    if ready is None:
        raise Interrupted(f"Stopped before step {start + 1}: there is nothing new to save.")
    batch, step_fn, step_flops = ready
    clock = Clock(config.data.batch_size, step_flops)
    previous = None
    for step in range(start + 1, config.steps + 1):
        state, metrics = step_fn(state, batch)
        # The device works on step n; meanwhile the numbers of step n - 1 are read and the next batch is fetched.
        if previous is not None:
            _record(experiment, clock, previous, writers)
        previous = step, metrics
        last = step == config.steps
        # From here on the state is whole, whatever is given up to save it.
        if not last:
            batch = signals.unless_stopped(lambda: fetch(clock.wait))
        writers.progress(step)
        evals = [] if last else _due(config, step)
        scores: dict[str, float] = {}
        if evals:
            with clock.pause():
                _record(experiment, clock, previous, writers)
                previous = None
                for name in evals:
                    found = signals.unless_stopped(partial(_evaluate, experiment, name, state, step, writers))
                    scores.update(found[0] if found else {})
        asked = signals.asked(step)
        scored = bool(evals and checkpointer.best) and parallel.any_process(_has(scores, checkpointer.best))
        if last or scored or asked.save or asked.stop or step % config.checkpoint.every == 0:
            with clock.pause():
                if previous is not None:
                    _record(experiment, clock, previous, writers)
                    previous = None
                checkpointer.save(step, state, scores, wait=last or asked.stop)
            if asked.save:
                writers.console.print(f"step {step}: saved, because SIGUSR1 came", highlight=False)
        if asked.stop and not last:
            raise Interrupted(f"Stopped and saved at step {step}. The same command goes on from there.")
    checkpointer.wait()
    return state


def _has(scores: Mapping[str, float], best: str) -> bool:
    """Whether the score by which the best checkpoint is chosen is there."""
    evaluator = best.partition("/")[0]
    own = [name for name in scores if name.startswith(f"{evaluator}/")]
    if own and best not in own:
        raise ValueError(f'checkpoint.best is "{best}".{registry.nearest(best, own)}')
    return best in own


def _evaluate(
    experiment: Experiment, name: str, state: State, step: int, writers: Writers, table: bool = False
) -> tuple[dict, dict, str]:
    """Run one evaluator; a disk that takes none of its files costs its numbers, and not the run."""
    try:
        return run_evaluator(experiment, name, state.eval_params, state.variables, step, writers, table=table)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        writers.console.print(
            f"step {step}: {name} could not write its files: {error.strerror}.", style="yellow"
        )
        return {}, {}, ""


def _due(config: ml_collections.ConfigDict, step: int) -> list[str]:
    """The evaluations that their `every` asks for at this step; 0 or none: only at the end."""
    return [name for name, spec in config.evals.items() if spec.get("every", 0) and step % spec.every == 0]


def _compile(experiment: Experiment, state: State, batch: Any, say: Any) -> tuple[Any, float]:
    """The compiled step, and its FLOPs on one device."""
    begin = time.perf_counter()
    step = parallel.compile_step(experiment.task.train_step, experiment.layout, experiment.shardings)
    traced = step.trace(state, batch)
    compiled = traced.lower().compile()
    total = flops.count(traced.jaxpr)
    # In pmap mode the traced program is already one device's.
    per_device = total if experiment.layout.mode == "pmap" else total / jax.device_count()
    say(f"compiled in {time.perf_counter() - begin:.1f} s; {total / 1e9:.1f} GFLOP a step", highlight=False)
    return compiled, per_device


class Clock:
    """Sums up what the steps between two reports did and how long they took.

    Args:
      batch_size: N.
      step_flops: of one step on one device.
    """

    def __init__(self, batch_size: int, step_flops: float):
        self._batch_size, self._step_flops = batch_size, step_flops
        self._peak = flops.peak(jax.devices()[0])
        self._reset()

    def _reset(self) -> None:
        self._begin, self._waited, self._paused, self._steps = time.perf_counter(), 0.0, 0.0, 0
        self._metrics: dict | None = None

    def wait(self, batches: Iterator) -> Any:
        """The next batch; the time until it comes counts as waiting for data."""
        begin = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - begin
        return batch

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Evaluations and checkpoints do not count as training time."""
        begin, before = time.perf_counter(), self._begin
        yield
        spent = time.perf_counter() - begin
        if self._begin == before:
            self._paused += spent
        else:
            self._begin = time.perf_counter()

    def add(self, metrics: dict) -> None:
        self._steps += 1
        self._metrics = metrics if self._metrics is None else metrics_lib.merge(self._metrics, metrics)

    def report(self) -> dict[str, float]:
        """The numbers since the last report."""
        seconds = max(time.perf_counter() - self._begin - self._paused, 1e-9)
        values = {f"train/{name}": value for name, value in metrics_lib.compute(self._metrics).items()}
        values["train/examples_per_s"] = self._batch_size * self._steps / seconds
        values["train/step_time"] = seconds / self._steps
        values["train/data_wait"] = self._waited / seconds
        if self._peak:
            values["train/mfu"] = self._step_flops * self._steps / seconds / self._peak
        self._reset()
        return values


def _record(experiment: Experiment, clock: Clock, previous: tuple[int, dict], writers: Writers) -> None:
    """Read a finished step's metrics; write a report where one is due, and what the task says of it."""
    step, metrics = previous
    metrics = jax.tree.map(np.asarray, jax.device_get(metrics))
    loss = metrics["loss"].compute() if "loss" in metrics else 0.0
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"The loss is {float(loss)} at step {step}. Lower optimizer.learning_rate, lengthen optimizer.warmup or set "
            "optimizer.clip_norm; the last checkpoint is whole."
        )
    clock.add(metrics)
    if step % experiment.config.log_every == 0:
        report = clock.report()
        writers.scalars(step, report)
        advice = experiment.task.advise(step, report)
        if advice:
            writers.console.print(f"step {step}: {advice}", style="yellow", highlight=False)
