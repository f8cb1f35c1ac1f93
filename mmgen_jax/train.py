"""train(config, workdir): the one loop. It knows `state, metrics = step(state, batch)` and nothing of any task."""

import errno
import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from rich.console import Console

from mmgen_jax import figures, peers
from mmgen_jax.core import flops, goodput, parallel, registry, sharding
from mmgen_jax.core import metrics as metrics_lib
from mmgen_jax.core.checkpoint import Checkpointer, NoCheckpoint, first_bad
from mmgen_jax.core.goodput import Ledger
from mmgen_jax.core.lock import Lock
from mmgen_jax.core.profile import Profiler
from mmgen_jax.core.state import State
from mmgen_jax.core.writer import Writers, read_rows
from mmgen_jax.evaluate import print_table, run_evaluator
from mmgen_jax.experiment import Experiment, check_workdir
from mmgen_jax.left_out import LeftOut
from mmgen_jax.signals import Interrupted, Signals


def train(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    override: bool = False,
    step: int | None = None,
    console: Console | None = None,
    profile: tuple[int, int] | None = None,
    began: float | None = None,
) -> State:
    """Train until `config.steps`, from the newest checkpoint that is whole, where there is one.

    Of several processes, one that fails alone ends at once, with its message, and the others follow; see peers.py.

    Args:
      config: see configs/.
      workdir: gets config.json, metrics.jsonl, time.jsonl, tokenizer.json, answers.json, example.json, checkpoints/, figures/.
      override: go on in a workdir that a different config made.
      step: go on from this checkpoint; newer ones are set aside.
      console: where to print.
      profile: (first, last) of the steps to trace, see core/profile.py.
      began: `time.time()` from which the run's time counts, such as the start of the process; default now.

    Returns:
      The last state.

    Raises:
      WorkdirError: the workdir belongs to a different config.
      Locked: another process trains in the workdir.
      CheckpointError: saving failed more often than `checkpoint.failures`, or `step` cannot be read.
      FloatingPointError: too many steps in a row were not finite (see core/guard.py); the last checkpoint stays.
      Interrupted: SIGINT or SIGTERM came; a checkpoint of the last step is saved. The same call goes on from it.
    """
    began = time.time() if began is None else began
    workdir, console = Path(workdir), console or Console(quiet=jax.process_index() != 0)
    check_workdir(workdir, config, override)
    experiment = Experiment(config, workdir)
    say = partial(console.print, highlight=False, soft_wrap=True)
    checkpointer = experiment.checkpointer(say=partial(say, style="yellow"))
    times = workdir / goodput.FILE if jax.process_index() == 0 else None
    with (
        Lock(workdir),
        Ledger(times, began, goodput.here()) as ledger,
        closing(Profiler(workdir / "profile", profile, config.steps, ledger, say)) as profiler,
        closing(checkpointer),
        Signals() as signals,
        peers.together(),
    ):
        experiment.settle()
        checkpointer.tidy()
        run = _Run(experiment, checkpointer, signals, ledger, profiler)
        state, tables = run.restore(step), None
        while tables is None:
            start, names = int(state.step), config.get("writers", ("jsonl",))
            ledger.set_out(start)
            with Writers(workdir, names, config.steps, start, console) as writers:
                size = sum(x.size for x in jax.tree.leaves(state.params))
                say(f"{'resuming at step ' + str(start) if start else 'training'} in {workdir}: {size:,} parameters, "
                    f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)")  # fmt: skip
                for report in experiment.reports:
                    say(str(report))
                try:
                    if start < config.steps:
                        state = run.loop(state, writers)
                    tables = run.tables(state, writers)
                except _Stuck as error:
                    stuck = error
            if tables is None:
                state = run.back(stuck)
    for name, (_, rows, signature) in tables.items():
        print_table(name, rows, signature, console)
    return state


class _Stuck(Exception):
    """Steps in a row that were left out, so that training gets no further.

    Attributes:
      step: the last of them; why: in words; row: how many; shift: of the data's seed that led there.
      start: from where this attempt set out.
    """

    def __init__(self, step: int, why: str, row: int, shift: int, start: int):
        super().__init__(why)
        self.step, self.why, self.row, self.shift, self.start = step, why, row, shift, start


class _Run:
    """The loop, and what it needs beside the state."""

    def __init__(
        self,
        experiment: Experiment,
        checkpointer: Checkpointer,
        signals: Signals,
        ledger: Ledger,
        profiler: Profiler,
    ):
        self.experiment, self.checkpointer, self.signals = experiment, checkpointer, signals
        self.ledger, self.profiler, self.config = ledger, profiler, experiment.config
        self.compiled: tuple[Any, float] | None = None
        # Rollbacks in a row, and the furthest step at which one was needed.
        self.rollbacks, self.furthest = 0, 0

    def restore(self, step: int | None = None) -> State:
        """The state to go on from: of the newest checkpoint that is whole, or of `step`; a new one where there is none."""
        try:
            return self.checkpointer.restore(self.experiment.abstract, self.experiment.shardings, step)
        except NoCheckpoint:
            if step is not None:
                raise
            return self.experiment.init()

    def back(self, stuck: _Stuck) -> State:
        """The newest good state, with another order of the data.

        Raises:
          FloatingPointError: the config says to stop, or going back has not helped.
        """
        guard, say = self.experiment.guard, self.checkpointer.say
        self.rollbacks = 1 if stuck.step > self.furthest else self.rollbacks + 1
        self.furthest = max(self.furthest, stuck.step)
        if guard.then == "stop" or self.rollbacks > guard.rollbacks:
            raise FloatingPointError(
                f"{stuck.why[0].upper()}{stuck.why[1:]} at step {stuck.step}, the last of {stuck.row} steps in a row that were "
                "left out. Lower optimizer.learning_rate, lengthen optimizer.warmup or set optimizer.clip_norm; skipped.jsonl "
                "has their examples, and the last checkpoint is whole."
            )
        if stuck.start and stuck.row >= stuck.step - stuck.start:
            self.checkpointer.set_aside(stuck.start, "led only to steps that were left out")
        state = self.restore()
        say(
            f"step {stuck.step}: {stuck.row} steps in a row were left out; back to step {int(state.step)}, with another order of "
            f"the data (rollback {self.rollbacks} of {guard.rollbacks})."
        )
        fresh = jax.tree.map(np.zeros_like, jax.device_get(state.guard))
        fresh["shift"] = np.int32(stuck.shift + 1)
        return state.replace(guard=jax.device_put(fresh, self.experiment.shardings.guard))

    def loop(self, state: State, writers: Writers) -> State:
        """From the state to the last step, which is on the disk when this returns."""
        config, experiment, start = self.config, self.experiment, int(state.step)
        signals, ledger, shift = self.signals, self.ledger, int(state.guard["shift"])
        batches = experiment.pipeline.train(start, shift)

        def fetch() -> Any:
            with ledger.phase("data"):
                batch = next(batches)
            return sharding.put_batch(batch, experiment.layout)

        def prepare() -> Any:
            # A run that was stopped while it evaluated does the rest of that first.
            scores = self.checkpointer.scores(start)
            for name in self._due(start) if start else ():
                if not any(key.startswith(f"{name}/") for key in scores):
                    self._evaluate(name, state, start, writers)
            batch = fetch()
            with ledger.phase("compile"):
                self.compiled = self.compiled or _compile(experiment, state, batch, writers.console.print)
            return batch

        batch = signals.unless_stopped(prepare)
        if batch is None:
            raise Interrupted(f"Stopped before step {start + 1}: there is nothing new to save.")
        step_fn, step_flops = self.compiled
        clock = Clock(config.data.batch_size, step_flops, ledger)
        left_out = LeftOut(experiment, writers.console)
        previous, save, row, spoiled = None, False, 0, None

        def record() -> None:
            """Read the numbers of the step before, unless that is done."""
            nonlocal previous, row
            if previous is not None:
                (number, metrics, inputs), previous = previous, None
                notice, row = self._record(clock, number, metrics, writers), 0
                if not notice["ok"]:
                    row = int(notice["row"])
                    why = left_out.tell(number, notice, state, inputs)
                    if row >= experiment.guard.in_a_row or (number == config.steps and row >= number - start):
                        raise _Stuck(number, why, row, shift, start)

        for step in range(start + 1, config.steps + 1):
            ledger.at(step)
            state, metrics = self.profiler.step(step, step_fn, state, batch)
            # The device works on step n; meanwhile the numbers of step n - 1 are read and the next batch is fetched.
            record()
            previous = step, metrics, batch
            last = step == config.steps
            # From here on the state is whole, whatever is given up to save it.
            if not last:
                batch = signals.unless_stopped(fetch)
            writers.progress(step)
            evals = [] if last else self._due(step)
            scores: dict[str, float] = {}
            if evals:
                record()
                for name in evals:
                    found = signals.unless_stopped(partial(self._evaluate, name, state, step, writers))
                    scores.update(found[0] if found else {})
            asked = signals.asked(step)
            best = self.checkpointer.best
            save |= bool(evals and best) and parallel.any_process(_has(scores, best))
            save |= last or asked.save or asked.stop or step % config.checkpoint.every == 0
            if save:
                record()
                # Not while steps are left out, if it can wait: the state may be what they fail for.
                if row == 0 or last or asked.stop:
                    with ledger.phase("save"):
                        save, spoiled = False, first_bad(state)
                        if spoiled:
                            why = f"{spoiled} is not finite"
                            writers.console.print(f"step {step} is not saved: {why}.", style="yellow")
                            if last:
                                raise _Stuck(step, why, row, shift, start)
                        else:
                            self.checkpointer.save(step, state, scores, wait=last or asked.stop)
                            # What is done from here on is lost with a process that is killed, and nothing before.
                            ledger.write()
                if asked.save:
                    writers.console.print(f"step {step}: saved, because SIGUSR1 came", highlight=False)
            if asked.stop and not last:
                saved = "" if spoiled else " and saved"
                raise Interrupted(f"Stopped{saved} at step {step}. The same command goes on from there.")
            if not last and (evals or step % config.checkpoint.every == 0):
                self._draw_curves(writers)
        with ledger.phase("save"):
            self.checkpointer.wait()
        return state

    def tables(self, state: State, writers: Writers) -> dict[str, tuple]:
        """{evaluator: what `run_evaluator` gives} of the finished run."""
        tables = {}
        for name in self.experiment.evaluators:
            evaluate = partial(self._evaluate, name, state, self.config.steps, writers, table=True)
            found = self.signals.unless_stopped(evaluate)
            if found is None:
                raise Interrupted(
                    "Stopped after the last step, which is saved. The same command evaluates it."
                )
            tables[name] = found
        self._draw_curves(writers, last=True)
        self.ledger.switch("report")
        return tables

    def _due(self, step: int) -> list[str]:
        """The evaluations that their `every` asks for at this step; 0 or none: only at the end."""
        evals = self.config.evals.items()
        return [name for name, spec in evals if spec.get("every", 0) and step % spec.every == 0]

    def _evaluate(
        self, name: str, state: State, step: int, writers: Writers, table: bool = False
    ) -> tuple[dict, dict, str]:
        """Run one evaluator; a disk that takes none of its files costs its numbers, and not the run."""
        try:
            with self.ledger.phase("evaluation"):
                return run_evaluator(
                    self.experiment, name, state.eval_params, state.variables, step, writers, table=table
                )
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            why = f"{name} could not write its files: {error.strerror}"
            writers.console.print(f"step {step}: {why}.", style="yellow", highlight=False)
            return {}, {}, ""

    def _record(self, clock: "Clock", step: int, metrics: dict, writers: Writers) -> dict:
        """Read a finished step's metrics; write a report where one is due, and what the task says of it. -> the step's notice."""
        metrics = jax.tree.map(np.asarray, jax.device_get(metrics))
        notice = metrics.pop("notice")
        clock.add(metrics)
        if step % self.config.log_every == 0:
            report = clock.report()
            writers.scalars(step, report)
            self.ledger.write()
            advice = self.experiment.task.advise(step, report)
            if advice:
                writers.console.print(f"step {step}: {advice}", style="yellow", highlight=False)
        return notice

    def _draw_curves(self, writers: Writers, last: bool = False) -> None:
        """Draw figures/curves.png anew, if pictures do not take more than a hundredth of the time so far, or at the end."""
        workdir, spent = self.experiment.workdir, self.ledger.spent()
        # The first one takes about a second too: none is drawn before a run has lasted for a hundred.
        enough = max(spent["report"], 1.0) > 0.01 * sum(spent.values()) and not last
        numbers = workdir / "metrics.jsonl"
        if jax.process_index() != 0 or enough or not numbers.exists():
            return
        with self.ledger.phase("report"):
            try:
                figures.curves(workdir / "figures" / "curves.png", read_rows(numbers))
            except Exception as error:  # no picture is worth a run
                why = f"the curves could not be drawn: {error}"
                writers.console.print(why, style="yellow", highlight=False)


def _has(scores: Mapping[str, float], best: str) -> bool:
    """Whether the score by which the best checkpoint is chosen is there."""
    evaluator = best.partition("/")[0]
    own = [name for name in scores if name.startswith(f"{evaluator}/")]
    if own and best not in own:
        raise ValueError(f'checkpoint.best is "{best}".{registry.nearest(best, own)}')
    return best in own


def _compile(experiment: Experiment, state: State, batch: Any, say: Any) -> tuple[Any, float]:
    """The compiled step, and its FLOPs on one device."""
    begin = time.perf_counter()
    step = parallel.compile_step(experiment.train_step, experiment.layout, experiment.shardings)
    traced = step.trace(state, batch)
    compiled = traced.lower().compile()
    total = flops.count(traced.jaxpr)
    say(f"compiled in {time.perf_counter() - begin:.1f} s; {total / 1e9:.1f} GFLOP a step", highlight=False)
    return compiled, total / jax.device_count()


class Clock:
    """Sums up what the steps between two reports did and how long they took.

    Args:
      batch_size: N.
      step_flops: of one step on one device.
      ledger: knows how long; evaluations, checkpoints and their like are no training time.
    """

    def __init__(self, batch_size: int, step_flops: float, ledger: Ledger):
        self._batch_size, self._step_flops, self._ledger = batch_size, step_flops, ledger
        self._peak = flops.peak(jax.devices()[0])
        self._reset()

    def _reset(self) -> None:
        self._begin, self._steps = self._ledger.spent(), 0
        self._metrics: dict | None = None

    def add(self, metrics: dict) -> None:
        self._steps += 1
        self._metrics = metrics if self._metrics is None else metrics_lib.merge(self._metrics, metrics)

    def report(self) -> dict[str, float]:
        """The numbers since the last report."""
        spent = self._ledger.spent()
        waited, stepped = (spent[kind] - self._begin[kind] for kind in ("data", "step"))
        seconds = max(waited + stepped, 1e-9)
        values = {f"train/{name}": value for name, value in metrics_lib.compute(self._metrics).items()}
        values["train/examples_per_s"] = self._batch_size * self._steps / seconds
        values["train/step_time"] = seconds / self._steps
        values["train/data_wait"] = waited / seconds
        values["train/goodput"] = self._ledger.goodput()
        if self._peak:
            values["train/mfu"] = self._step_flops * self._steps / seconds / self._peak
        self._reset()
        return values
