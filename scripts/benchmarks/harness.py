"""The harness of scripts/benchmark.py: one process a peer, rounds in which they take turns, the table, the JSON.

A suite is a module with ROWS, SIZES, OPTIONS, COLUMNS, SUMMARY, HELP, and the functions that captioner.py explains.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import select
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from mmgen_jax.core import allocator

ROOT = Path(__file__).resolve().parents[2]
SEED = 0
ROUNDS = 3
METHOD = f"""\
Each peer is a process of its own that keeps to the same cores. First all are made ready, then they take
turns for {ROUNDS} rounds of --repeats calls, so that a noisy neighbour hits all of them. Medians are over all
calls; a ratio is the peer's time by ours: above 1 ours is faster. Nothing else should run: a thread that
waits for a core stalls PyTorch more than it stalls XLA.

With the times come each process's first call (compiling included) and its peak memory. Peers need PyTorch
and some transformers: pip install -e ".[torch]". What could not be measured is listed with the reason.
"""
PATIENCE = 3600  # seconds for one answer of a process; a hung one must not hang the benchmark
PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "torch", "transformers")

Measure = Callable[[int], list[float]]


class Row(NamedTuple):
    """What is measured, against whom, and the ratio that is aimed at: {device: {peer: ratio}}.

    dtype: of the computation on a GPU (on a CPU float32); None where the row's config says.
    inputs: whether the processes read spec["inputs"].
    calls: a round, where --repeats would take too long.
    """

    title: str
    peers: tuple[str, ...]
    targets: Mapping[str, Mapping[str, float]] = {}
    dtype: str | None = "float32"
    inputs: bool = True
    calls: int | None = None


# --- One process: a peer of one row ---------------------------------------------------------------


def serve(suite: ModuleType, spec: dict[str, Any]) -> None:
    """Be one peer: make ready and say so, answer each line "repeats" with times, then give the memory.

    Answers are JSON objects, one a line, on the standard output.
    """
    if spec["threads"] and hasattr(os, "sched_setaffinity"):
        # Before any library looks how many cores there are.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec["threads"]])
    allocator.keep()  # as our scripts do; peers too

    def say(**values: Any) -> None:
        print(json.dumps(values), flush=True)

    if spec["peer"] == "inputs":
        suite.make_inputs(spec)
        return say()
    facts, measure = suite.peer(spec)
    say(**facts)
    for line in sys.stdin:
        say(seconds=measure(int(line)))
    say(peak_bytes=peak_bytes(spec["device"]))


def peak_bytes(device: str) -> int:
    """The most memory that this process ever held: on its GPU, or altogether."""
    if device == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    if "torch" in sys.modules:
        return sys.modules["torch"].cuda.max_memory_allocated()
    return sys.modules["jax"].devices()[0].memory_stats()["peak_bytes_in_use"]


def timed(call: Callable[[], Any]) -> Measure:
    """measure(repeats) -> seconds of each call."""

    def measure(repeats: int) -> list[float]:
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
        return seconds

    return measure


def nested(flat: Mapping[str, Any], prefix: str) -> dict:
    """{"p/a/b": x} -> {"a": {"b": x}} of the names under the folder `prefix`."""
    tree: dict = {}
    for name in flat:
        if name.startswith(prefix + "/"):
            *folders, leaf = name[len(prefix) + 1 :].split("/")
            node = tree
            for folder in folders:
                node = node.setdefault(folder, {})
            node[leaf] = flat[name]
    return tree


def compile_ours(fn: Callable, args: tuple, donate: bool = False) -> tuple[Any, dict]:
    """The compiled function, and what compiling tells."""
    import jax

    begin = time.perf_counter()
    compiled = jax.jit(fn, donate_argnums=0 if donate else ()).lower(*args).compile()
    return compiled, {
        "compile_s": time.perf_counter() - begin,
        "accelerator": jax.devices()[0].device_kind,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def train_ours(task: Any, variables: Mapping[str, Any], batch: Any) -> tuple[dict, Callable[[], dict]]:
    """A task of one network and one optimiser: facts, and a training step that gives the metrics when the device has done it.

    variables: {"params", and other collections} of the network.
    """
    import jax
    import jax.numpy as jnp

    from mmgen_jax.core import flops
    from mmgen_jax.core.state import State

    others = {kind: tree for kind, tree in variables.items() if kind != "params"}
    params, variables = {"model": variables["params"]}, {"model": others}
    optimizer = {"model": task.optimizer.transform.init(params["model"])}
    state = State(jnp.int32(0), jax.random.key(SEED), params, variables, optimizer, {})
    compiled, facts = compile_ours(task.train_step, (state, batch), donate=True)
    facts["flops"] = flops.count(jax.make_jaxpr(task.train_step)(state, batch))
    facts["peak_flops"] = flops.peak(jax.devices()[0])

    def call() -> dict:
        nonlocal state
        state, metrics = jax.block_until_ready(compiled(state, batch))
        return metrics

    return facts, call


def start_torch(spec: Mapping[str, Any]) -> str:
    """Make PyTorch keep to the cores of the others; the name that it has for the device."""
    import torch

    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    return {"cpu": "cpu", "gpu": "cuda"}[spec["device"]]


# --- The parent: starts the processes, lets them take turns, compares -----------------------------


class NotMeasured(Exception):
    """Why a peer has no numbers."""


class Process:
    """A peer in a process of its own; a context manager that leaves nothing running."""

    def __init__(self, spec: Mapping[str, Any], folder: Path):
        env = {**os.environ, "JAX_PLATFORMS": {"cpu": "cpu", "gpu": "cuda"}[spec["device"]]}
        # Two libraries share the device: neither may take all its memory beforehand.
        env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        if spec["device"] == "gpu":  # it may round float32 products to fewer bits, which the peers do not
            env["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
        if not spec["quick"]:  # a first call compiles, as it does for a user
            env |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
        self._errors = folder / f"{spec['row']}_{spec['peer']}.txt"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "peer", json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=env,
                start_new_session=True,
            )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        # The session: a compiler may have started helpers.
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def answer(self, limit: float) -> dict:
        """The next answer.

        Raises:
          NotMeasured: none within `limit` seconds, or the process ended.
        """
        if not select.select([self._process.stdout], [], [], limit)[0]:
            raise NotMeasured(f"no answer within {limit:g} s")
        if line := self._process.stdout.readline():
            return json.loads(line)
        status = self._process.wait()
        said = [
            line.strip() for line in self._errors.read_text(errors="replace").splitlines() if line.strip()
        ]
        raise NotMeasured((said or ["it said nothing"])[-1] + f" (exit status {status})")

    def measure(self, repeats: int) -> list[float]:
        """Seconds of so many calls."""
        self._process.stdin.write(f"{repeats}\n")
        self._process.stdin.flush()
        return self.answer(PATIENCE)["seconds"]

    def finish(self) -> dict:
        """The last answer of a peer that has nothing more to do."""
        self._process.stdin.close()
        return self.answer(PATIENCE)


def measure_row(
    suite: ModuleType, name: str, base: Mapping[str, Any], args: argparse.Namespace, folder: Path
) -> dict:
    """All peers of a row: {"peers": {peer: facts}, "ratios", "targets", ...} and what `suite.compare` adds."""
    plan = suite.ROWS[name]
    dtype = plan.dtype and (plan.dtype if args.device == "gpu" else "float32")
    results: dict[str, dict] = {}
    with ExitStack() as stack:
        ready: dict[str, Process] = {}

        def attempt(peer: str, action: Callable[[], dict]) -> None:
            try:
                results.setdefault(peer, {}).update(action())
            except NotMeasured as reason:
                results[peer] = {"not_measured": str(reason)}
                ready.pop(peer, None)

        def start(peer: str) -> dict:
            spec = {**base, "row": name, "peer": peer, "dtype": dtype}
            if why := suite.missing(spec):
                raise NotMeasured(why)
            process = stack.enter_context(Process(spec, folder))
            facts = process.answer(args.compile_limit if peer == "compiled" else PATIENCE)
            ready[peer] = process
            return facts

        for peer in ("ours", *plan.peers):
            attempt(peer, partial(start, peer))
        for _ in range(args.rounds):
            for peer, process in list(ready.items()):
                times = results[peer].setdefault("seconds", [])
                attempt(
                    peer, lambda p=process, t=times: {"seconds": t + p.measure(plan.calls or args.repeats)}
                )
        for peer, process in list(ready.items()):
            attempt(peer, process.finish)
    for facts in results.values():
        if "seconds" in facts:
            facts["median_s"] = statistics.median(facts["seconds"])
            facts["examples_per_s"] = facts["batch"] / facts["median_s"]
            if flops := facts.get("flops"):
                facts["gflops_per_s"] = 1e-9 * flops / facts["median_s"]
                facts["mfu"] = facts["peak_flops"] and flops / facts["median_s"] / facts["peak_flops"]
    outputs = {peer: facts.pop("outputs", None) for peer, facts in results.items()}
    mine, *others = results.items()
    measured = {peer: facts for peer, facts in others if "median_s" in facts and "median_s" in mine[1]}
    row = {
        "title": plan.title,
        "dtype": dtype,
        "peers": results,
        "ratios": {peer: facts["median_s"] / mine[1]["median_s"] for peer, facts in measured.items()},
        "targets": dict(plan.targets.get(args.device, {})),
    }
    if outputs["ours"] is not None:
        others = {peer: outputs[peer] for peer in measured if outputs[peer] is not None}
        row |= suite.compare(outputs["ours"], others)
    return row


def lacking(package: str) -> str | None:
    """What to say where a peer's package is not installed."""
    if importlib.util.find_spec(package) is None:
        name = {"torch": "PyTorch"}.get(package, package)
        return f'{name} is not installed: pip install -e ".[torch]"'
    return None


def machine(load: float) -> dict[str, Any]:
    """Where the numbers come from. load: processes that wanted to run before the benchmark began."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    cpu = found[1] if found else platform.processor()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_before": load,
        "system": platform.system(),
        "versions": versions,
    }


def show(suite: ModuleType, rows: Mapping[str, dict], console: Console) -> None:
    """Print the rows, a line a peer, then what the peers agree on and what is missing."""
    table = Table(title="A ratio is the peer's time by ours.", title_justify="left")
    for column in ("row", "peer"):
        table.add_column(column)
    for column in ("median ms", "examples/s", "ratio", "target", "first call s", "peak MiB", *suite.COLUMNS):
        table.add_column(column, justify="right")

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    for row in rows.values():
        for peer, facts in row["peers"].items():
            title = row["title"] if peer == "ours" else ""
            if "not_measured" in facts:
                table.add_row(title, peer, "not measured")
                continue
            ratio, target = row["ratios"].get(peer), row["targets"].get(peer)
            short = ratio is not None and target is not None and ratio < target
            table.add_row(
                title,
                peer,
                f"{1e3 * facts['median_s']:,.2f}",
                f"{facts['examples_per_s']:,.1f}",
                number(ratio, ".2f") + (" [red]below[/red]" if short else ""),
                number(target, ".2f"),
                number(facts.get("first_s"), ".2f"),
                f"{facts['peak_bytes'] / 2**20:,.0f}",
                *(number(facts.get(key), form) for key, form in suite.COLUMNS.values()),
            )
        table.add_section()
    console.print(table)
    for name, row in rows.items():
        losses = {peer: facts["loss"] for peer, facts in row["peers"].items() if "loss" in facts}
        if len(losses) > 1:
            listed = ", ".join(f"{peer} {loss:.5f}" for peer, loss in losses.items())
            apart = np.ptp(list(losses.values())) / max(map(abs, losses.values()))
            console.print(f"{name}: first loss {listed}; at most {apart:.1e} apart, relative")
        for line in suite.remarks(row):
            console.print(f"{name}: {line}")
        for peer, facts in row["peers"].items():
            if "not_measured" in facts:
                console.print(f"{name}: {peer} was not measured: {facts['not_measured']}", markup=False)


def add_command(models: Any, name: str, suite: ModuleType) -> None:
    """The suite's subcommand."""
    sub = models.add_parser(
        name,
        help=suite.SUMMARY,
        description=suite.__doc__,
        epilog=suite.HELP + METHOD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rows = tuple(suite.ROWS)
    sub.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    sub.add_argument("--threads", type=int, help="cores of a process (default: 2; on gpu all)")
    sub.add_argument("--repeats", type=int, help="calls a round (default: 3; on gpu 20)")
    sub.add_argument("--only", nargs="+", choices=rows, metavar="ROW", help="leave the other rows out")
    sub.add_argument("--quick", action="store_true", help="tiny sizes: whether it works, not how fast it is")
    sub.add_argument(
        "--compile-limit",
        type=float,
        metavar="SECONDS",
        help="for torch.compile, which can take very long on a CPU (default: 600; quick: 1)",
    )
    for option, details in suite.OPTIONS.items():
        sub.add_argument(f"--{option}", **details)
    sub.add_argument(
        "--out",
        type=Path,
        metavar="JSON",
        help=f"replaced (default: docs/benchmark_{name}.json, on gpu .._gpu.json; if quick none)",
    )


def run(suite: ModuleType, args: argparse.Namespace) -> dict:
    """Measure the rows that were asked for; print and write them."""
    args.rounds = 2 if args.quick else ROUNDS
    if args.threads is None:
        args.threads = 2 if args.device == "cpu" else 0
    if args.repeats is None:
        args.repeats = 2 if args.quick else 3 if args.device == "cpu" else 20
    if args.compile_limit is None:
        args.compile_limit = 1 if args.quick else 600
    if args.out is None and not args.quick:
        suffix = "_gpu" if args.device == "gpu" else ""
        args.out = ROOT / "docs" / f"benchmark_{args.model}{suffix}.json"
    begin, load = time.perf_counter(), os.getloadavg()[0]
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=140)
    if load > 0.5:
        console.print(f"Other processes keep {load:.1f} cores busy: do not trust the numbers.")
    sizes = suite.SIZES["quick" if args.quick else args.device]
    rows = [name for name in suite.ROWS if not args.only or name in args.only]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = {
            "model": args.model,
            "device": args.device,
            "threads": args.threads,
            "quick": args.quick,
            "sizes": sizes,
            "rows": rows,
            "inputs": str(folder / "inputs.npz"),
            **{option: getattr(args, option) for option in suite.OPTIONS},
        }
        if any(suite.ROWS[name].inputs for name in rows):
            console.print("making inputs and weights ...")
            with Process({**base, "row": "none", "peer": "inputs", "device": "cpu"}, folder) as process:
                try:
                    process.answer(PATIENCE)
                except NotMeasured as reason:
                    sys.exit(f"error: the inputs could not be made: {reason}")
        results = {}
        for name in rows:
            console.print(f"measuring {name} ({suite.ROWS[name].title}) ...")
            results[name] = measure_row(suite, name, base, args, folder)
    report = {
        "model": args.model,
        "command": shlex.join(["python", "scripts/benchmark.py", *args.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "minutes": round((time.perf_counter() - begin) / 60, 1),
        "seed": SEED,
        "device": args.device,
        "threads": args.threads,
        "rounds": args.rounds,
        "repeats": args.repeats,
        "sizes": sizes,
        "machine": machine(load),
        "rows": results,
    }
    show(suite, results, console)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {args.out}")
    return report
