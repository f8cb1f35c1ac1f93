"""Goodput: what became of every second of a run, across all its starts in one workdir; kept in time.jsonl."""

import bisect
import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from mmgen_jax import __version__
from mmgen_jax.core.writer import Lines, read_rows

FILE = "time.jsonl"
# What a process can be busy with, and what shows only in hindsight.
KINDS = {
    "step": "training steps that count",
    "data": "waiting for the next batch",
    "save": "the loop waits for a checkpoint",
    "evaluation": "evaluations",
    "report": "pictures of curves, profiles, and closing files at the end",
    "compile": "compiling the training step, or reading it from the compilation cache",
    "start": "everything else before a first step: imports, data, the first or the restored state",
    "lost": "work behind the checkpoint from which a later start went on",
    "rolled_back": "work that a rollback undid, because steps in a row were not finite",
    "away": "no process was running, or it was killed before it could write",
}
HINDSIGHT = ("lost", "rolled_back", "away")
WRITE_EVERY = 10.0  # seconds: what a kill leaves unaccounted, at most


class Ledger:
    """Accounts for every second from `began` on: at each moment the run is busy with one of KINDS, at first "start".

    Use it as a context manager. A thread writes every few seconds, whatever the run is busy with.

    Args:
      path: the file, to which lines are added; None writes nothing, as on all processes but the first.
      began: `time.time()` when the process began.
      facts: of this start, as `here` gives them.
    """

    def __init__(self, path: Path | None, began: float, facts: Mapping[str, Any] | None = None):
        self._path, self._lines = path, Lines(path) if path else None
        self._lock, self._over = threading.Lock(), threading.Event()
        # The step that is being made, or the last; None before the run knows where it goes on.
        self._step: int | None = None
        self._kind, self._since = "start", time.perf_counter() - max(time.time() - began, 0.0)
        self._spent = dict.fromkeys((kind for kind in KINDS if kind not in HINDSIGHT), 0.0)
        self._written = dict(self._spent)
        # All starts up to `set_out`, and what of it was this one's.
        self._before, self._own = dict.fromkeys(KINDS, 0.0), dict(self._spent)
        self._add({"began": round(began, 3), **(facts or {})})
        self._thread = threading.Thread(target=self._keep_writing, name="goodput", daemon=True)

    def __enter__(self) -> "Ledger":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        del trace
        self._over.set()
        self._thread.join()
        end = "finished" if kind is None else f"{kind.__name__}: {error}".splitlines()[0][:300]
        self.write(end=end)
        if self._lines:
            with contextlib.suppress(OSError):
                self._lines.close()

    def switch(self, kind: str) -> None:
        """From now on the run is busy with `kind`."""
        with self._lock:
            self._settle()
            self._kind = kind

    @contextmanager
    def phase(self, kind: str) -> Iterator[None]:
        """What happens inside is `kind`; after it comes what was before."""
        before = self._kind
        try:
            self.switch(kind)
            yield
        finally:
            self.switch(before)

    def set_out(self, step: int) -> None:
        """The run goes on from `step`: at its start, and after each rollback."""
        self._step = step if self._step is None else self._step
        self.write(**{"from": step})
        self._step, self._own = step, dict(self._written)
        self.switch("start")
        if self._path:
            self._before = totals(read(self._path))

    def at(self, step: int) -> None:
        """The loop begins `step`."""
        if self._kind == "start":
            self.write()
        self.switch("step")
        self._step = step

    def spent(self) -> dict[str, float]:
        """Seconds of this process by kind, up to now."""
        with self._lock:
            self._settle()
            return dict(self._spent)

    def goodput(self) -> float:
        """The share of steps that count in all the time that the run's processes ran, over all starts."""
        spent, before = self.spent(), self._before
        new = {kind: value - self._own[kind] for kind, value in spent.items()}
        ran = sum(new.values()) + sum(before.values()) - before["away"]
        return (new["step"] + before["step"]) / max(ran, 1e-9)

    def write(self, **more: Any) -> None:
        """Add a line: what was spent since the last one."""
        with self._lock:
            self._settle()
            new = {kind: round(value - self._written[kind], 4) for kind, value in self._spent.items()}
            seconds = {kind: value for kind, value in new.items() if value > 0}
            for kind, value in seconds.items():  # not the sum itself, or what rounding takes would be gone
                self._written[kind] += value
            self._add({"time": round(time.time(), 3), "step": self._step, "seconds": seconds, **more})

    def _settle(self) -> None:
        now = time.perf_counter()
        self._spent[self._kind] += now - self._since
        self._since = now

    def _add(self, row: dict) -> None:
        if self._lines:
            with contextlib.suppress(OSError):  # a full disk ends no run, and the line waits
                self._lines.add(row)

    def _keep_writing(self) -> None:
        while not self._over.wait(WRITE_EVERY):
            self.write()


@dataclasses.dataclass
class Start:
    """What one process did.

    Attributes:
      began, ended: `time.time()` at the process's begin, and when it wrote its last line.
      step: where it went on; None if it did not get there. last: the step at its last line.
      ready: seconds until its first step; None if it made none.
      seconds: by KINDS; "away" is the time until the next start.
      end: "finished", or the error that ended it; "" while it runs, and where it was killed.
      facts: as the Ledger got them.
    """

    began: float
    ended: float
    step: int | None
    last: int | None
    ready: float | None
    seconds: dict[str, float]
    end: str
    facts: dict[str, Any]


def read(path: Path) -> list[Start]:
    """The starts of a run, in order, from its time.jsonl; what a later start or a rollback did again is not "step" any more.

    Raises:
      FileNotFoundError: the workdir has none; says what makes one.
    """
    if not path.exists():
        raise FileNotFoundError(f"No {path}. A workdir gets one when scripts/train.py starts a run in it.")
    groups: list[list[dict]] = []
    for row in read_rows(path):
        if "began" in row:
            groups.append([row])
        elif groups:
            groups[-1].append(row)
    starts: list[Start] = []
    # (step, kind): from there the work was done again, the earliest step first. Lines are read from the last one back.
    undone: list[tuple[int, str]] = []
    for first, *rows in reversed(groups):
        seconds = dict.fromkeys(KINDS, 0.0)
        sets_out = [i for i, row in enumerate(rows) if "from" in row]
        for i, row in reversed(list(enumerate(rows))):
            if i in sets_out:
                undone = [mark for mark in undone if mark[0] < row["from"]]
                undone.append((row["from"], "lost" if i == sets_out[0] else "rolled_back"))
            marks = 0 if row["step"] is None else bisect.bisect_left(undone, row["step"], key=lambda m: m[0])
            for kind, value in row["seconds"].items():
                seconds[undone[marks - 1][1] if marks else kind] += value
        ended = rows[-1]["time"] if rows else first["began"]
        if starts:
            # A clock that went back makes nobody gain time.
            seconds["away"] = max(starts[-1].began - ended, 0.0)
        starts.append(
            Start(
                began=first["began"],
                ended=ended,
                step=rows[sets_out[0]]["from"] if sets_out else None,
                last=rows[-1]["step"] if rows else None,
                ready=_ready(rows),
                seconds=seconds,
                end=rows[-1].get("end", "") if rows else "",
                facts={key: value for key, value in first.items() if key != "began"},
            )
        )
    return starts[::-1]


def _ready(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of the lines before the first in which a step was made."""
    until = 0.0
    for row in rows:
        if "step" in row["seconds"]:
            return until
        until += sum(row["seconds"].values())
    return None


def totals(starts: Sequence[Start]) -> dict[str, float]:
    """Seconds by kind of all starts together; their sum is the time since the first one."""
    return {kind: sum(start.seconds[kind] for start in starts) for kind in KINDS}


def here() -> dict[str, Any]:
    """Where this process runs: {"host", "devices", "processes", "versions": {package: version}}."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "host": socket.gethostname(),
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "versions": {"mmgen_jax": __version__, "python": platform.python_version(), **versions},
    }


def process_began() -> float:
    """`time.time()` when this process was started, before its imports; where /proc does not tell, now."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - age
    except (OSError, AttributeError):
        return time.time()
