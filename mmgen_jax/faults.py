"""A small training that is broken on purpose, started again, and compared bit for bit with one that nothing broke.

scripts/soak.py runs it and shows what came out; docs/reliability.md says what that was.
"""

import errno
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from rich.console import Console

from mmgen_jax import train as loop
from mmgen_jax.core import checkpoint, step_folders, writer
from mmgen_jax.core.checkpoint import Checkpointer, CheckpointError
from mmgen_jax.data import sources
from mmgen_jax.data.loader import Examples, loader
from mmgen_jax.experiment import Experiment

STEPS, EVERY, EXAMPLES, BATCH = 8, 2, 64, 8  # one epoch: every image is used in exactly one step
CHILD_LIMIT = 120.0  # seconds that a child may take before it counts as hanging
PEER_LIMIT = 120.0  # seconds after which the survivor of a dead peer must have ended
CLOCKS = (
    "time",
    "examples_per_s",
    "step_time",
    "data_wait",
    "goodput",
    "mfu",
)  # what no two runs have in common
# A child is a real process that is really killed; it is forked from one that has imported all this and started no device.
PRELOAD = ("mmgen_jax.faults", "mmgen_jax.tasks.captioning", "mmgen_jax.tasks.contrastive",
           "mmgen_jax.tasks.text_to_image", "mmgen_jax.evaluators.likelihood", "mmgen_jax.evaluators.retrieval",
           "mmgen_jax.evaluators.samples")  # fmt: skip


class Record(NamedTuple):
    """One fault and what came of it.

    Attributes:
      number, seed: by which it can be had again.
      task, kind: what was trained, and what was done to it.
      what: the file, moment or example that it hit.
      real: it was done (a kill, a damaged file, a full or read-only mount); otherwise the failing call was imitated.
      detected: the log named it, or it left nothing to be named and the run went on from the newest whole step.
      recovered: the same command, with nothing done by hand, reached the last step.
      lost: steps that had to be trained again.
      allowed: steps since the newest whole checkpoint, which a fault may cost.
      equal: parameters, optimizer, averages, statistics, random key, guard and the rows of metrics.jsonl are those of the
        unbroken run, bit for bit.
      seconds: it took so long.
      said: the line that named it.
      problem: why it did not pass, else "".
    """

    number: int
    seed: int
    task: str
    kind: str
    what: str
    real: bool
    detected: bool
    recovered: bool
    lost: int
    allowed: int
    equal: bool
    seconds: float
    said: str
    problem: str

    @property
    def passed(self) -> bool:
        return self.detected and self.recovered and self.equal and self.lost <= self.allowed


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


def small(config: ml_collections.ConfigDict, data: Path) -> ml_collections.ConfigDict:
    """A tiny config cut down to `STEPS` steps on the images that `write_images` made, saved often, evaluated once on the way."""
    task, size = config.task.name, 32
    text = f"text({config.task.text.max_len})" if task == "text_to_image" else "text(24, per_image=2)"
    text = "caption(max_len=23, per_image=2)" if task == "captioning" else text
    source = dict(name="jsonl", path=str(data / "captions.jsonl"))
    scenes = dict(name="scenes", split="val", size=size, length=8)
    first = f"{text.removesuffix(')')}, which='first')"
    held = dict(source=scenes, transforms=first, batch_size=BATCH, every=4)
    evaluator = dict(
        captioning=dict(name="likelihood"),
        contrastive=dict(name="retrieval", pictures=1),
        text_to_image=dict(name="samples", rows=1, columns=2),
    )
    evals = dict(val=held | evaluator[task])
    values = {key: value for key, value in config.to_dict().items() if key != "judges"}
    values["task"].get("decode", {}).pop("beam", None)
    values["data"] |= dict(
        source=source, transforms=f"decode | resize({size}) | {text}", batch_size=BATCH, shuffle=True
    )
    values["data"]["tokenizer"] = dict(name="words", min_count=1)
    values["optimizer"]["warmup"] = 2
    if task == "captioning":
        values["task"]["model"]["decoder"]["dropout"] = 0.3
        values["optimizer"]["ema"] = 0.9
    values |= dict(steps=STEPS, log_every=1, evals=evals, checkpoint=dict(every=EVERY, keep=2, failures=2))
    return ml_collections.ConfigDict(values)


def write_images(folder: Path) -> None:
    """Drawn scenes as PNG files, and their captions in captions.jsonl."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    scenes, rows = sources.make(dict(name="scenes", size=32, length=EXAMPLES)), []
    for i in range(EXAMPLES):
        example = scenes[i]
        Image.fromarray(example["image"]).save(folder / f"{i}.png")
        rows.append(json.dumps({"image": f"{i}.png", "captions": example["captions"]}) + "\n")
    (folder / "captions.jsonl").write_text("".join(rows), encoding="utf-8")


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


def _child(
    config: dict, workdir: str, cache: str | None, moment: str, seed: tuple, reached: Any, peer: tuple
) -> None:
    """A process that trains, and ends at its moment. peer: (address, index, count) of several."""
    with open(f"{workdir}.{peer[1]}.log", "w", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        jax.config.update("jax_compilation_cache_dir", cache)
        if peer[2] > 1:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            jax.distributed.initialize(*peer[:1], num_processes=peer[2], process_id=peer[1])

        def count(_, step):
            reached.value = step

        with_count = writer.Writers.progress
        writer.Writers.progress = lambda self, step: (count(self, step), with_count(self, step))[1]
        if moment:
            MOMENTS[moment](np.random.default_rng(seed))
        status = 1
        try:
            loop.train(ml_collections.ConfigDict(config), workdir, console=Console(file=log, width=300))
            status = 0
        except KeyboardInterrupt as stop:
            print(stop)
            status = getattr(stop, "status", 130)
        except BaseException:
            traceback.print_exc()
        log.flush()
        os._exit(status)


# ------------------------------------------------------------------------------------------------------- kinds of faults


class Job:
    """One fault's run: its folder, how to start it, and all that it said."""

    def __init__(
        self, driver: "Driver", task: str, seed: tuple, processes: int = 1, workdir: Path | None = None
    ):
        self.driver, self.task, self.seed, self.processes = driver, task, seed, processes
        self.rng = np.random.default_rng(seed)
        self.config = driver.configs[task]
        self.workdir, self.said, self.reached = workdir or driver.root / "run", "", 0
        shutil.rmtree(self.workdir, ignore_errors=True)

    @property
    def checkpoints(self) -> Path:
        return self.workdir / "checkpoints"

    def start_half(self) -> None:
        """The folder of a run that was killed in step 6: checkpoints 2 and 4 are whole, 6 is half-written."""
        self.reached = self.driver.half(self.task, self.workdir)

    def child(self, moment: str, victim: int = 0) -> list[int | None]:
        """Train in new processes, of which `victim` ends at its moment. -> their exit codes; None for one that hung."""
        codes, reached = self.driver.children(self, moment, victim)
        self.reached = max(self.reached, *reached)
        for i in range(self.processes):
            self.said += Path(f"{self.workdir}.{i}.log").read_text(errors="replace")
        return codes

    def train(self) -> BaseException | None:
        """Train in this process to the end, or to an error, which is returned."""
        screen = Console(file=io.StringIO(), width=1000)
        inner = writer.Writers.progress

        def progress(writers, step):
            self.reached = max(self.reached, step)
            inner(writers, step)

        error = None
        with mock.patch.object(writer.Writers, "progress", progress), self.driver.warm(self.task):
            try:
                loop.train(self.config, self.workdir, console=screen)
            except BaseException as raised:
                error = raised
        self.said += screen.file.getvalue() + (f"\n{type(error).__name__}: {error}\n" if error else "")
        return error

    def newest_whole(self) -> int:
        """The newest step on the disk that is what was written; 0 for none."""
        there = reversed(step_folders.steps(self.checkpoints))
        return next((n for n in there if not _problems(self.checkpoints / str(n))), 0)


def _problems(folder: Path) -> list[str]:
    try:
        return step_folders.problems(folder)
    except step_folders.Damaged as error:
        return [str(error)]


Kind = Callable[[Job], Any]
DAMAGED = r"4 is damaged .*4\.aside"


def _killed(moment: str) -> Kind:
    @contextmanager
    def kind(job: Job) -> Iterator[Broke]:
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
    def kind(job: Job) -> Iterator[Broke]:
        (code,) = job.child(moment)
        if code not in codes:
            raise RuntimeError(
                f"{moment}: the child ended with status {code}, not one of {codes}: {job.said[-500:]}"
            )
        yield Broke(f"status {code} after step {job.reached}", sign, job.reached)

    return kind


@contextmanager
def _peer_killed(job: Job) -> Iterator[Broke]:
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
    def kind(job: Job) -> Iterator[Broke]:
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
    def kind(job: Job) -> Iterator[Broke]:
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
def _clock_went_back(job: Job) -> Iterator[Broke]:
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

    def __init__(self, job: Job):
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

    def __init__(self, job: Job):
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
        subprocess.run(["mount", "-o", "remount,ro,bind", str(self.folder)], check=True)

    def end(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)
        self.mounted = False


def _disk(code: int, mounted: type, for_good: bool = False) -> Kind:
    """A disk that takes nothing for two steps, or until the run ends because of it."""

    @contextmanager
    def kind(job: Job) -> Iterator[Broke]:
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
def _write_fails(job: Job) -> Iterator[Broke]:
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
    def kind(job: Job) -> Iterator[Broke]:
        job.start_half()
        index = job.driver.used_at(job.config, int(job.rng.integers(5, STEPS + 1)))
        path = job.driver.data / f"{index}.png"
        with _kept(path):
            break_it(path, job.rng)
            yield Broke(path.name, sign, job.reached, absent=(index,))

    return kind


@contextmanager
def _kept(*paths: Path) -> Iterator[None]:
    content = [path.read_bytes() for path in paths]
    try:
        yield
    finally:
        for path, data in zip(paths, content, strict=True):
            path.write_bytes(data)


def _worker(error: Callable[[], BaseException] | None) -> Kind:
    """A thread of the loader dies, or waits for a slow disk, over one example."""

    @contextmanager
    def kind(job: Job) -> Iterator[Broke]:
        index = job.driver.used_at(job.config, int(job.rng.integers(2, STEPS + 1)))
        inner, left = Examples.__call__, [True]

        def call(self, number, rng):
            if number == index and left:
                left.clear()
                if error is None:
                    time.sleep(1.0)
                else:
                    raise error()
            return inner(self, number, rng)

        with mock.patch.object(Examples, "__call__", call):
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


# ---------------------------------------------------------------------------------------------------------------- driver


class Driver:
    """Breaks runs, one after another, in one folder.

    Args:
      configs: {task: its tiny config}.
      root: the folder; what is there of an earlier driver is used again.
      seed: with a fault's number it decides all that is drawn.
    """

    def __init__(self, configs: Mapping[str, ml_collections.ConfigDict], root: Path, seed: int = 0):
        self.root, self.seed, self.data = root, seed, root / "data"
        if not (self.data / "captions.jsonl").exists():
            write_images(self.data)
        self.configs = {task: small(config, self.data) for task, config in configs.items()}
        self.mounts = can_mount()
        self._fork = multiprocessing.get_context("forkserver")
        self._fork.set_forkserver_preload(list(PRELOAD))
        self._compiled: dict[str, Any] = {}

    def plan(self, number: int, kinds: tuple[str, ...] = ()) -> tuple[str, str]:
        """(task, kind) of a fault: all kinds in turn, each with all tasks in turn."""
        tasks, often = list(self.configs), list(kinds) or [kind for kind in KINDS if kind not in RARE]
        turn, place = divmod(number, len(often))
        kind = often[place]
        if not kinds and number % 60 == 59:
            kind, turn, place = RARE[number // 60 % len(RARE)], number // 60, 0
        return tasks[(turn + place) % len(tasks)], kind

    def run(self, number: int, kinds: tuple[str, ...] = ()) -> Record:
        """Break one run and see what becomes of it."""
        task, kind = self.plan(number, kinds)
        job = Job(self, task, (self.seed, number, 0), processes=2 if kind in RARE else 1)
        begin = time.perf_counter()
        what, real, lost, allowed, sign, problem = "", False, 0, 0, "", ""
        detected = recovered = equal = False
        try:
            with KINDS[kind](job) as broke:
                what, real, sign = broke.what, broke.real, broke.sign
                whole = job.newest_whole() if broke.reached else 0
                before = len(job.said)
                if job.processes > 1:
                    ended = job.child("")
                    error = None if ended == [0] * job.processes else RuntimeError(f"ended with {ended}")
                else:
                    error = job.train()
                found = re.findall(r"resuming at step (\d+)", job.said[before:])
                resumed = int(found[0]) if found else 0
                lost, allowed = max(broke.reached - resumed, 0), max(broke.reached - whole, 0)
                recovered = error is None
                quarantine = job.workdir / "quarantine.jsonl"
                log = job.said + (quarantine.read_text() if quarantine.exists() else "")
                named = re.search(sign, log) if sign else None
                detected = bool(named) or (not sign and (not whole or resumed == whole))
                said = _line(log, named) if named else f"resuming at step {resumed}" if resumed else ""
                problem = "" if detected else f"nothing in the log matches {sign or 'the newest whole step'}"
                if error:
                    problem = f"{type(error).__name__}: {error}"
                elif lost > allowed:
                    problem = f"{lost} steps lost, and only {allowed} since the last checkpoint"
                if recovered:
                    different = differences(job.workdir, self.unbroken(task, broke.absent, job.processes))
                    equal, problem = not different, problem or different
        except RuntimeError as error:
            said, problem = "", str(error)
        seconds = round(time.perf_counter() - begin, 2)
        return Record(
            number,
            self.seed,
            task,
            kind,
            what,
            real,
            detected,
            recovered,
            lost,
            allowed,
            equal,
            seconds,
            said[:300],
            problem[:600],
        )

    @contextmanager
    def warm(self, task: str) -> Iterator[None]:
        """Compile a task's step once for all runs of this process."""
        inner = loop._compile

        def compiled(*args):
            if task not in self._compiled:
                self._compiled[task] = inner(*args)
            return self._compiled[task]

        with mock.patch.object(loop, "_compile", compiled):
            yield

    def children(self, job: Job, moment: str, victim: int) -> tuple[list[int | None], list[int]]:
        """Train in processes of their own. -> (exit codes, the last steps that they finished)."""
        cache, address = None if moment == "first compile" else jax.config.jax_compilation_cache_dir, ""
        if job.processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
        job.workdir.parent.mkdir(parents=True, exist_ok=True)
        reached, processes = [], []
        for i in range(job.processes):
            reached.append(self._fork.Value("i", 0))
            own = moment if i == victim else ""
            args = (
                job.config.to_dict(),
                str(job.workdir),
                cache,
                own,
                job.seed,
                reached[-1],
                (address, i, job.processes),
            )
            processes.append(self._fork.Process(target=_child, args=args))
            processes[-1].start()
        codes = []
        order = [victim, *(i for i in range(job.processes) if i != victim)]
        for i in order:
            processes[i].join(CHILD_LIMIT if i == victim else PEER_LIMIT)
        for process in processes:
            codes.append(process.exitcode)
            if process.exitcode is None:
                process.kill()
                process.join()
        return codes, [value.value for value in reached]

    def half(self, task: str, workdir: Path) -> int:
        """Copy the folder of a run that was killed while it saved step 6. -> the last step it had finished."""
        kept = self.root / "half" / task
        if not (kept / "checkpoints").is_dir():
            job = Job(self, task, (0, 0, 0), workdir=self.root / "half" / f"{task}.part")
            self.children(job, "half", 0)
            job.workdir.rename(kept)
        shutil.copytree(kept, workdir)
        return 6

    def used_at(self, config: ml_collections.ConfigDict, step: int) -> int:
        """The first image of a step's batch."""
        numbers = [{} for _ in range(EXAMPLES)]
        batches = loader(numbers, [], BATCH, step=step - 1, seed=config.seed, shuffle=True, repeat=True)
        return int(next(batches)["index"][0])

    def unbroken(self, task: str, absent: tuple[int, ...] = (), processes: int = 1) -> Path:
        """The workdir of a run that nothing broke, but which lacks the same images."""
        name = "_".join(map(str, (task, processes, *absent)))
        kept = self.root / "unbroken" / name
        if not kept.is_dir():
            job = Job(self, task, (0, 0, 0), processes, self.root / "unbroken" / f"{name}.part")
            paths = [self.data / f"{i}.png" for i in absent]
            with _kept(*(path for path in paths if path.exists())):
                for path in paths:
                    path.unlink(missing_ok=True)
                failed = job.child("") != [0] * processes if processes > 1 else job.train()
            if failed:
                raise RuntimeError(f"the run that nothing broke failed: {job.said[-1000:]}")
            job.workdir.rename(kept)
        return kept


MOMENTS["half"] = lambda rng: _hook(step_folders, "seal", 3, _die)


def _line(text: str, match: re.Match) -> str:
    return text[text.rfind("\n", 0, match.start()) + 1 :].partition("\n")[0].strip()


def differences(left: Path, right: Path) -> str:
    """In what the newest checkpoints and the metrics of two workdirs differ; "" where they do not, bit for bit."""
    trees = []
    for workdir in (left, right):
        step = max(step_folders.steps(workdir / "checkpoints"), default=None)
        if step != STEPS:
            return f"the newest checkpoint of {workdir.name} is {step}, not {STEPS}"
        trees.append(checkpoint.read_tree(workdir / "checkpoints" / str(step), None))
    if jax.tree.structure(trees[0]) != jax.tree.structure(trees[1]):
        return "the states have other arrays"
    pairs = zip(jax.tree_util.tree_leaves_with_path(trees[0]), jax.tree.leaves(trees[1]), strict=True)
    wrong = [
        checkpoint.path_name(path)
        for (path, a), b in pairs
        if (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes())
    ]
    if wrong:
        return f"{len(wrong)} arrays differ: {', '.join(wrong[:5])}"
    ours, theirs = _rows(left), _rows(right)
    if ours != theirs:
        first = next((a for a in ours if a not in theirs), None) or next(
            (b for b in theirs if b not in ours), ours[-1]
        )
        return f"metrics.jsonl: {len(ours)} rows and {len(theirs)}; the first that differs: {first}"
    return ""


def _rows(workdir: Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k.rpartition("/")[2] not in CLOCKS} for row in rows]


def table(records: list[Record]) -> list[tuple]:
    """(kind, faults, detected, recovered, equal, steps lost, steps since the last checkpoint) of each kind, and of all."""
    rows = []
    for kind in [*KINDS, "all"]:
        own = [record for record in records if kind in (record.kind, "all")]
        if own:
            columns = zip(*((r.detected, r.recovered, r.equal, r.lost, r.allowed) for r in own), strict=True)
            rows.append((kind, len(own), *map(sum, columns)))
    return rows
