"""Goodput: what became of every second of a run, across all its starts in one workdir; kept in time.jsonl."""

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmgen_jax.core.writer import read_rows

FILE = "time.jsonl"
# What a process can be busy with, and what shows only in hindsight.
KINDS = {
    "step": "training steps that count",
    "data": "waiting for the next batch",
    "save": "the loop waits for a checkpoint",
    "evaluation": "evaluations",
    "report": "pictures of curves, and profiles",
    "compile": "compiling the training step",
    "start": "from the process's start to the first compilation: imports, data, the first or the restored state",
    "lost": "work behind the checkpoint from which the next start went on",
    "away": "no process was running, or it was killed before it could write",
}
HINDSIGHT = ("lost", "away")
WRITE_EVERY = 10.0  # seconds: what a kill leaves unaccounted, at most, while steps are being made


class Ledger:
    """Accounts for every second from `began` on: at each moment the run is busy with one of KINDS, at first "start".

    Args:
      path: the file, to which each report adds a line; None writes nothing, as on all processes but the first.
      step: the one from which this start goes on.
      began: `time.time()` when the process began.
    """

    def __init__(self, path: Path | None, step: int, began: float):
        self._path, self._step = path, step
        self._kind, self._since = "start", time.perf_counter() - max(time.time() - began, 0.0)
        self._spent = dict.fromkeys((kind for kind in KINDS if kind not in HINDSIGHT), 0.0)
        self._written, self._last_write = dict(self._spent), time.perf_counter()
        self._earlier = dict.fromkeys(KINDS, 0.0)
        if path is not None:
            self._append({"began": round(began, 3), "step": step})
            self._earlier = totals(read(path))
            self.write()

    def switch(self, kind: str) -> None:
        """From now on the run is busy with `kind`."""
        self._settle()
        self._kind = kind

    @contextmanager
    def phase(self, kind: str) -> Iterator[None]:
        """What happens inside is `kind`; after it comes what was before."""
        before = self._kind
        self.switch(kind)
        try:
            yield
        finally:
            self.switch(before)

    def at(self, step: int) -> None:
        """The loop begins `step`."""
        if time.perf_counter() - self._last_write > WRITE_EVERY:
            self.write()
        self._step = step

    def spent(self) -> dict[str, float]:
        """Seconds of this process by kind, up to now."""
        self._settle()
        return dict(self._spent)

    def goodput(self) -> float:
        """The share of steps that count in all the time that the run's processes ran, over all starts."""
        spent, earlier = self.spent(), self._earlier
        ran = sum(spent.values()) + sum(earlier.values()) - earlier["away"]
        return (spent["step"] + earlier["step"]) / max(ran, 1e-9)

    def write(self) -> None:
        """Add what was spent since the last line."""
        spent = self.spent()
        seconds = {k: round(v - self._written[k], 4) for k, v in spent.items() if v > self._written[k]}
        self._last_write = time.perf_counter()
        if self._append({"time": round(time.time(), 3), "step": self._step, "seconds": seconds}):
            self._written = spent

    close = write

    def _settle(self) -> None:
        now = time.perf_counter()
        self._spent[self._kind] += now - self._since
        self._since = now

    def _append(self, row: dict) -> bool:
        """Whether it was written: a full disk is no reason to end a run, and the next line has it all."""
        if self._path is None:
            return True
        try:
            # Opened anew each time, as it is seldom; what a kill may have left of a line is closed by a new one.
            with self._path.open("a+b") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
                newline = b"" if file.read(1) in (b"", b"\n") else b"\n"
                file.write(newline + json.dumps(row).encode() + b"\n")
        except OSError:
            return False
        return True


@dataclasses.dataclass
class Start:
    """What one process did: `step` is where it began, `last` the step at which its last line was written."""

    began: float
    step: int
    last: int
    ended: float
    seconds: dict[str, float]


def read(path: Path) -> list[Start]:
    """The starts of a run, in order, from its time.jsonl; steps that a later start made again are "lost".

    The time until the next start is "away", in the earlier one's seconds.

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
    starts = []
    redone = float("inf")  # all behind this step came again
    following = None
    for first, *rows in reversed(groups):
        seconds = dict.fromkeys(KINDS, 0.0)
        for row in rows:
            for kind, value in row["seconds"].items():
                seconds["lost" if row["step"] > redone else kind] += value
        final = rows[-1] if rows else {"time": first["began"], "step": first["step"]}
        if following is not None:
            # A clock that went back makes nobody gain time.
            seconds["away"] = max(following.began - final["time"], 0.0)
        following = Start(first["began"], first["step"], final["step"], final["time"], seconds)
        starts.append(following)
        redone = min(redone, first["step"])
    return starts[::-1]


def totals(starts: Sequence[Start]) -> dict[str, float]:
    """Seconds by kind of all starts together; their sum is the time since the first one."""
    return {kind: sum(start.seconds[kind] for start in starts) for kind in KINDS}


def process_began() -> float:
    """`time.time()` when this process was started, before its imports; where /proc does not tell, now."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - age
    except (OSError, AttributeError):
        return time.time()
