"""Where numbers go: a progress bar, JSON lines, TensorBoard, Weights & Biases. Only process 0 writes."""

import json
import math
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmgen_jax.core import registry


class Writer(Protocol):
    """Takes the numbers of a step, and pictures."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, path: Path) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """metrics.jsonl: one object a line, {"step", "time", name: value, ...}; a resumed run goes on after `start`."""

    def __init__(self, workdir: Path, start: int):
        path = workdir / "metrics.jsonl"
        if path.exists():
            _drop_after(path, start)
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        # JSON has no nan; null keeps the line readable by every parser.
        clean = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **clean}) + "\n")
        self._file.flush()

    def picture(self, step: int, name: str, path: Path) -> None:
        """Pictures are files in the workdir already."""

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; half a line, which a killed run may leave, is left out."""
    return [row for _, row in _rows(path) if row is not None]


def _rows(path: Path) -> list[tuple[str, dict[str, Any] | None]]:
    """Each line, and what it says."""

    def parse(line: str) -> dict[str, Any] | None:
        try:
            row = json.loads(line)
        except ValueError:
            return None
        return row if isinstance(row, dict) else None

    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [(line, parse(line)) for line in lines]


def _drop_after(path: Path, start: int) -> None:
    """Drop what a killed run may leave: half a line, and steps after its last checkpoint, which come again."""
    rows = _rows(path)
    kept = [line for line, row in rows if row is not None and row["step"] <= start]
    if len(kept) < len(rows):
        part = path.with_suffix(".part")
        part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        part.replace(path)


class TensorBoard:
    """Event files under <workdir>/tensorboard, through tensorboardX (no TensorFlow)."""

    def __init__(self, workdir: Path, start: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError('writers has "tensorboard": pip install "mmgen_jax[tensorboard]"') from error
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        self._writer.add_image(name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """One run of Weights & Biases a workdir; a resumed run goes on in it."""

    def __init__(self, workdir: Path, start: int):
        del start
        try:
            import wandb
        except ImportError as error:
            raise ImportError('writers has "wandb": pip install "mmgen_jax[wandb]"') from error
        self._wandb = wandb
        identity = workdir / "wandb_id"
        if not identity.exists():
            identity.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project="mmgen_jax", name=workdir.name, id=identity.read_text(), resume="allow", dir=str(workdir)
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


WRITERS = {"jsonl": JsonLines, "tensorboard": TensorBoard, "wandb": Wandb}


class Bar:
    """The progress bar: step, loss, examples/s, time left. A line a report where there is no terminal."""

    def __init__(self, steps: int, start: int, console: Console):
        self._console, self._steps = console, steps
        self._progress = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._progress.add_task("train", total=steps, completed=start, numbers="compiling")
            self._progress.start()
        self._begin = (time.perf_counter(), start)

    def update(self, step: int) -> None:
        if self._progress:
            self._progress.update(self._task, completed=step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if "train/loss" not in values:
            return
        numbers = f"loss {values['train/loss']:.3f}  {values['train/examples_per_s']:.0f} examples/s"
        if self._progress:
            self._progress.update(self._task, completed=step, numbers=numbers)
        else:
            begin, start = self._begin
            left = (time.perf_counter() - begin) / max(step - start, 1) * (self._steps - step)
            self._console.print(f"step {step}/{self._steps}  {numbers}  {left:.0f} s left", highlight=False)

    def picture(self, step: int, name: str, path: Path) -> None:
        self._console.print(f"step {step}: {name}: {path}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._progress:
            self._progress.stop()


class Writers:
    """Sends everything to every writer on process 0, to none elsewhere. Use it as a context manager."""

    def __init__(
        self, workdir: Path, names: Sequence[str], steps: int, start: int, console: Console | None = None
    ):
        self.console = console or Console(file=sys.stdout, quiet=jax.process_index() != 0)
        self._writers: list[Any] = []
        self._bar = None
        if jax.process_index() == 0:
            self._bar = Bar(steps, start, self.console)
            self._writers = [registry.choose(WRITERS, name, "writer")(workdir, start) for name in names] + [
                self._bar
            ]

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *error: object) -> None:
        for writer in self._writers:
            writer.close()

    def progress(self, step: int) -> None:
        """Move the bar without a report."""
        if self._bar:
            self._bar.update(step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.scalars(step, values)

    def picture(self, step: int, name: str, path: Path) -> None:
        for writer in self._writers:
            writer.picture(step, name, path)
