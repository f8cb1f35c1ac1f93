"""A small training that is broken on purpose, started again, and compared bit for bit with one that nothing broke.

scripts/soak.py runs it and shows what came out; docs/reliability.md says what that was.
"""

import io
import json
import multiprocessing
import os
import re
import shutil
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import ml_collections
import numpy as np
from rich.console import Console

from mmgen_jax import train as loop
from mmgen_jax.core import checkpoint, step_folders, writer
from mmgen_jax.data import sources
from mmgen_jax.data.loader import loader
from mmgen_jax.fault_kinds import (
    BATCH,
    EVERY,
    EXAMPLES,
    KINDS,
    MOMENTS,
    PEER_LIMIT,
    RARE,
    STEPS,
    can_mount,
    kept_as_is,
)

CHILD_LIMIT = 120.0  # seconds that a child may take before it counts as hanging
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
            with kept_as_is(*(path for path in paths if path.exists())):
                for path in paths:
                    path.unlink(missing_ok=True)
                failed = job.child("") != [0] * processes if processes > 1 else job.train()
            if failed:
                raise RuntimeError(f"the run that nothing broke failed: {job.said[-1000:]}")
            job.workdir.rename(kept)
        return kept


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
