"""A profile of chosen steps, to be looked at in Perfetto or in TensorBoard."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from mmgen_jax.core.goodput import Ledger


def parse(text: str | None) -> tuple[int, int] | None:
    """ "10:15" -> (10, 15): the first step and the last; None stays None.

    Raises:
      ValueError: another form, or no step at all.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 0 < int(match[1]) <= int(match[2]):
        raise ValueError(f'--profile {text}: write the first and the last step, such as "10:15".')
    return int(match[1]), int(match[2])


class Profiler:
    """Traces the steps `first` to `last` of process 0 into `folder`.

    Args:
      folder: gets plugins/profile/<date>/perfetto_trace.json.gz, which ui.perfetto.dev opens, and what TensorBoard's
        profiler reads.
      steps: (first, last), as `parse` gives them; None traces nothing.
      end: the run's last step.
      ledger: what tracing costs counts as "report", and not as a step.
      say: takes the line that tells where the trace is.

    Raises:
      ValueError: the run ends before `last`.
    """

    def __init__(
        self,
        folder: Path,
        steps: tuple[int, int] | None,
        end: int,
        ledger: Ledger,
        say: Callable[..., Any],
    ):
        if steps and steps[1] > end:
            raise ValueError(f"--profile {steps[0]}:{steps[1]}: the run ends at step {end}.")
        self._folder, self._ledger, self._say = folder, ledger, say
        self._steps = steps if jax.process_index() == 0 else None
        self._tracing, self._traced = False, False

    def step(self, step: int, fn: Callable[[Any, Any], Any], state: Any, batch: Any) -> Any:
        """`fn(state, batch)`, which is `step`; traced if it is one of the chosen."""
        first, last = self._steps or (0, -1)
        if first <= step <= last and not self._tracing:
            # What was dispatched before belongs to no step of the profile.
            jax.block_until_ready(state)
            with self._ledger.phase("report"):
                self._folder.mkdir(parents=True, exist_ok=True)
                jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._tracing = self._traced = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = fn(state, batch)
        if step == last and self._tracing:
            jax.block_until_ready(result)
            self._write()
        return result

    def close(self) -> None:
        """Write the trace, if one is running; say so if none ever was."""
        if self._tracing:
            self._write()
        elif self._steps and not self._traced:
            self._say(f"no profile: this start made none of the steps {self._steps[0]} to {self._steps[1]}")

    def _write(self) -> None:
        self._tracing = False
        with self._ledger.phase("report"):
            jax.profiler.stop_trace()
        traces = self._folder.rglob("perfetto_trace.json.gz")
        newest = max(traces, key=lambda path: path.stat().st_mtime, default=self._folder)
        steps = f"{self._steps[0]} to {self._steps[1]}"
        self._say(f"profile of steps {steps}: {newest}; open it at https://ui.perfetto.dev")
