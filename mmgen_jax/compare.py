"""Compare the values of one config argument fairly: the config's baselines beside them, several seeds each, with intervals."""

import json
import math
import re
import runpy
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from rich.console import Console
from rich.text import Text

from mmgen_jax import figures, report
from mmgen_jax.command_line import config_of
from mmgen_jax.core import config as config_lib
from mmgen_jax.core import goodput, registry
from mmgen_jax.core.lock import Lock
from mmgen_jax.core.writer import read_rows
from mmgen_jax.experiment import CONFIG, WorkdirError
from mmgen_jax.signals import Interrupted

TRAIN = Path(__file__).resolve().parents[1] / "scripts" / "train.py"
LOG, RESULTS = "log.txt", "results"
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}  # brackets are brackets
FEWEST = 2  # seeds with which there is an interval at all


class Run(NamedTuple):
    """One training of the comparison.

    Attributes:
      row: its name in the table; baseline: whether the config says that it stands beside everything.
      seed: of the config; flags: of scripts/train.py; config: what these describe; workdir: its own.
    """

    row: str
    baseline: bool
    seed: int
    flags: list[str]
    config: ml_collections.ConfigDict
    workdir: Path


def compare(
    config: str,
    vary: str,
    workdir: str | Path,
    *,
    seeds: int = 3,
    over: str = "",
    metrics: Sequence[str] = (),
    changes: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Train every value with every seed, one run after another, and write results.md, .json and .png after each.

    Runs that are finished in `workdir` count as they are; one that was stopped goes on where it was. A run that fails is named,
    and the others go on; the same call tries it again. The config file may have baselines, name -> config arguments:
    BASELINES = {"image alone": "modalities=image"}. They are trained with the same seeds and stand first in the table; the
    differences are to the first of them, or without any to the first value.

    Args:
      config: FILE[:args], as for scripts/train.py.
      vary: "NAME=VALUE,VALUE", an argument of the config and its values.
      workdir: gets the results, and a folder ROW/seed_N for each run.
      seeds: how many; these are 0, 1, ...
      over: an argument of the config, such as "fold", that is 0, 1, ... as the seed is: so many folds of a cross-validation, of
        which each run holds another one out.
      metrics: "test/accuracy", of what the runs log; default the score that the config's checkpoint.best names.
      changes: "--config.KEY=VALUE", of all runs.
      console: where to print.

    Returns:
      What is in results.json: see `summary`.

    Raises:
      ValueError: an argument that the config lacks, a metric that no run logs (names the nearest).
      WorkdirError: a run in `workdir` was made by a different config.
      Locked: another comparison works in `workdir`.
      Interrupted: Ctrl-C; what was running has saved, and the same call goes on.
    """
    console, workdir = console or Console(), Path(workdir)
    runs = plan(config, vary, workdir, seeds=seeds, over=over, changes=changes)
    metrics = _metrics(runs[0].config, metrics)
    for run in runs:
        _check_workdir(run)
    command = ["python", "scripts/compare.py", "--config", config, *changes, "--vary", vary]
    command += ["--seeds", str(seeds), *(["--over", over] if over else [])]
    command += ["--metric", *metrics, "--workdir", str(workdir)]
    outcomes: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    took: list[float] = []
    with Lock(workdir, alone=True):
        for number, run in enumerate(runs, start=1):
            begin, name = time.monotonic(), f"{number}/{len(runs)}  {run.row}, seed {run.seed}"
            before = finished(run)
            why = "" if before else _train(run, name, console)
            took += [] if before or why else [time.monotonic() - begin]
            outcomes.append(outcome(run, metrics, why))
            results = summary(shlex.join(command), runs, outcomes, metrics)
            write(workdir, results)
            left = len(runs) - number
            about = f", about {report.duration(left * statistics.mean(took))} left" if took and left else ""
            how = "finished before" if before else report.duration(time.monotonic() - begin) + about
            _say(console, name, outcomes[-1], how)
    console.print(f"\n{markdown(results)}\n{workdir / RESULTS}.md, .json, .png", **PLAIN)
    return results


def plan(
    config: str, vary: str, workdir: Path, *, seeds: int = 3, over: str = "", changes: Sequence[str] = ()
) -> list[Run]:
    """All runs of a comparison: the first seed of every row, then the second, so that what is there can be compared early.

    A value that is a baseline already is one row, not two. For the arguments, and what it raises, see `compare`.
    """
    file, _, given = config.partition(":")
    name, has_values, values = vary.partition("=")
    if not has_values or not all(values.split(",")):
        raise ValueError(f'--vary is NAME=VALUE,VALUE, such as fusion=concat,film; not "{vary}".')
    if seeds < FEWEST:
        raise ValueError(
            f"An interval over seeds needs at least {FEWEST} of them (better 3 or more), not {seeds}."
        )
    for change in changes:
        if change.startswith("--config.seed="):
            raise ValueError(f"{change}: a comparison runs over seeds itself; say with --seeds how many.")
    if over == name:
        raise ValueError(f"--vary and --over both say {name}: it is compared, or counts with the seeds.")
    config_of(config, changes)  # a mistake in what all share shows first
    baselines = runpy.run_path(file).get("BASELINES", {})
    asked = {**baselines, **{f"{name}={value}": f"{name}={value}" for value in values.split(",")}}
    rows: dict[str, tuple[str, list[str]]] = {}  # what the config comes to -> FILE[:args], names
    for row, more in asked.items():
        arguments = ",".join(filter(None, (given, more)))
        text = f"{file}:{arguments}" if arguments else file
        rows.setdefault(config_lib.to_json(config_of(text, changes)), (text, []))[1].append(row)
    runs = []
    for seed in range(seeds):
        every = [*changes, f"--config.seed={seed}"]
        for text, (row, *others) in rows.values():
            label = row + (f" ({', '.join(others)})" if others else "")
            # Not of the whole label: which values are asked for beside a baseline may change.
            folder = workdir / re.sub(r"[^\w=.+-]+", "_", row) / f"seed_{seed}"
            part = f"{text}{',' if ':' in text else ':'}{over}={seed}" if over else text
            flags, whole = ["--config", part, *every], config_of(part, every)
            runs.append(Run(label, row in baselines, seed, flags, whole, folder))
    if len({run.workdir for run in runs}) < len(runs):
        raise ValueError(f"Two of the rows {', '.join(asked)} would share a folder: name them less alike.")
    return runs


def finished(run: Run) -> bool:
    """Whether the run has come to its end, with its last evaluation."""
    path = run.workdir / goodput.FILE
    starts = goodput.read(path) if path.exists() else []
    return bool(starts) and starts[-1].end == "finished"


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of n values of which each is drawn alike (Student, 1908); None of fewer than two."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half


def summary(
    command: str, runs: Sequence[Run], outcomes: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    """The comparison as JSON takes it, of the runs that have ended so far.

    Returns:
      {"command", "runs" (how many there will be), "seeds", "metrics", "reference" (the row that differences are to), "date",
      "machines", "rows": [{"name", "baseline", "arguments" (of its first run), "minutes" (mean of a run), "runs": [...],
      "scores": {metric: {"n", "mean", "interval", "difference", "difference_interval"}}}]}. Differences are of runs with the same
      seed.
    """
    by_row: dict[str, list[Mapping[str, Any]]] = {run.row: [] for run in runs}
    for run, outcome in zip(runs, outcomes, strict=False):
        by_row[run.row].append(outcome)
    first = {run.row: run for run in reversed(runs)}
    reference = runs[0].row

    def values(row: str, metric: str) -> dict[int, float]:
        return {done["seed"]: done["values"][metric] for done in by_row[row] if "values" in done}

    rows = []
    for row, done in by_row.items():
        scores = {}
        for metric in metrics:
            own, others = values(row, metric), values(reference, metric)
            pairs = [own[seed] - others[seed] for seed in own if seed in others and row != reference]
            scores[metric] = {
                "n": len(own),
                "mean": statistics.mean(own.values()) if own else None,
                "interval": interval(list(own.values())),
                "difference": statistics.mean(pairs) if pairs else None,
                "difference_interval": interval(pairs),
            }
        minutes = [run["minutes"] for run in done if "values" in run]
        rows.append(
            {
                "name": row,
                "baseline": first[row].baseline,
                "arguments": first[row].flags[1].partition(":")[2],
                "minutes": statistics.mean(minutes) if minutes else None,
                "runs": list(done),
                "scores": scores,
            }
        )
    return {
        "command": command,
        "runs": len(runs),
        "seeds": sorted({run.seed for run in runs}),
        "metrics": list(metrics),
        "reference": reference,
        "date": time.strftime("%Y-%m-%d"),
        "machines": sorted({done["machine"] for done in outcomes if "machine" in done}),
        "rows": rows,
    }


def write(workdir: Path, results: Mapping[str, Any]) -> None:
    """results.md, results.json and results.png, each replaced whole."""
    workdir.mkdir(parents=True, exist_ok=True)
    panels = {
        metric: [
            {
                "name": row["name"],
                "baseline": row["baseline"],
                "values": [run["values"][metric] for run in row["runs"] if "values" in run],
                "mean": row["scores"][metric]["mean"],
                "interval": row["scores"][metric]["interval"],
            }
            for row in results["rows"]
        ]
        for metric in results["metrics"]
    }
    part = workdir / f"{RESULTS}.part"
    for suffix, make in (
        ("json", lambda: part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")),
        ("md", lambda: part.write_text(markdown(results), encoding="utf-8")),
        ("png", lambda: figures.dots(part, panels)),
    ):
        make()
        part.replace(workdir / f"{RESULTS}.{suffix}")


def markdown(results: Mapping[str, Any]) -> str:
    """The table, how it was made, and what failed."""
    rows, reference = results["rows"], results["reference"]
    ended = sum(len(row["runs"]) for row in rows)
    failed = [(row["name"], run) for row in rows for run in row["runs"] if "failed" in run]
    text = (
        f"# {Path(shlex.split(results['command'])[3].partition(':')[0]).stem}\n\n    {results['command']}\n\n"
    )
    text += f"{ended} of {results['runs']} runs, seeds {', '.join(map(str, results['seeds']))}; {results['date']}. "
    text += "Intervals are 95 %, Student's t over the seeds; "
    text += f"differences are to {reference}, of runs with the same seed. Baselines are in italics.\n"
    for metric in results["metrics"]:
        heads = (metric, "mean", "95 % interval", "seeds", "difference", "95 % interval", "minutes a run")
        lines = [heads, ("---", "--:", ":-:", "--:", "--:", ":-:", "--:")]
        for row in rows:
            score = row["scores"][metric]
            lines.append(
                (
                    f"*{row['name']}*" if row["baseline"] else row["name"],
                    _number(score["mean"]),
                    _span(score["interval"]),
                    str(score["n"]),
                    _number(score["difference"], "+"),
                    _span(score["difference_interval"], "+"),
                    _number(row["minutes"]),
                )
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text += "\n"
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            text += f"| {' | '.join(cells)} |\n"
    text += "".join(f"\n- FAILED: {name}, seed {run['seed']}: {run['failed']}" for name, run in failed)
    text += "\n" if failed else ""
    text += "".join(f"\nTrained on {machine}.\n" for machine in results["machines"])
    return f"{text}\n![{', '.join(results['metrics'])}]({RESULTS}.png)\n"


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.4g}"


def _span(pair: Sequence[float] | None, sign: str = "") -> str:
    return "" if pair is None else f"{_number(pair[0], sign)} .. {_number(pair[1], sign)}"


def _metrics(config: ml_collections.ConfigDict, metrics: Sequence[str]) -> list[str]:
    """`metrics` or the config's own; each is of one of its evaluations, or of training."""
    metrics = list(metrics) or [config.checkpoint.get("best", "")]
    parts = [*config.evals, "train"]
    if not metrics[0]:
        raise ValueError(
            f"Say with --metric which score to compare, such as {parts[0]}/NAME. Parts: {', '.join(parts)}."
        )
    for metric in metrics:
        registry.choose(dict.fromkeys(parts), metric.partition("/")[0], f'evaluation in --metric "{metric}":')
    return metrics


def _check_workdir(run: Run) -> None:
    """A run that is there was made by the same config."""
    path = run.workdir / CONFIG
    changed = config_lib.differences(config_lib.load_json(path), run.config) if path.exists() else []
    if changed:
        raise WorkdirError(
            f"{run.workdir} was made by a different config:\n  "
            + "\n  ".join(changed)
            + "\nOne table has runs of one config only: take another --workdir, or delete that folder to train it again."
        )


def _train(run: Run, name: str, console: Console) -> str:
    """Run scripts/train.py until its end. -> why it failed, or nothing.

    Raises:
      Interrupted: Ctrl-C; the run has saved.
    """
    run.workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-u", str(TRAIN), *run.flags, "--workdir", str(run.workdir)]
    command += _cache(run.workdir.parent.parent / "compilation_cache")
    said = ""
    # In a session of its own, for a terminal sends Ctrl-C to all of one, and two of them stop a run without saving.
    with (
        (run.workdir / LOG).open("ab", buffering=0) as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):

        def follow() -> Iterator[str]:
            for line in process.stdout or ():
                log.write(line)
                yield line.decode(errors="replace").strip()

        try:
            with console.status(Text(name)) as status:
                for line in filter(None, follow()):
                    status.update(Text(f"{name}  {line}"))
                    # The message is the last line, unless more follows the one that begins so.
                    said = line if line.startswith("error: ") or not said.startswith("error: ") else said
            code = process.wait()
        except KeyboardInterrupt:
            console.print(f"{name}: stopping; it saves first. Ctrl-C again stops at once.", **PLAIN)
            process.terminate()
            try:
                list(follow())
                process.wait()
            except KeyboardInterrupt:
                process.kill()
            raise Interrupted(
                f"Stopped in {name}. All runs are kept: the same command goes on from there."
            ) from None
    if code < 0:
        return f"{signal.Signals(-code).name} ended it"
    return said.removeprefix("error: ") or f"status {code}" if code else ""


def _cache(folder: Path) -> list[str]:
    """Seeds share their compiled programs, unless the environment names a folder for them."""
    import jax

    return [] if jax.config.jax_compilation_cache_dir else ["--compilation_cache", str(folder)]


def outcome(run: Run, metrics: Sequence[str], why: str) -> dict[str, Any]:
    """{"seed", "workdir"} with "failed", or with "values" of the metrics, "minutes" that it took and its "machine".

    Raises:
      ValueError: the run has ended well, and logged no such metric.
    """
    outcome: dict[str, Any] = {"seed": run.seed, "workdir": "/".join(run.workdir.parts[-2:])}
    if why:
        return {**outcome, "failed": f"{why} ({outcome['workdir']}/{LOG})"}
    logged: dict[str, Any] = {}
    for row in read_rows(run.workdir / "metrics.jsonl"):
        logged.update(row)
    for metric in metrics:
        registry.choose({name: 0 for name in logged if "/" in name}, metric, "metric")
    values = {metric: logged[metric] for metric in metrics}
    broken = [metric for metric, value in values.items() if value is None]
    if broken:
        return {
            **outcome,
            "failed": f"{', '.join(broken)} is not finite ({outcome['workdir']}/metrics.jsonl)",
        }
    starts = goodput.read(run.workdir / goodput.FILE)
    seconds = goodput.totals(starts)
    facts = starts[-1].facts
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("mmgen_jax", "jax", "python"))
    return {
        **outcome,
        "values": values,
        "minutes": (sum(seconds.values()) - seconds["away"]) / 60,
        "machine": f"{facts['host']}, {facts['devices']} device(s), {versions}",
    }


def _say(console: Console, name: str, outcome: Mapping[str, Any], how: str) -> None:
    if "failed" in outcome:
        console.print(f"{name} FAILED: {outcome['failed']}", style="red", **PLAIN)
        return
    values = ", ".join(f"{metric} {_number(value)}" for metric, value in outcome["values"].items())
    console.print(f"{name}: {values} ({how})", **PLAIN)
