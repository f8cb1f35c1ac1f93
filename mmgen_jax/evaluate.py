"""The evaluators of a config, during training and on a finished checkpoint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from mmgen_jax.core import config as config_lib
from mmgen_jax.core import registry
from mmgen_jax.core.writer import Writers
from mmgen_jax.evaluators.base import Row
from mmgen_jax.experiment import Experiment, load


def evaluate(
    workdir: str | Path,
    *,
    step: int | None = None,
    names: Sequence[str] | None = None,
    split: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> dict[str, dict[str, dict]]:
    """Run a finished run's evaluators and print their tables.

    Args:
      workdir, step, overrides: see `experiment.load`.
      names: which evaluators; default all, with `split` the first of each kind.
      split: score this split of the evaluators' source.
      console: where to print.

    Returns:
      {evaluator: {score: Row as a dict}}, and under "signature" how it was made.
    """
    config = config_lib.load_json(Path(workdir) / "config.json")
    for name in names or ():
        registry.choose(config.evals, name, "evaluation")
    names = list(names or config.evals)
    overrides = dict(overrides or {})
    if split is not None:
        # Evaluations that differ in nothing but the split would be the same now.
        names = list({config.evals[name].name: name for name in reversed(names)}.values())
        overrides.update({f"evals.{name}.source.split": split for name in names})
    experiment, params, variables, step = load(workdir, overrides, step)
    console = console or Console()
    tables = {}
    for name in names:
        title = f"{name} ({split})" if split else name
        with Writers(experiment.workdir, (), step, step, console) as writers:
            _, rows, signature = run_evaluator(
                experiment,
                name,
                params,
                variables,
                step,
                writers,
                table=True,
                label=split and f"{name}_{split}",
            )
        print_table(title, rows, signature, console)
        tables[name] = {**{key: row._asdict() for key, row in rows.items()}, "signature": signature}
    return tables


def run_evaluator(
    experiment: Experiment,
    name: str,
    params: dict,
    variables: dict,
    step: int,
    writers: Writers,
    table: bool = False,
    label: str | None = None,
) -> tuple[dict[str, float], dict[str, Row], str]:
    """Run one evaluator; write its numbers and its picture, and with `table` its predictions and scores/<label>_<step>.json.

    Args:
      label: of the files, default the evaluator's name.

    Returns:
      The scores; with `table` also the rows with intervals, floor and ceiling, and the signature.
    """
    evaluator = experiment.evaluators[name]
    first = jax.process_index() == 0
    stem = f"{label or name}_{step:06d}"
    figure = experiment.workdir / "figures" / f"{stem}.png"
    scores = evaluator.run(experiment.predictor(params, variables), figure)
    named = {f"{name}/{key}": float(value) for key, value in scores.items()}
    writers.scalars(step, named)
    if first and figure.exists():
        writers.picture(step, f"{name}/figure", figure)
    if not table:
        return named, {}, ""
    signature = evaluator.signature(step=step, **experiment.config.task.get("decode", {}))
    rows = evaluator.table(scores)
    if first:
        evaluator.write(experiment.workdir / "predictions" / f"{stem}.jsonl")
        path = experiment.workdir / "scores" / f"{stem}.json"
        path.parent.mkdir(exist_ok=True)
        whole = {"rows": {key: row._asdict() for key, row in rows.items()}, "signature": signature}
        path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return named, rows, signature


def print_table(name: str, rows: dict[str, Row], signature: str, console: Console) -> None:
    """Scores with what surrounds them."""
    full = any(row.interval for row in rows.values())
    table = Table(title=name, title_justify="left", title_style="bold")
    table.add_column("score")
    columns = ("value", "95 % interval", "floor", "ceiling") if full else ("value",)
    for column in columns:
        table.add_column(column, justify="right")

    def text(value: float | None) -> str:
        if value is None:
            return ""
        # Small distances, such as KID, would be zeros.
        return f"{value:.2f}" if full and not 0 < abs(value) < 0.1 else f"{value:.4f}"

    for key, row in rows.items():
        interval = " .. ".join(map(text, row.interval)) if row.interval else ""
        cells = (text(row.value), interval, text(row.floor), text(row.ceiling))
        table.add_row(key, *cells[: len(columns)])
    console.print(table)
    if signature:
        console.print(signature, highlight=False, soft_wrap=True)
