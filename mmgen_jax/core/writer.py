"""Where numbers go: a progress bar, JSON lines, TensorBoard, Weights & Biases. Only process 0 writes."""

import json
import math
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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


class Lines:
    """Appends objects to a file, a line of JSON each; what a full disk does not take waits, and goes there once it does."""

    def __init__(self, path: Path):
        self._file = path.open("a+b", buffering=0)
        # A line that a killed process left by half must not swallow the next one.
        self._file.seek(max(self._file.seek(0, os.SEEK_END) - 1, 0))
        self._waiting = b"" if self._file.read(1) in (b"", b"\n") else b"\n"

    def add(self, row: Mapping[str, Any]) -> None:
        self._waiting += json.dumps(row).encode() + b"\n"
        self._write()

    def _write(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        try:
            self._write()
        finally:
            self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; what is none, such as the half line of a killed run, is left out."""

    def rows():
        for line in path.read_bytes().split(b"\n"):
            try:
                yield json.loads(line)
            except ValueError:
                continue

    return [row for row in rows() if isinstance(row, dict)]


class JsonLines:
    """metrics.jsonl: one object a line, {"step", "time", name: value, ...}; a resumed run goes on after `start`."""

    def __init__(self, workdir: Path, start: int):
        path = workdir / "metrics.jsonl"
        # A finished run that is started again evaluates again: the same numbers of the same step are written once.
        self._start, self._there = start, _drop_after(path, start) if path.exists() else []
        self._lines = Lines(path)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        # JSON has no nan; null keeps the line readable by every parser.
        clean = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}
        if step == self._start and clean in self._there:
            return
        self._lines.add({"step": step, "time": round(time.time(), 3), **clean})

    def picture(self, step: int, name: str, path: Path) -> None:
        """Pictures are files in the workdir already."""

    def close(self) -> None:
        self._lines.close()


def _drop_after(path: Path, start: int) -> list[dict]:
    """Drop what a killed run may leave: half a line, and steps after its last checkpoint, which come again.

    -> the numbers that are there of the step `start`.
    """
    there = []

    def keep(line: bytes) -> bool:
        try:
            row = json.loads(line)
            step = row["step"]
            if step == start:
                there.append({name: value for name, value in row.items() if name not in ("step", "time")})
            return step <= start
        except (ValueError, KeyError, TypeError):
            return False

    old = path.read_bytes()
    new = b"".join(line + b"\n" for line in old.split(b"\n") if keep(line))
    if old.startswith(new):
        # What goes is the end, mostly, which can be cut off on a full disk too.
        if old != new:
            os.truncate(path, len(new))
    else:
        part = path.with_suffix(".part")
        part.write_bytes(new)
        part.replace(path)
    return there


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
        self._failing: set[str] = set()
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
            with self._survived(writer):
                writer.close()

    @contextmanager
    def _survived(self, writer: Any) -> Iterator[None]:
        """A disk that is full or gone ends no training; it is told when that begins and when it is over."""
        name = type(writer).__name__
        try:
            yield
        except OSError as error:
            if name not in self._failing:
                self._failing.add(name)
                self.console.print(
                    f"{name} cannot write ({error.strerror}); training goes on.",
                    style="yellow",
                    highlight=False,
                )
        else:
            if name in self._failing:
                self._failing.discard(name)
                self.console.print(f"{name} writes again.", highlight=False)

    def progress(self, step: int) -> None:
        """Move the bar without a report."""
        if self._bar:
            self._bar.update(step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            with self._survived(writer):
                writer.scalars(step, values)

    def picture(self, step: int, name: str, path: Path) -> None:
        for writer in self._writers:
            with self._survived(writer):
                writer.picture(step, name, path)
