"""Start parameters from a weights file of another library, or from a finished run of ours."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mmgen_jax.core.checkpoint import Checkpointer
from mmgen_jax.pretrained import files, names

Tree = Mapping[str, Any]


@dataclasses.dataclass
class Report:
    """What a file gave to parameters; `str` says it in a few lines.

    Attributes:
      source: the file, and whose it is.
      taken: {our array: their names}.
      resized: (our array, their grid, our grid) of positions, which were resized (bicubic, antialiased where the grid shrinks),
        and (our array, their length, ours) of a text's positions, which were cut.
      missing: our arrays that the file does not have; they stay as initialised.
      left: their names that were not used.
      mismatched: (our array, their shape, our shape) of those that do not fit; they stay as initialised.
      notes: what else to look at.
    """

    source: str
    taken: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    resized: list[tuple[str, tuple, tuple]] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    left: list[str] = dataclasses.field(default_factory=list)
    mismatched: list[tuple[str, tuple, tuple]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        total = len(self.taken) + len(self.missing) + len(self.mismatched)
        lines = [f"{self.source}: {len(self.taken)} of {total} arrays taken"]
        lines += [f"  resized: {name} from {_size(a)} to {_size(b)}" for name, a, b in self.resized]
        lines += [
            f"  does not fit, stays as initialised: {name} is {list(a)} there and {list(b)} here"
            for name, a, b in self.mismatched[:8]
        ]
        if len(self.mismatched) > 8:
            lines.append(f"  and {len(self.mismatched) - 8} more that do not fit")
        if self.missing:
            lines.append(f"  not in it, stays as initialised: {_brief(self.missing, '/')}")
        if self.left:
            lines.append(f"  left in it: {_brief(self.left, '.')}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def _size(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _brief(every: Iterable[str], separator: str) -> str:
    """Names, those under one head as its name with their number."""
    groups: dict[str, list[str]] = {}
    for name in every:
        groups.setdefault(name.split(separator)[0], []).append(name)
    parts = [
        f"{key}{separator}* ({len(group)})" if len(group) > 2 else ", ".join(group)
        for key, group in groups.items()
    ]
    return ", ".join(parts[:8]) + (f" and {len(parts) - 8} more" if len(parts) > 8 else "")


class _Slot(NamedTuple):
    """Where an array of ours lives: which tree ("params" or a collection), its keys, its index in a stack of blocks."""

    tree: str
    keys: tuple[str, ...]
    index: int | None
    shape: tuple[int, ...]


def _leaves(tree: Any, keys: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, Mapping):
        return [(keys, tree)]
    return [leaf for key, value in tree.items() for leaf in _leaves(value, (*keys, key))]


def flatten(trees: Mapping[str, Tree]) -> dict[str, _Slot]:
    """{"block1/qkv/kernel": where it is}; the stacked arrays of "blocks" one by one. No two collections use the same name."""
    slots = {}
    for name, tree in trees.items():
        for keys, leaf in _leaves(tree):
            if "blocks" not in keys:
                slots["/".join(keys)] = _Slot(name, keys, None, tuple(leaf.shape))
                continue
            at = keys.index("blocks")
            for i in range(leaf.shape[0]):
                path = "/".join((*keys[:at], f"block{i + 1}", *keys[at + 1 :]))
                slots[path] = _Slot(name, keys, i, tuple(leaf.shape[1:]))
    return slots


def get(trees: Mapping[str, Tree], slot: _Slot) -> np.ndarray:
    """The array of a slot."""
    leaf = dig(trees[slot.tree], slot.keys)
    return np.asarray(leaf if slot.index is None else leaf[slot.index])


def dig(tree: Tree, keys: Iterable[str]) -> Any:
    """tree[key][key]..."""
    for key in keys:
        tree = tree[key]
    return tree


def put(tree: Tree, keys: tuple[str, ...], value: Any) -> dict:
    """A copy of the tree with another value there."""
    if not keys:
        return value
    return {**tree, keys[0]: put(tree[keys[0]], keys[1:], value)}


def place(params: Tree) -> dict[str, str]:
    """What the tables of `names` call the parts of this model: {a first key of ours: what stands there instead}."""
    if {"image", "text"} <= set(params):
        return {}
    if {"tower", "head"} <= set(params):
        return {"tower": "image"}
    text = "embed" in params and not isinstance(params["embed"], Mapping)
    return {"": "text" if text else "image"}


def placed(path: str, where: Mapping[str, str]) -> str:
    """A path by the tables' names."""
    if "" in where:
        return f"{where['']}/{path}"
    first, _, rest = path.partition("/")
    return f"{where[first]}/{rest}" if first in where else path


def load(
    path: str | Path, params: Tree, variables: Tree | None = None, *, tokenizer: str | None = None
) -> tuple[dict, dict, Report]:
    """Fill parameters of a tower, a dual encoder or a classifier from a file.

    Args:
      path: a weights file or folder of another library (see `files.read`), or the workdir of a run of ours, of whose newest
        checkpoint (its averaged parameters, where kept) the part with the same structure is taken.
      params: as initialised; what the file does not give stays as it is.
      variables: {"batch_stats": their part}, where there are any.
      tokenizer: fingerprint of this run's tokenizer, to notice that a workdir's word vectors belong to other words.

    Returns:
      New params and variables, taken arrays as numpy in our types, and the report. Grids of positions are resized (bicubic,
      antialiased where they shrink), positions of a text are cut to ours; a class token's position stays.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: no such file, or the weights of another architecture; names arrays and shapes.
    """
    path = Path(path)
    trees = {"params": params, **(variables or {})}
    slots = flatten(trees)
    if (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        report, offers, sample = _from_run(path, params, slots, tokenizer)
    else:
        report, offers, sample = _from_file(path, params, slots)
    taken = {}
    for name, (array, theirs) in offers.items():
        fitted = _fit(name, array, slots[name].shape)
        if fitted is None:
            report.mismatched.append((name, array.shape, slots[name].shape))
            continue
        if fitted.size != array.size:
            report.resized.append((name, *_sizes(name, array.shape, fitted.shape)))
        taken[name] = fitted
        report.taken[name] = theirs
    report.missing = [name for name in slots if name not in offers]
    if len(report.mismatched) >= len(report.taken):
        raise ValueError(f"{report.source} does not fit this model: {_why(report, slots, sample)}")
    new = {name: _rebuild(name, tree, slots, taken) for name, tree in trees.items()}
    return new.pop("params"), new, report


def load_all(
    params: Tree,
    variables: Tree,
    init_from: Mapping[tuple[str, ...], str | Path],
    *,
    tokenizer: str | None = None,
) -> tuple[dict, dict, list[Report]]:
    """Fill the parts of a State's params and variables that a task's `init_from` names; see `load`.

    Args:
      params, variables: {network: tree}, {network: {collection: tree}}, as in State.
      init_from: {("model", "encoder"): path}, in the order in which they are filled.
    """
    reports = []
    for keys, path in init_from.items():
        network, *rest = keys
        part = {}
        for collection, tree in variables.get(network, {}).items():
            try:
                part[collection] = dig(tree, rest)
            except KeyError:  # this part has no such variables
                continue
        new, part, report = load(path, dig(params, keys), part, tokenizer=tokenizer)
        params = put(params, keys, new)
        for collection, tree in part.items():
            variables = put(variables, (network, collection, *rest), tree)
        report.source = f"{'/'.join(keys)} from {report.source}"
        reports.append(report)
    return params, variables, reports


Offers = dict[str, tuple[np.ndarray, tuple[str, ...]]]


def _from_file(path: Path, params: Tree, slots: Mapping[str, _Slot]) -> tuple[Report, Offers, list[str]]:
    """What another library's file has for our slots, and some of its arrays in words."""
    weights = files.read(path)
    key, renamed, count = names.recognise(weights)
    if 2 * count < len(renamed):
        known = ", ".join(dialect.title for dialect in names.DIALECTS.values())
        raise ValueError(
            f"{path} has no model that is known here: of its {len(renamed)} arrays ({', '.join([*weights][:5])}, ...) "
            f"{names.DIALECTS[key].title}, the nearest, has {count}. Known: {known}."
        )
    dialect = names.DIALECTS[key]
    _check_config(path, key, weights.config)
    where = place(params)
    wanted = {placed(name, where): name for name in slots}
    offers: Offers = {}
    report = Report(f"{path} ({dialect.title})")
    for leaf in names.concrete(dialect.table, wanted, renamed):
        theirs = tuple(renamed[name] for name in leaf.theirs if name in renamed)
        if len(theirs) < len(leaf.theirs) or not any(name in wanted for name in leaf.ours):
            continue
        arrays = [weights[name] for name in theirs]
        try:
            ours = leaf.read(*arrays)
        except ValueError as error:  # axes that cannot be taken apart so
            shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in zip(theirs, arrays, strict=True))
            raise ValueError(f"{path} does not fit {dialect.title}: {shapes} ({error}).") from None
        for name, array in zip(leaf.ours, ours, strict=True):
            if name in wanted and array is not None:
                offers[wanted[name]] = (array, theirs)
    used = {name for _, theirs in offers.values() for name in theirs}
    report.left = [name for name in renamed.values() if name not in used]
    report.notes = _settings(weights.config)
    return report, offers, [f"{name} {list(weights[name].shape)}" for name in [*weights][:4]]


def _check_config(path: Path, dialect: str, config: Mapping[str, Any]) -> None:
    if dialect != "hf_resnet":
        return
    for key in ("downsample_in_bottleneck", "downsample_in_first_stage"):
        if config.get(key):
            raise ValueError(
                f"{path}/config.json has {key}: true, strides that nn/resnet.py (version 1.5) does not have, so the "
                "weights would compute something else. Take weights with the strides of version 1.5."
            )


def _settings(config: Mapping[str, Any]) -> list[str]:
    """What no shape shows and the tower's fields have to agree with, from a Hugging Face config.json."""
    notes = []
    ours = {"hidden_act": "activation", "layer_norm_eps": "epsilon", "num_attention_heads": "heads"}
    for part in ("vision_config", "text_config", None):
        values = config.get(part, {}) if part else config
        found = [f"{name} {values[key]}" for key, name in ours.items() if key in values]
        if found:
            notes.append(f"its {part or 'config.json'} has {', '.join(found)}: the tower's fields must agree")
    return notes


def _from_run(
    workdir: Path, params: Tree, slots: Mapping[str, _Slot], tokenizer: str | None
) -> tuple[Report, Offers, list[str]]:
    """What a finished run of ours has for our slots: the part of its model that has most of them in the same shapes."""
    checkpointer = Checkpointer(workdir / "checkpoints")
    try:
        theirs, variables, step, facts = checkpointer.restore_arrays()
    finally:
        checkpointer.close()

    def nodes(tree: Any, keys: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Tree]]:
        if isinstance(tree, Mapping):
            yield keys, tree
            for key, value in tree.items():
                yield from nodes(value, (*keys, key))

    best, score = None, (-1, -1)
    for keys, tree in nodes(theirs, ()):
        have = flatten({"params": tree})
        same = [name for name in have if name in slots]
        points = (sum(have[name].shape == slots[name].shape for name in same), len(same))
        if points > score:
            best, score = (keys, tree), points
    (network, *rest), tree = best if best[0] else (("",), best[1])
    trees = {"params": tree}
    for collection, value in variables.get(network, {}).items():
        try:
            trees[collection] = dig(value, rest)
        except KeyError:  # this part has no such variables
            continue
    have = flatten(trees)
    inside = "/".join((network, *rest))
    offers = {name: (get(trees, slot), (f"{inside}/{name}",)) for name, slot in have.items() if name in slots}
    report = Report(f"{workdir} (step {step}, {inside})", left=[name for name in have if name not in slots])
    words = [name for name in offers if name.rpartition("/")[2] == "embed"]
    if tokenizer is not None and words and facts.get("tokenizer") != tokenizer:
        report.notes.append(f"its tokenizer is another one: the vectors of {words[0]} belong to other words")
    return report, offers, [f"{name} {list(slot.shape)}" for name, slot in list(have.items())[:4]]


def _fit(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array in our shape, where that can be: positions are resized or cut. None: it does not fit."""
    if array.shape == shape:
        return array
    if array.size == 1 and shape == ():  # a scale that is a vector of one
        return array.reshape(())
    tail = name.split("/")[-2:]
    if tail[-1] != "position" or array.shape[-1] != shape[-1] or array.ndim != len(shape):
        return None
    if array.ndim == 3:
        return _resize(array, shape[:2])
    if tail[0] == "pool":  # CLIP's attention pool: the mean's position, then the grid's
        rows, columns = (math.isqrt(n - 1) for n in (len(array), shape[0]))
        if (rows**2 + 1, columns**2 + 1) != (len(array), shape[0]):
            return None
        grid = _resize(array[1:].reshape(rows, rows, -1), (columns, columns))
        return np.concatenate([array[:1].astype(np.float32), grid.reshape(columns**2, -1)])
    return array[: shape[0]] if len(array) > shape[0] else None


def _resize(grid: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return np.asarray(jax.image.resize(grid.astype(np.float32), (*size, grid.shape[-1]), "bicubic"))


def _sizes(name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> tuple[tuple, tuple]:
    """The grids, or the lengths, between which `_fit` has changed."""
    if name.split("/")[-2:] == ["pool", "position"]:
        return tuple((math.isqrt(x[0] - 1),) * 2 for x in (theirs, ours))
    return theirs[:-1], ours[:-1]


def _why(report: Report, slots: Mapping[str, _Slot], theirs: Iterable[str]) -> str:
    """Which arrays and shapes speak against it."""
    if report.mismatched:
        lines = [f"{name}: {list(a)} there, {list(b)} here" for name, a, b in report.mismatched[:8]]
        lines += [f"and {len(report.mismatched) - 8} more"] * (len(report.mismatched) > 8)
        return (
            f"{len(report.mismatched)} arrays have other shapes, {len(report.taken)} fit:\n  "
            + "\n  ".join(lines)
            + "\nTake weights of this architecture, or the variant that they were made with."
        )
    ours = (f"{name} {list(slot.shape)}" for name, slot in list(slots.items())[:4])
    return (
        f"none of its arrays has a place here. There: {', '.join(theirs)}, ...; here: {', '.join(ours)}, ...\n"
        "Take weights of this architecture, and give init_from in the part of the model that they are for."
    )


def _rebuild(
    which: str, tree: Tree, slots: Mapping[str, _Slot], taken: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The tree with what was taken in place of what was there, in its types."""
    changes: dict[tuple[str, ...], dict[int | None, np.ndarray]] = {}
    for name, array in taken.items():
        if slots[name].tree == which:
            changes.setdefault(slots[name].keys, {})[slots[name].index] = array
    for keys, parts in changes.items():
        old = dig(tree, keys)
        if None in parts:
            new = parts[None].astype(old.dtype)
        else:
            stack = [parts[i] if i in parts else np.asarray(old[i]) for i in range(old.shape[0])]
            new = np.stack([x.astype(old.dtype) for x in stack])
        tree = put(tree, keys, new)
    return dict(tree)
