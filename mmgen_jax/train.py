"""train(config, workdir): the one loop. It knows `state, metrics = step(state, batch)` and nothing of any task."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from mmgen_jax import figures
from mmgen_jax.core import flops, goodput, parallel, sharding
from mmgen_jax.core import metrics as metrics_lib
from mmgen_jax.core.goodput import Ledger
from mmgen_jax.core.profile import Profiler
from mmgen_jax.core.state import State
from mmgen_jax.core.writer import Writers, read_rows
from mmgen_jax.evaluate import print_table, run_evaluator
from mmgen_jax.experiment import Experiment, check_workdir


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop, and has saved its state."""


def train(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    override: bool = False,
    console: Console | None = None,
    profile: tuple[int, int] | None = None,
    began: float | None = None,
) -> State:
    """Train until `config.steps`, from the newest checkpoint where there is one.

    Args:
      config: see configs/.
      workdir: gets config.json, metrics.jsonl, time.jsonl, tokenizer.json, example.json, checkpoints/, figures/.
      override: go on in a workdir that a different config made.
      console: where to print.
      profile: (first, last) of the steps to trace, see core/profile.py.
      began: `time.time()` at which the run's time begins to count, such as the start of the process; default now.

    Returns:
      The last state.

    Raises:
      WorkdirError: the workdir belongs to a different config.
      FloatingPointError: the loss is not finite; the last checkpoint stays.
      Interrupted: SIGINT or SIGTERM came; a checkpoint of the last step is saved. The same call goes on from it.
    """
    began = time.time() if began is None else began
    workdir = Path(workdir)
    check_workdir(workdir, config, override)
    experiment = Experiment(config, workdir)
    experiment.settle()
    checkpointer = experiment.checkpointer()
    if checkpointer.latest is None:
        state, start = experiment.init(), 0
    else:
        state = checkpointer.restore(experiment.abstract, experiment.shardings)
        start = int(state.step)
    batches = experiment.pipeline.train(start)
    names, first = config.get("writers", ("jsonl",)), jax.process_index() == 0
    with (
        closing(checkpointer),
        Writers(workdir, names, config.steps, start, console) as writers,
        closing(Ledger(workdir / goodput.FILE if first else None, start, began)) as ledger,
        closing(
            Profiler(workdir / "profile", profile, start, config.steps, ledger, writers.console.print)
        ) as profiler,
        _stop_signal(config.log_every) as stop,
    ):
        say = writers.console.print
        size = sum(x.size for x in jax.tree.leaves(state.params))
        say(f"{'resuming at step ' + str(start) if start else 'training'} in {workdir}: {size:,} parameters, "
            f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)", highlight=False)  # fmt: skip
        for report in experiment.reports:
            say(str(report), highlight=False)
        if start < config.steps:
            with ledger.phase("data"):
                batch = sharding.put_batch(next(batches), experiment.layout)
            with ledger.phase("compile"):
                step_fn, step_flops = _compile(experiment, state, batch, say)
            ledger.write()
            clock = Clock(config.data.batch_size, step_flops, ledger)
        ledger.switch("step")
        previous = None
        for step in range(start + 1, config.steps + 1):
            ledger.at(step)
            state, metrics = profiler.step(step, step_fn, state, batch)
            # The device works on step n; meanwhile the numbers of step n - 1 are read and the next batch is fetched.
            if previous is not None:
                _record(experiment, clock, previous, writers)
            previous = step, metrics
            last = step == config.steps or stop(step)
            if not last:
                with ledger.phase("data"):
                    batch = next(batches)
                batch = sharding.put_batch(batch, experiment.layout)
            writers.progress(step)
            evals = _due(config, step)
            if last or evals or step % config.checkpoint.every == 0:
                _record(experiment, clock, previous, writers)
                previous = None
                if last or step % config.checkpoint.every == 0:
                    with ledger.phase("save"):
                        checkpointer.save(step, state)
                if not last:
                    with ledger.phase("evaluation"):
                        for name in evals:
                            run_evaluator(experiment, name, state.eval_params, state.variables, step, writers)
                    _draw_curves(workdir, ledger, writers)
                ledger.write()
            if last and step < config.steps:
                with ledger.phase("save"):
                    checkpointer.wait()
                raise Interrupted(f"Stopped and saved at step {step}. The same command goes on from there.")
        with ledger.phase("save"):
            checkpointer.wait()
        with ledger.phase("evaluation"):
            tables = {
                name: run_evaluator(
                    experiment, name, state.eval_params, state.variables, config.steps, writers, table=True
                )
                for name in experiment.evaluators
            }
        _draw_curves(workdir, ledger, writers, last=True)
    for name, (rows, signature) in tables.items():
        print_table(name, rows, signature, writers.console)
    return state


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
      ledger: knows how long; evaluations, checkpoints and their like do not count as training time.
    """

    def __init__(self, batch_size: int, step_flops: float, ledger: Ledger):
        self._batch_size, self._step_flops, self.ledger = batch_size, step_flops, ledger
        self._peak = flops.peak(jax.devices()[0])
        self._reset()

    def _reset(self) -> None:
        self._begin, self._steps = self.ledger.spent(), 0
        self._metrics: dict | None = None

    def add(self, metrics: dict) -> None:
        self._steps += 1
        self._metrics = metrics if self._metrics is None else metrics_lib.merge(self._metrics, metrics)

    def report(self) -> dict[str, float]:
        """The numbers since the last report."""
        spent = self.ledger.spent()
        waited, stepped = (spent[kind] - self._begin[kind] for kind in ("data", "step"))
        seconds = max(waited + stepped, 1e-9)
        values = {f"train/{name}": value for name, value in metrics_lib.compute(self._metrics).items()}
        values["train/examples_per_s"] = self._batch_size * self._steps / seconds
        values["train/step_time"] = seconds / self._steps
        values["train/data_wait"] = waited / seconds
        values["train/goodput"] = self.ledger.goodput()
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
        clock.ledger.write()
        advice = experiment.task.advise(step, report)
        if advice:
            writers.console.print(f"step {step}: {advice}", style="yellow", highlight=False)


def _draw_curves(workdir: Path, ledger: Ledger, writers: Writers, last: bool = False) -> None:
    """Draw figures/curves.png anew, where drawing has not taken more than a hundredth of the time yet, or at the end."""
    path, spent = workdir / "metrics.jsonl", ledger.spent()
    enough = spent["report"] > 0.01 * sum(spent.values()) and not last
    if jax.process_index() != 0 or enough or not path.exists():
        return
    with ledger.phase("report"):
        try:
            figures.curves(workdir / "figures" / "curves.png", read_rows(path))
        except OSError as error:  # such as a full disk: training goes on
            writers.console.print(f"no picture of the curves: {error}", style="yellow", highlight=False)


@contextmanager
def _stop_signal(every: int) -> Iterator[Callable[[int], bool]]:
    """A function that tells after each step whether SIGINT or SIGTERM has come; a second SIGINT stops at once.

    Several processes must stop after the same step, whichever of them got the signal: they ask each other `every` steps.
    """
    came = []

    def handle(number, frame):
        if came:
            raise KeyboardInterrupt
        came.append(number)

    def stop(step: int) -> bool:
        if jax.process_count() == 1:
            return bool(came)
        return step % every == 0 and bool(multihost_utils.process_allgather(np.array(bool(came))).any())

    try:
        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: a notebook's worker; signals stay as they are
        old = {}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
