"""What is done to a small training, at which moment of it: KINDS of faults by name, which mmgen_jax/faults.py drives."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np
import orbax.checkpoint as ocp

from mmgen_jax import train as loop
from mmgen_jax.core import step_folders, writer
from mmgen_jax.core.checkpoint import Checkpointer, CheckpointError
from mmgen_jax.data import loader
from mmgen_jax.data.loader import Examples
from mmgen_jax.experiment import Experiment

if TYPE_CHECKING:
    from mmgen_jax.faults import Job

STEPS, EVERY, EXAMPLES, BATCH = 8, 2, 64, 8  # one epoch: every image is used in exactly one step
BUSY_LIMIT = 10.0  # seconds in which a folder that is being written to must become free
PEER_LIMIT = 120.0  # seconds after which the survivor of a dead peer must have ended


class Broke(NamedTuple):
    """What a kind of fault did.

    Attributes:
      what: which file, moment or example.
      sign: a pattern that the log of the recovering run must match; "" where nothing but the right end shows it.
      reached: the last step that was finished before.
      real: see `Record`.
      absent: images that the unbroken run lacks too.
    """

    what: str
    sign: str = ""
    reached: int = 0
    real: bool = True
    absent: tuple[int, ...] = ()


# ------------------------------------------------------------------------------------------------- where a child dies


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _timer(seconds: float, do: Callable = _die) -> None:
    timer = threading.Timer(seconds, do)
    timer.daemon = True
    timer.start()


def _hook(
    owner: Any, name: str, call: int, before: Callable | None = None, after: Callable | None = None
) -> None:
    """Have `before` and `after` called around the call-th call of owner.name."""
    inner, count = getattr(owner, name), 0

    def hooked(*args, **kwargs):
        nonlocal count
        count += 1
        mine = count == call
        if mine and before:
            before(*args)
        result = inner(*args, **kwargs)
        if mine and after:
            after()
        return result

    setattr(owner, name, hooked)


def _half_a_line(rng: np.random.Generator) -> None:
    def write(self, step, values):
        row = json.dumps({"step": step, **values})
        os.write(self._lines._file.fileno(), row[: len(row) // 2].encode())
        _die()

    _hook(writer.JsonLines, "scalars", int(rng.integers(2, STEPS)), write)


def _half_deleted(rng: np.random.Generator) -> None:
    def delete(folder):
        doomed = folder.rename(folder.with_name(folder.name + step_folders.DELETED))
        files = sorted(path for path in doomed.rglob("*") if path.is_file())
        for path in files[: int(rng.integers(0, len(files)))]:
            path.unlink()
        _die()

    _hook(step_folders, "delete", 1, delete)


def _storm(number: int) -> Callable:
    """Signals from another thread, for a third of a second."""

    def send():
        for _ in range(100):
            os.kill(os.getpid(), number)
            time.sleep(0.003)

    def arm(rng):
        _hook(writer.Writers, "progress", int(rng.integers(1, STEPS - 1)), lambda *_: _timer(0.0, send))

    return arm


def _any_time(rng: np.random.Generator) -> None:
    _timer(rng.uniform(0.0, 2.5))


SAVES = STEPS // EVERY
# Each gets a child to die, or to be told to stop, at one moment of its run; which step or save it is, is drawn.
MOMENTS: dict[str, Callable[[np.random.Generator], None]] = {
    "start": lambda rng: _hook(Experiment, "settle", 1, lambda *_: _timer(rng.uniform(0, 0.01))),
    "restore": lambda rng: _hook(Checkpointer, "restore", 1, lambda *_: _timer(rng.uniform(0, 0.1))),
    "first compile": lambda rng: _hook(loop, "_compile", 1, lambda *_: _timer(rng.uniform(0, 0.8))),
    "step": lambda rng: _hook(writer.Writers, "progress", int(rng.integers(1, STEPS)), _die),
    "copy to the host": lambda rng: _hook(
        ocp.AsyncCheckpointer, "save", int(rng.integers(1, SAVES)), lambda *_: _timer(rng.uniform(0, 0.02))
    ),
    "write": lambda rng: _hook(
        ocp.AsyncCheckpointer, "save", int(rng.integers(1, SAVES)), None, lambda: _timer(rng.uniform(0, 0.05))
    ),
    "all written": lambda rng: _hook(step_folders, "seal", int(rng.integers(1, SAVES)), _die),
    "commit": lambda rng: _hook(step_folders, "sync", int(rng.integers(1, 8)), _die),
    "committed": lambda rng: _hook(
        ocp.AsyncCheckpointer, "wait_until_finished", int(rng.integers(1, SAVES)), None, _die
    ),
    "garbage collection": _half_deleted,
    "evaluation": lambda rng: _hook(loop, "run_evaluator", 1, lambda *_: _timer(rng.uniform(0, 0.2))),
    "evaluated": lambda rng: _hook(loop, "run_evaluator", 1, None, _die),
    "half a line of metrics": _half_a_line,
    "any time": _any_time,
    "SIGTERM storm": _storm(signal.SIGTERM),
    "SIGINT storm": _storm(signal.SIGINT),
    "SIGUSR1 storm": _storm(signal.SIGUSR1),
}


# ------------------------------------------------------------------------------------------------------- kinds of faults

Kind = Callable[["Job"], Any]
DAMAGED = r"4 is damaged .*4\.aside"


def _killed(moment: str) -> Kind:
    @contextmanager
    def kind(job: "Job") -> Iterator[Broke]:
        for attempt in range(9):
            shutil.rmtree(job.workdir, ignore_errors=True)
            job.said, job.reached = "", 0
            if moment == "restore" or (moment == "start" and job.rng.random() < 0.5):
                job.start_half()
            job.seed = (*job.seed[:2], attempt)
            (code,) = job.child(moment)
            if code == -signal.SIGKILL:
                break
        else:
            raise RuntimeError(
                f"{moment}: nine children ended before they could be killed ({job.said[-500:]})"
            )
        partial = step_folders.leftovers(job.checkpoints)
        sign = "half-written when an earlier process ended, deleted" if any(
            not path.name.endswith(step_folders.DELETED) for path in partial
        ) else ""  # fmt: skip
        left = ", ".join(path.name for path in partial)
        yield Broke(f"in step {job.reached + 1}{', left ' + left if left else ''}", sign, job.reached)

    return kind


def _told(moment: str, codes: tuple[int, ...], sign: str) -> Kind:
    @contextmanager
    def kind(job: "Job") -> Iterator[Broke]:
        (code,) = job.child(moment)
        if code not in codes:
            raise RuntimeError(
                f"{moment}: the child ended with status {code}, not one of {codes}: {job.said[-500:]}"
            )
        yield Broke(f"status {code} after step {job.reached}", sign, job.reached)

    return kind


@contextmanager
def _peer_killed(job: "Job") -> Iterator[Broke]:
    victim = int(job.rng.integers(job.processes))
    begin = time.perf_counter()
    codes = job.child("step", victim)
    survivor = codes[1 - victim]
    if survivor is None:
        raise RuntimeError(f"the peer of a killed process still ran {PEER_LIMIT:.0f} s later")
    yield Broke(
        f"process {victim} of {job.processes} after step {job.reached}; the other ended with status {survivor}, "
        f"{time.perf_counter() - begin:.0f} s after the start",
        "",
        job.reached,
    )


def _flip(path: Path, rng: np.random.Generator) -> str:
    data = bytearray(path.read_bytes())
    bit = int(rng.integers(8 * len(data)))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit}"


def _truncate(path: Path, rng: np.random.Generator) -> str:
    size = int(rng.integers(path.stat().st_size))
    os.truncate(path, size)
    return f"cut to {size} bytes"


def _overwrite(path: Path, rng: np.random.Generator) -> str:
    path.write_bytes(rng.bytes(path.stat().st_size))
    return "random bytes"


def _swap(path: Path, rng: np.random.Generator) -> str:
    files = [p for p in _sealed(path.parents[0]) if p.read_bytes() != path.read_bytes()]
    files = files or [p for p in _sealed(_step_of(path)) if p.read_bytes() != path.read_bytes()]
    other = files[int(rng.integers(len(files)))]
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)
    return f"with {other.name}"


def _step_of(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.name.isdigit())


def _sealed(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in step_folders.UNSEALED)


def _file(break_it: Callable[[Path, np.random.Generator], str | None]) -> Kind:
    """One file of the newest checkpoint."""

    @contextmanager
    def kind(job: "Job") -> Iterator[Broke]:
        job.start_half()
        newest = job.checkpoints / "4"
        files = [path for path in _sealed(newest) if path.stat().st_size]
        path = files[int(job.rng.integers(len(files)))]
        how = break_it(path, job.rng)
        what = f"4/{path.relative_to(newest)}{': ' + how if how else ''}"
        yield Broke(what, DAMAGED, job.reached)

    return kind


def _folder(break_it: Callable[[Path, np.random.Generator], str], what: str, sign: str) -> Kind:
    """The folder of checkpoints, where 2 and 4 are whole."""

    @contextmanager
    def kind(job: "Job") -> Iterator[Broke]:
        job.start_half()
        break_it(job.checkpoints, job.rng)
        yield Broke(what, sign, job.reached)

    return kind


def _steps_swapped(folder: Path, rng: np.random.Generator) -> None:
    (folder / "2").rename(folder / "x")
    (folder / "4").rename(folder / "2")
    (folder / "x").rename(folder / "4")


def _unread(folder: Path, rng: np.random.Generator) -> None:
    """What Orbax writes after the fingerprints, and nobody reads."""
    for path in (folder / "4").rglob("*"):
        if path.name in step_folders.UNSEALED and path.is_file():
            path.unlink() if rng.random() < 0.5 else path.write_bytes(b"")


def _each_flipped(folder: Path, rng: np.random.Generator) -> None:
    for step in ("2", "4"):
        files = [path for path in _sealed(folder / step) if path.stat().st_size]
        _flip(files[int(rng.integers(len(files)))], rng)


@contextmanager
def _clock_went_back(job: "Job") -> Iterator[Broke]:
    job.start_half()
    now = time.time
    with mock.patch.object(time, "time", lambda: now() - 1e6):
        yield Broke("by twelve days", "", job.reached, False)


# --- the disk


def can_mount() -> bool:
    """Whether this process may mount file systems."""
    if os.geteuid() or not shutil.which("mount"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
        return True


@contextmanager
def _at_steps(do: Mapping[int, Callable[[], Any]]) -> Iterator[None]:
    """Call do[step]() as the loop moves its bar to that step."""
    inner = writer.Writers.progress

    def progress(self, step):
        inner(self, step)
        if step in do:
            do[step]()

    with mock.patch.object(writer.Writers, "progress", progress):
        yield


class _Imitated:
    """Opening a new checkpoint's first file fails, as it does on a full or read-only disk."""

    def __init__(self, code: int):
        self.code, self.on = code, False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        inner, me = Path.open, self

        def opened(path, *args, **kwargs):
            if me.on and step_folders.PARTIAL in path.name:
                raise OSError(me.code, os.strerror(me.code))
            return inner(path, *args, **kwargs)

        with mock.patch.object(Path, "open", opened):
            yield

    def start(self) -> None:
        self.on = True

    def end(self) -> None:
        self.on = False


class _Tmpfs:
    """A small disk for the run, which can be filled to its last byte."""

    def __init__(self, job: "Job"):
        self.folder = job.driver.root / "disk"
        job.workdir = self.folder / "run"

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(self.folder)], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)

    def start(self) -> None:
        with open(self.folder / "ballast", "wb", buffering=0) as file:
            for size in (2**20, 4096, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def end(self) -> None:
        (self.folder / "ballast").unlink()


class _ReadOnly:
    """A read-only mount over the checkpoints."""

    def __init__(self, job: "Job"):
        self.folder, self.mounted = job.checkpoints, False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self.mounted:
                self.end()

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "--bind", str(self.folder), str(self.folder)], check=True)
        self.mounted = True
        command, until = ["mount", "-o", "remount,ro,bind", str(self.folder)], time.monotonic() + BUSY_LIMIT
        # Refused while the background save holds a file open for writing.
        while subprocess.run(command, capture_output=True).returncode:
            if time.monotonic() > until:
                raise RuntimeError(f"{self.folder} could not be made read-only within {BUSY_LIMIT:g} seconds")
            time.sleep(0.01)

    def end(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)
        self.mounted = False


def _disk(code: int, mounted: type, for_good: bool = False) -> Kind:
    """A disk that takes nothing for two steps, or until the run ends because of it."""

    @contextmanager
    def kind(job: "Job") -> Iterator[Broke]:
        real = job.driver.mounts
        disk = mounted(job) if real else _Imitated(code)
        step = int(job.rng.choice((2, 4) if for_good else (2, 6)))
        with disk():
            if for_good:
                with _at_steps({step: disk.start}):
                    error = job.train()
                disk.end()
                if not isinstance(error, CheckpointError):
                    raise RuntimeError(f"the run on a full disk ended with {error!r}")
                yield Broke(
                    f"from step {step} on",
                    f"saves in a row failed .*{os.strerror(code)}|MB free",
                    job.reached,
                    real,
                )
            else:
                with _at_steps({step: disk.start, step + 1: disk.end}):
                    yield Broke(f"in step {step}", r"step \d+ could not be saved: ", 0, real)

    return kind


@contextmanager
def _write_fails(job: "Job") -> Iterator[Broke]:
    """In the background, after the arrays are written."""
    code = int(job.rng.choice([errno.EIO, errno.EDQUOT, errno.ENOSPC, errno.ESTALE]))
    call, inner, count = int(job.rng.integers(1, SAVES)), step_folders.seal, 0

    def seal(folder, step):
        nonlocal count
        count += 1
        if count == call:
            raise OSError(code, os.strerror(code))
        inner(folder, step)

    with mock.patch.object(step_folders, "seal", seal):
        yield Broke(
            f"{errno.errorcode[code]}, save {call}",
            re.escape(f"could not be saved: {os.strerror(code)}"),
            0,
            False,
        )


# --- the data


def _image(break_it: Callable[[Path, np.random.Generator], Any], sign: str) -> Kind:
    """An image that the run uses after it is started again."""

    @contextmanager
    def kind(job: "Job") -> Iterator[Broke]:
        job.start_half()
        index = job.driver.used_at(job.config, int(job.rng.integers(5, STEPS + 1)))
        path = job.driver.data / f"{index}.png"
        with kept_as_is(path):
            break_it(path, job.rng)
            yield Broke(path.name, sign, job.reached, absent=(index,))

    return kind


@contextmanager
def kept_as_is(*paths: Path) -> Iterator[None]:
    """Files that are at the end what they were at the begin."""
    content = [path.read_bytes() for path in paths]
    try:
        yield
    finally:
        for path, data in zip(paths, content, strict=True):
            path.write_bytes(data)


def _worker(error: Callable[[], BaseException] | None) -> Kind:
    """A thread of the loader dies, or waits for a slow disk, over one example."""

    @contextmanager
    def kind(job: "Job") -> Iterator[Broke]:
        index = job.driver.used_at(job.config, int(job.rng.integers(2, STEPS + 1)))
        left = [True]

        class Failing(Examples):
            """Of runs that begin from here on: threads of an earlier run may still be reading ahead, and theirs are whole."""

            def __call__(self, number, rng):
                if number == index and left:
                    left.clear()
                    if error is None:
                        time.sleep(1.0)
                    else:
                        raise error()
                return super().__call__(number, rng)

        with mock.patch.object(loader, "Examples", Failing):
            if error is None:
                yield Broke(f"a second for example {index}", "", 0, False)
                return
            raised = job.train()
        if raised is None:
            raise RuntimeError("the run went on without the example whose worker died")
        yield Broke(f"{type(raised).__name__} over example {index}", "planted", job.reached, False)

    return kind


KINDS: dict[str, Kind] = {
    **{f"kill -9: {moment}": _killed(moment) for moment in MOMENTS if "storm" not in moment},
    "SIGTERM storm": _told("SIGTERM storm", (75,), "Stopped and saved at step"),
    "SIGINT storm": _told("SIGINT storm", (75, 130, 1), ""),
    "SIGUSR1 storm": _told("SIGUSR1 storm", (0,), "saved, because SIGUSR1 came"),
    "file truncated": _file(_truncate),
    "file emptied": _file(lambda path, _: path.write_bytes(b"") and None),
    "file deleted": _file(lambda path, _: path.unlink()),
    "file bit-flipped": _file(_flip),
    "file overwritten": _file(_overwrite),
    "files swapped": _file(_swap),
    "steps swapped": _folder(_steps_swapped, "2 and 4", "is step 2 under another's name"),
    "every step bit-flipped": _folder(
        _each_flipped, "2 and 4", r"4 is damaged [\s\S]*2 is damaged [\s\S]*is whole"
    ),
    "arrays deleted": _folder(lambda folder, _: shutil.rmtree(folder / "4" / "state"), "4/state", DAMAGED),
    "step deleted": _folder(lambda folder, _: shutil.rmtree(folder / "4"), "4", "resuming at step 2"),
    "unread file damaged": _folder(_unread, "4/_CHECKPOINT_METADATA", "resuming at step 4"),
    "empty step folder": _folder(
        lambda folder, _: (folder / "6").mkdir(), "6", r"6 holds no checkpoint.*6\.aside"
    ),
    "clock went back": _clock_went_back,
    "disk full for a while": _disk(errno.ENOSPC, _Tmpfs),
    "disk full for good": _disk(errno.ENOSPC, _Tmpfs, for_good=True),
    "folder read-only": _disk(errno.EROFS, _ReadOnly),
    "write fails": _write_fails,
    "image vanished": _image(lambda path, _: path.unlink(), "missing file"),
    "image emptied": _image(lambda path, _: path.write_bytes(b""), "zero bytes"),
    "image cut": _image(_truncate, "truncated|zero bytes|not an image"),
    "image overwritten": _image(_overwrite, "not an image"),
    "loader's worker killed": _worker(lambda: MemoryError("planted")),
    "loader's disk failed": _worker(lambda: OSError(errno.EIO, "planted")),
    "loader stalled": _worker(None),
    "peer killed in a collective": _peer_killed,
}
RARE = ("peer killed in a collective",)  # it takes six processes: once in 60
# No kind by itself: what the kinds that begin with half a run begin with.
MOMENTS["half"] = lambda rng: _hook(step_folders, "seal", 3, _die)
