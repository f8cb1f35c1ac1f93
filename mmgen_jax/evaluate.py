"""The evaluators of a config, during training and on a finished checkpoint."""

import json
from pathlib import Path
from typing import Any

import jax
import ml_collections
from rich.console import Console
from rich.table import Table

from mmgen_jax.core import config as config_lib
from mmgen_jax.core.writer import Writers
from mmgen_jax.evaluators.base import Row
from mmgen_jax.experiment import Experiment


def load(workdir: str | Path, overrides: dict[str, Any] | None = None, step: int | None = None):
    """A finished run: (experiment, params, variables, step), from its config.json and a checkpoint.

    overrides: {"task.decode.beam": 5}, applied to the config. step: default the newest.
    """
    workdir = Path(workdir)
    config = config_lib.load_json(workdir / "config.json")
    with config.unlocked():
        config.update_from_flattened_dict(overrides or {})
    # A finished run is read on whatever is at hand, not on the mesh that trained it.
    config.mesh = ml_collections.ConfigDict({"fsdp": -1})
    experiment = Experiment(config, workdir)
    checkpointer = experiment.checkpointer()
    params, variables, step = checkpointer.restore_for_eval(experiment.abstract, experiment.shardings, step)
    checkpointer.close()
    return experiment, params, variables, step


def run_evaluator(
    experiment: Experiment,
    name: str,
    params: dict,
    variables: dict,
    step: int,
    writers: Writers,
    table: bool = False,
) -> dict[str, Row]:
    """Run one evaluator, write its numbers and its picture; with `table` also intervals, floor and ceiling."""
    evaluator = experiment.evaluators[name]
    figure = experiment.workdir / "figures" / f"{name}_{step:06d}.png" if jax.process_index() == 0 else None
    scores = evaluator.run(experiment.predictor(params, variables), figure)
    writers.scalars(step, {f"{name}/{key}": value for key, value in scores.items()})
    if figure is not None and figure.exists():
        writers.picture(step, f"{name}/attention", figure)
    return evaluator.table(scores) if table else {}


def print_table(name: str, rows: dict[str, Row], console: Console) -> None:
    """Scores with what surrounds them."""
    full = any(row.interval for row in rows.values())
    table = Table(title=name, title_justify="left", title_style="bold")
    table.add_column("score")
    columns = ("value", "95 % interval", "floor", "ceiling") if full else ("value",)
    for column in columns:
        table.add_column(column, justify="right")

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}" if full else f"{value:.4f}"

    for key, row in rows.items():
        interval = f"{row.interval[0]:.2f} .. {row.interval[1]:.2f}" if row.interval else ""
        cells = (text(row.value), interval, text(row.floor), text(row.ceiling))
        table.add_row(key, *cells[: len(columns)])
    console.print(table)


def to_json(rows: dict[str, Row]) -> str:
    """A table as JSON."""
    return json.dumps({key: row._asdict() for key, row in rows.items()}, indent=2)
