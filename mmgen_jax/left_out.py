"""The log of training steps that were left out: why, which tensor is not finite, and which examples were at it."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from mmgen_jax.core import guard
from mmgen_jax.core.checkpoint import first_bad
from mmgen_jax.core.state import State
from mmgen_jax.experiment import Experiment

FILE = "skipped.jsonl"
SHOWN = 16  # examples named on the screen; the file has all


class LeftOut:
    """Tells of steps that were left out, on the screen and in <workdir>/skipped.jsonl, which keeps them over rollbacks."""

    def __init__(self, experiment: Experiment, console: Console):
        self._guard, self._path = experiment.guard, experiment.workdir / FILE
        self._console = console

    def tell(self, step: int, notice: dict[str, Any], state: State, batch: dict[str, jax.Array]) -> str:
        """All processes must ask.

        Args:
          notice: of the step, on the host; see `guard.guarded`.
          state: after it, or after the next step.
          batch: of the step.

        Returns:
          why it was left out, in words.
        """
        why = guard.why(notice, state.params, self._guard)
        # Images are bytes, which cannot be bad; they stay where they are.
        wanted = {k: x for k, x in batch.items() if k == "index" or np.issubdtype(x.dtype, np.floating)}
        values = {k: np.asarray(multihost_utils.process_allgather(x, tiled=True)) for k, x in wanted.items()}
        examples = values["index"].tolist() if "index" in values else []
        inputs = {
            name: [examples[row] if examples else row for row in rows]
            for name, rows in guard.bad_examples(values).items()
        }
        tensor = first_bad(state)
        if tensor is None and inputs:
            name, rows = next(iter(inputs.items()))
            tensor = f"batch/{name} of example {rows[0]}"
        if tensor is None and notice["bad"]:
            tensor = f"gradient of {guard.tensor_names(state.params)[int(notice['bad']) - 1]}"
        if jax.process_index() == 0:
            self._write({"step": step, "why": why, "tensor": tensor, "inputs": inputs, "examples": examples})
        found = f" First tensor that is not finite: {tensor}." if tensor else ""
        few = ", ".join(map(str, examples[:SHOWN])) + (", ..." if len(examples) > SHOWN else "")
        self._console.print(
            f"step {step} is left out: {why}.{found} Examples: {few} ({FILE}).",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
        return why

    def _write(self, entry: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            self._console.print(f"{self._path} cannot be written: {error.strerror}.", style="yellow")
