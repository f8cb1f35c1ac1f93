"""A run's checkpoints from the outside: list them, verify every bit, convert them, delete what nobody needs."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mmgen_jax.core import checkpoint, config, registry, step_folders
from mmgen_jax.core.checkpoint import Checkpointer
from mmgen_jax.core.lock import Lock
from mmgen_jax.core.optimizer import path_name
from mmgen_jax.data.pipeline import ANSWERS, SHAPES, TOKENIZER
from mmgen_jax.experiment import CONFIG

KINDS = ("safetensors", "evaluation", "whole")


class Found(NamedTuple):
    """A checkpoint on disk.

    Attributes:
      step: its number.
      written: when, in seconds since 1970, by the clock of the machine that wrote it.
      size: bytes.
      sealed: whether its files have fingerprints.
      kept: why it stays: "newest", "every n", "best"; "" for one that the next save deletes.
      scores: {name: value} of its evaluations.
    """

    step: int
    written: float
    size: int
    sealed: bool
    kept: str
    scores: Mapping[str, float]


def folder_of(workdir: Path) -> Path:
    """The folder of a run's checkpoints.

    Raises:
      FileNotFoundError: the run has none.
    """
    if not (workdir / "checkpoints").is_dir():
        raise FileNotFoundError(f"No checkpoints under {workdir}. A run gets them from scripts/train.py.")
    return workdir / "checkpoints"


def policy(workdir: Path) -> dict[str, Any]:
    """What the run's config says of keeping: {"keep", "keep_every", "best", "lower"}."""
    given = config.load_json(workdir / CONFIG).checkpoint.to_dict()
    defaults = {"keep": 3, "keep_every": 0, "best": "", "lower": False}
    return {key: given.get(key, value) for key, value in defaults.items()}


def _kept(folder: Path, keep: int, keep_every: int, best: str, lower: bool) -> dict[int, str]:
    best_step = step_folders.best(step_folders.scores(folder), best, lower) if best else None
    return step_folders.kept(step_folders.steps(folder), keep, keep_every, best_step)


def find(workdir: Path) -> tuple[list[Found], list[str]]:
    """A run's checkpoints, the oldest first, and what else lies in their folder, in words."""
    folder = folder_of(workdir)
    kept, scores = _kept(folder, **policy(workdir)), step_folders.scores(folder)
    found = []
    for step in step_folders.steps(folder):
        path = folder / str(step)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        sealed = step_folders.is_sealed(path)
        found.append(
            Found(step, path.stat().st_mtime, size, sealed, kept.get(step, ""), scores.get(step, {}))
        )
    others = [f"{path.name}: set aside" for path in step_folders.aside(folder)]
    others += [f"{path.name}: half-written or half-deleted" for path in step_folders.leftovers(folder)]
    others += [f"{path.name}: holds no checkpoint" for path in step_folders.empty(folder)]
    now = time.time()
    others += [
        f"{item.step}: written in the future by this machine's clock" for item in found if item.written > now
    ]
    return found, others


def verify(workdir: Path, step: int | None = None) -> dict[int, list[str]]:
    """Read every byte of a step, or of all. -> {step: what is wrong}; an empty list where nothing is.

    Raises:
      CheckpointError: there is no such step.
    """
    folder = folder_of(workdir)
    found = {}
    for number in _chosen(folder, step):
        path = folder / str(number)
        try:
            found[number] = step_folders.problems(path)
            written = step_folders.read_facts(path).get("checksums", {})
            arrays = checkpoint.changed(checkpoint.read_tree(path, None), written)
            found[number] += [f"the numbers of {name} have changed" for name in arrays]
        except step_folders.Damaged as error:
            found[number] = [*found.get(number, []), str(error).removeprefix(f"{path} ")]
    return found


def _chosen(folder: Path, step: int | None) -> list[int]:
    there = step_folders.steps(folder)
    if step is not None and step not in there:
        have = ", ".join(map(str, there)) or "none"
        raise step_folders.CheckpointError(f"No checkpoint {step} under {folder}; there: {have}.")
    return there if step is None else [step]


def convert(workdir: Path, kind: str, out: Path, step: int | None = None, average: bool = True) -> int:
    """Write a checkpoint in another form. -> its step.

    Args:
      kind: "safetensors", a file of what computes: arrays "params/<path>" and "variables/<path>", with step and config as its
        metadata; "evaluation", a workdir without the optimizer that evaluation, captioning, search and generation open, and
        `init_from`; "whole", a workdir in today's format, of which training goes on.
      out: the file or folder, which must not be there.
      step: default the newest that is whole.
      average: the parameters' average where there is one, and not they themselves; "whole" has both.
    """
    if kind not in KINDS:
        raise ValueError(f'Unknown form "{kind}".{registry.nearest(kind, KINDS)}')
    if out.exists():
        raise FileExistsError(f"{out} is already there. Take another --out, or delete it.")
    folder = folder_of(workdir)
    checkpointer = Checkpointer(folder)
    params, variables, step, facts = checkpointer.restore_arrays(step, average=average)
    if kind == "safetensors":
        from safetensors.numpy import save_file

        leaves = jax.tree_util.tree_leaves_with_path({"params": params, "variables": variables})
        arrays = {path_name(path): np.ascontiguousarray(leaf) for path, leaf in leaves}
        text = json.dumps(json.loads((workdir / CONFIG).read_text(encoding="utf-8")))
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, out, {"step": str(step), "config": text, "format": "flax"})
        return step
    tree = {"step": np.array(step, np.int32), "params": params, "variables": variables}
    if kind == "whole":
        tree = checkpoint.read_tree(folder / str(step), None, facts.get("checksums", {}))
    out.mkdir(parents=True)
    for name in (CONFIG, TOKENIZER, SHAPES, ANSWERS):
        if (workdir / name).is_file():
            shutil.copy(workdir / name, out / name)
    kept = {key: value for key, value in facts.items() if key not in checkpoint.OWN_FACTS}
    target = Checkpointer(out / "checkpoints", keep=0, facts=kept)
    target.save(step, tree, facts.get("scores"), wait=True)
    target.close()
    return step


def prune(
    workdir: Path,
    *,
    keep: int | None = None,
    keep_every: int | None = None,
    steps: Sequence[int] = (),
    aside: bool = False,
    dry_run: bool = False,
) -> list[str]:
    """Delete what need not stay. -> the names of the folders.

    Args:
      keep, keep_every: instead of what the run's config says.
      steps: delete these, and no others.
      aside: delete also what was set aside and what is half-written.
      dry_run: delete nothing.

    Raises:
      Locked: the run is being trained.
      CheckpointError: no such step, or none of those that would stay is whole.
    """
    folder = folder_of(workdir)
    with Lock(workdir):
        there = step_folders.steps(folder)
        if steps:
            doomed = [step for number in steps for step in _chosen(folder, number)]
        else:
            rules = {**policy(workdir), **({} if keep is None else {"keep": keep})}
            rules |= {} if keep_every is None else {"keep_every": keep_every}
            doomed = sorted(set(there) - _kept(folder, **rules).keys())
        stay = [step for step in there if step not in doomed]
        if doomed and not any(not step_folders.problems(folder / str(step)) for step in reversed(stay)):
            raise step_folders.CheckpointError(
                f"None of the checkpoints of {folder} that would stay is whole; nothing was deleted. "
                "scripts/checkpoint.py verify says what is wrong."
            )
        paths = [folder / str(step) for step in doomed]
        if aside:
            paths += [*step_folders.aside(folder), *step_folders.leftovers(folder)]
        for path in [] if dry_run else paths:
            step_folders.delete(path)
    return [path.name for path in paths]
