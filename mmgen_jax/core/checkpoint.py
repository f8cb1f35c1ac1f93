"""Checkpoints through Orbax: whole or not at all, fingerprinted, and never restored into another shape."""

import contextlib
import dataclasses
import functools
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from mmgen_jax.core import parallel, step_folders
from mmgen_jax.core.optimizer import path_name
from mmgen_jax.core.state import State
from mmgen_jax.core.step_folders import CheckpointError, Damaged

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "Damaged",
    "NoCheckpoint",
    "checksums",
    "first_bad",
    "read_tree",
]

REMEDY = "Take another one with --step, or none for the newest good one."
# Fields of a State that earlier versions did not have; zeros stand for them.
ADDED = ("guard",)
OWN_FACTS = ("sealed", "scores", "checksums")  # what is written beside the caller's facts
WRITE_LIMIT = 900  # seconds that a save may take, after which the other processes wait for it no longer


# A save that fails is told by `Checkpointer.say`, in one line; Orbax would add its threads' tracebacks.
THREADS = ("in background save thread", "_SignalingThread.run() raised an exception")
logging.get_absl_logger().addFilter(lambda record: not any(text in record.getMessage() for text in THREADS))


class NoCheckpoint(CheckpointError):
    """There is none, or none of that step, or not one that is whole."""


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _keys_to_data(tree: Any) -> Any:
    """Typed keys as plain uint32 arrays, which every version of Orbax writes."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _abstract_data(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _checksum(x: jax.Array) -> jax.Array:
    """A number that changes when any one bit of `x` does, the same however the array is cut over devices. -> uint32 scalar.

    Sums of integers do not depend on their order, and an odd factor loses no bit: sum of bits_i * (2 i + 1) mod 2^32.
    """
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{min(8 * x.dtype.itemsize, 32)}")).astype(
        jnp.uint32
    )
    # i counts through the array's rows. Not by a reshape, for which a cut array would have to be gathered.
    place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(bits * (place * jnp.uint32(2) + jnp.uint32(1)), dtype=jnp.uint32)


def _is_finite(x: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(x)) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.bool_(True)


@functools.cache
def _look() -> Callable[[Any], Any]:
    """One program for both questions, and on a CPU one that compiles fast: it is small beside a training step."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    look = lambda tree: jax.tree.map(lambda x: {"sum": _checksum(x), "finite": _is_finite(x)}, tree)
    return jax.jit(look, compiler_options=options)


def _seen(tree: Any, what: str) -> dict[str, Any]:
    found = jax.tree_util.tree_leaves_with_path(jax.device_get(_look()(tree)))
    return {path_name(path[:-1]): value for path, value in found if path[-1].key == what}


def checksums(tree: Any) -> dict[str, int]:
    """{path: checksum} of every array: a flipped bit, which Orbax does not notice, and other weights show in it."""
    return {name: int(value) for name, value in _seen(tree, "sum").items()}


def first_bad(state: State) -> str | None:
    """The path of the first of a state's arrays that has a number which is not finite; None where all are."""
    finite = _seen(_keys_to_data(_as_dict(state)), "finite")
    bad = [name for name, fine in finite.items() if not fine]
    order = ("params", "variables", "opt_state", "ema")
    bad = [name for name in bad if name.partition("/")[0] in order]
    return min(bad, key=lambda name: order.index(name.partition("/")[0]), default=None)


def _brief(error: BaseException) -> str:
    """The first line of an error, which may hold a whole storage specification."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def _print(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


class Checkpointer:
    """Saves states under `<directory>/<step>/` in the background and finds the newest good one again.

    A save that fails costs nothing but itself: earlier steps stay as they are, and it is counted and told. An old step is deleted
    only when a newer one is on the disk and training has gone on from it: at the next save, or at `wait`.

    Args:
      directory: made when the first checkpoint is saved.
      keep: how many of the newest to keep; 0 keeps all. There may be one more while training goes on.
      keep_every: steps that are a multiple of it stay for ever; 0 for none.
      best: name of a score, such as "val/CIDEr"; the step where it is best stays.
      lower: the lowest score is the best.
      failures: so many saves in a row may fail; the next that fails raises.
      facts: what a checkpoint must agree with to be of use, such as {"tokenizer": fingerprint}; written beside the state.
      say: takes what a user must hear, a line each; default standard error.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 3,
        keep_every: int = 0,
        best: str = "",
        lower: bool = False,
        failures: int = 5,
        facts: Mapping[str, Any] | None = None,
        say: Callable[[str], Any] = _print,
    ):
        self.directory = Path(directory).resolve()
        self.best, self.facts, self.say = best, dict(facts or {}), say
        self._keep, self._keep_every, self._lower, self._failures = keep, keep_every, lower, failures
        self._orbax: ocp.AsyncCheckpointer | None = None
        # The step being written; saves that failed in a row, and why the last one did.
        self._writing: int | None = None
        self._error: Exception | None = None
        self._failed, self._why = 0, ""

    @property
    def steps(self) -> list[int]:
        """The steps that are there, in ascending order; whether they are whole shows on reading. All processes must ask."""
        return parallel.from_first(lambda: step_folders.steps(self.directory))

    @property
    def latest(self) -> int | None:
        """The newest step that is there. All processes must ask."""
        return max(self.steps, default=None)

    def scores(self, step: int) -> dict[str, float]:
        """The scores that were saved with a step; none where it has none or is not there. All processes must ask."""
        return parallel.from_first(lambda: step_folders.scores(self.directory).get(step, {}))

    # ------------------------------------------------------------------------------------------------------ writing

    def save(
        self,
        step: int,
        state: State | Mapping[str, Any],
        scores: Mapping[str, float] | None = None,
        *,
        wait: bool = False,
    ) -> None:
        """Start to write `state`; returns before the disk is done. A step that is already there stays.

        Args:
          state: a State, or some of its fields by name.
          scores: {name: value} of this step's evaluations; kept beside the state, for `best`.
          wait: return once it is on the disk; what fails is tried again, for the next state may never come.

        Raises:
          CheckpointError: more saves in a row failed than may.
        """
        self.settle()
        self._start(step, state, scores)
        while wait and not self.settle():
            time.sleep(min(2.0**self._failed, 60.0))
            self._start(step, state, scores)

    def _start(self, step: int, state: State | Mapping[str, Any], scores: Mapping[str, float] | None) -> None:
        tree = _keys_to_data(_as_dict(state) if isinstance(state, State) else dict(state))
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
        there, problem = parallel.from_first(lambda: self._prepare(step, size))
        if there:
            return
        if problem:
            return self._fail(step, problem)
        facts = {**self.facts, "sealed": True, "scores": dict(scores or {}), "checksums": checksums(tree)}
        items = {"state": ocp.args.PyTreeSave(tree), "facts": ocp.args.JsonSave(facts)}
        error = None
        try:
            if self._orbax is None:
                items_of = ocp.CompositeCheckpointHandler(
                    state=ocp.PyTreeCheckpointHandler(), facts=ocp.JsonCheckpointHandler()
                )
                options = ocp.options.AsyncOptions(
                    timeout_secs=WRITE_LIMIT, post_finalization_callback=self._seal
                )
                self._orbax = ocp.AsyncCheckpointer(items_of, async_options=options)
            self._writing = step
            self._orbax.save(self.directory / str(step), args=ocp.args.Composite(**items))
        except Exception as raised:  # whatever the storage layers below happen to raise
            error = raised
        self._writing, self._error = step, error

    def _seal(self) -> None:
        """Called by Orbax on process 0, once all is written and before the folder gets its final name."""
        (folder,) = self.directory.glob(f"{self._writing}{step_folders.PARTIAL}*")
        step_folders.seal(folder, self._writing)

    def _prepare(self, step: int, size: int) -> tuple[bool, str]:
        """On process 0: make room, and see that the folder can be written. -> (whether the step is there, what is wrong)."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._clean()
            self._prune()
            folder = self.directory / str(step)
            if folder in step_folders.empty(self.directory):
                self._move(folder, "holds no checkpoint")
            if step in step_folders.steps(self.directory):
                return True, ""
            probe = self.directory / f"{step}{step_folders.PARTIAL}-probe"
            with probe.open("wb") as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
            probe.unlink()
            free = shutil.disk_usage(self.directory).free
            if free < size:
                return False, f"{size / 1e6:,.1f} MB to write and {free / 1e6:,.1f} MB free on the disk"
        except OSError as error:
            self._clean()
            return False, step_folders.why(error)
        return False, ""

    def settle(self) -> bool:
        """Wait for the save that was started, if any, and tell when it failed. -> whether the last save is on the disk.

        Raises:
          CheckpointError: more saves in a row failed than may.
        """
        if self._writing is None:
            return not self._why
        step, error = self._writing, self._error
        try:
            if self._orbax is not None:
                self._orbax.wait_until_finished()
        except Exception as raised:  # whatever the storage layers below happen to raise
            error = error or raised
        self._writing, self._error = None, None
        if parallel.any_process(error is not None):
            self._orbax = None  # Orbax's own bookkeeping may have stopped half-way
            parallel.from_first(self._clean)
            self._fail(step, step_folders.why(error) if error else "another process could not write its part")
            return False
        self._failed, self._why = 0, ""
        return True

    def _fail(self, step: int, why: str) -> None:
        self._failed, self._why = self._failed + 1, why
        newest = self.latest
        kept = (
            f"The newest checkpoint is of step {newest}"
            if newest is not None
            else "There is no checkpoint yet"
        )
        self.say(
            f"step {step} could not be saved: {why}. {kept}; training goes on ({self._failed} of {self._failures} saves in a "
            "row that may fail)."
        )
        if self._failed > self._failures:
            raise CheckpointError(
                f"{self._failed} saves in a row failed under {self.directory}: {why}. {kept}. Make room or let the folder be "
                "written, and give the same command again."
            )

    def wait(self) -> None:
        """Return once everything started is on disk, and old steps are deleted.

        Raises:
          CheckpointError: the last save failed.
        """
        if not self.settle():
            raise CheckpointError(f"The last save under {self.directory} failed: {self._why}.")
        parallel.from_first(self._prune)

    def close(self) -> None:
        """Finish writing and stop the background threads; nothing is deleted."""
        with contextlib.suppress(CheckpointError):  # it was told
            self.settle()
        if self._orbax is not None:
            self._orbax.close()
            self._orbax = None

    def _prune(self) -> None:
        """Delete the steps that need not stay, and what was half-deleted before. On process 0, with nothing being written."""
        steps = step_folders.steps(self.directory)
        best = None
        if self.best:
            best = step_folders.best(step_folders.scores(self.directory), self.best, self._lower)
        for step in sorted(set(steps) - step_folders.kept(steps, self._keep, self._keep_every, best).keys()):
            step_folders.delete(self.directory / str(step))

    def _clean(self) -> list[str]:
        """Delete what was written or deleted by half. -> its names."""
        found = step_folders.leftovers(self.directory)
        for path in found:
            with contextlib.suppress(OSError):
                path.unlink() if path.is_file() else step_folders.delete(path)
        return [path.name for path in found]

    def _move(self, folder: Path, why: str) -> None:
        """Set a folder aside and say so. On process 0."""
        try:
            self.say(f"{folder} {why}. It is now {step_folders.set_aside(folder).name}.")
        except OSError as error:
            self.say(f"{folder} {why}, and cannot be renamed ({step_folders.why(error)}); it is left out.")

    def set_aside(self, step: int, why: str) -> None:
        """Rename a step that is of no use, and say so. Only for who trains in the workdir; all processes must ask."""
        parallel.from_first(lambda: self._move(self.directory / str(step), why))

    def tidy(self) -> None:
        """Clear up after a process that died, and say so. Only for who trains in the workdir."""

        def clear():
            for name in self._clean():
                if not name.endswith(step_folders.DELETED):
                    self.say(f"{self.directory / name}: half-written when an earlier process ended, deleted.")
            for folder in step_folders.empty(self.directory):
                self._move(folder, "holds no checkpoint")

        parallel.from_first(clear)

    # ------------------------------------------------------------------------------------------------------ reading

    def restore(self, abstract: State, shardings: State, step: int | None = None) -> State:
        """Read a whole state into today's shapes and places, whatever devices wrote it, to go on training from it.

        Only for who trains in the workdir: newer steps, damaged or left behind, are set aside, so that the state's is the newest.

        Args:
          abstract: `jax.eval_shape` of the task's init.
          shardings: `sharding.infer` of it.
          step: default the newest that is not damaged.

        Raises:
          NoCheckpoint: none there, or none that is whole.
          CheckpointError: other facts, other arrays (says which), or with `step` damaged.
        """

        self.settle()
        shapes, places = _as_dict(abstract), _as_dict(shardings)

        def read(step):
            tree = self._read(shapes, places, step, optional=ADDED)
            if int(tree["step"]) != step:
                raise Damaged(f"{self.directory / str(step)} is damaged (it holds step {int(tree['step'])}).")
            return tree

        tree, taken, bad = self._newest(read, step)

        def tell():
            for number, why in bad.items():
                self._move(self.directory / str(number), why)
            for number in step_folders.steps(self.directory):
                if number > taken:
                    self._move(
                        self.directory / str(number),
                        f"is newer than step {taken}, from which training goes on",
                    )

        parallel.from_first(tell)
        if tree is None:
            self.say(f"No checkpoint under {self.directory} is whole.")
            raise NoCheckpoint(f"No checkpoint under {self.directory} is whole.")
        for name in shapes.keys() - tree.keys():
            zeros = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), shapes[name])
            tree[name] = jax.jit(zeros, out_shardings=places[name])()
        rng = jax.random.wrap_key_data(tree["rng"])
        return State(**{**tree, "rng": jax.device_put(rng, shardings.rng)})

    def restore_for_eval(
        self, abstract: State, shardings: State, step: int | None = None, *, average: bool = True
    ) -> tuple[dict, dict, int]:
        """Read what evaluation needs and nothing else: (params or, where there is one, their average, variables, step).

        With average=False the parameters themselves. What is damaged is told and left out, and nothing on the disk changes.
        """
        fields = ("params", "variables", *["ema"] * average)
        tree, places = ({name: getattr(s, name) for name in fields} for s in (abstract, shardings))
        # What was made for evaluation alone has the average in the parameters' place.
        tree, step = self._newest_whole(lambda step: self._read(tree, places, step, optional=("ema",)), step)
        return {**tree["params"], **tree.get("ema", {})}, tree["variables"], step

    def restore_arrays(
        self, step: int | None = None, *, average: bool = True
    ) -> tuple[dict, dict, int, dict]:
        """Read what evaluation needs of any run's state, without knowing its shapes; see `restore_for_eval`.

        Returns:
          (params or their average, variables, step, the facts written beside them), as numpy arrays.
        """

        def read(step):
            facts = self._facts(step)
            fields = ("params", "variables", *["ema"] * average)
            return read_tree(self.directory / str(step), fields, facts.get("checksums", {})), facts

        (tree, facts), step = self._newest_whole(read, step)
        return {**tree["params"], **tree.get("ema", {})}, tree["variables"], step, facts

    def _newest(self, read: Callable[[int], Any], step: int | None) -> tuple[Any, int, dict[int, str]]:
        """What `read` gives of a step, or of the newest that is not damaged. -> (None if none, step, {damaged: why})."""
        there, bad = self.steps, {}
        if step is not None or not there:
            if step not in there:
                have = ", ".join(map(str, there)) or "none"
                which = "" if step is None else f" {step}"
                raise NoCheckpoint(f"No checkpoint{which} under {self.directory}; there: {have}.")
            try:
                return read(step), step, bad
            except Damaged as error:
                raise CheckpointError(f"{error} {REMEDY}") from error
        for number in reversed(there):
            try:
                return read(number), number, bad
            except Damaged as error:
                bad[number] = str(error).removeprefix(f"{self.directory / str(number)} ").removesuffix(".")
        return None, -1, bad

    def _newest_whole(self, read: Callable[[int], Any], step: int | None) -> tuple[Any, int]:
        """What `read` gives of a step, or of the newest that is not damaged, and which it is."""
        found, step, bad = self._newest(read, step)
        for number, why in bad.items():
            self.say(f"{self.directory / str(number)} {why}. It is left out.")
        if found is None:
            raise NoCheckpoint(f"No checkpoint under {self.directory} is whole.")
        return found, step

    def _facts(self, step: int) -> dict:
        """A checkpoint's facts, which must agree with ours; and its files must be those that were written."""
        where = self.directory / str(step)

        def look():
            found = step_folders.problems(where)
            return (None, found) if found else (step_folders.read_facts(where), [])

        # The first process reads the files; so all agree on what they hold.
        try:
            facts, found = parallel.from_first(look)
        except (Damaged, RuntimeError) as error:
            raise Damaged(str(error)) from error
        if found:
            arrays = self._changed_arrays(where)
            also = f"; arrays: {_few(arrays)}" if arrays else ""
            raise Damaged(f"{where} is damaged ({_few(found)}{also}).")
        for name, value in self.facts.items():
            if facts.get(name) != value:
                raise CheckpointError(
                    f"{where} was written with another {name} ({facts.get(name)}; this run has {value}). "
                    f"Restore the workdir's {name} file that belongs to it, or start a new workdir."
                )
        return facts

    def _changed_arrays(self, where: Path) -> list[str]:
        """Which arrays of a damaged checkpoint are no longer what was written, as far as that can be read."""

        def look():
            try:
                written = step_folders.read_facts(where).get("checksums", {})
                return changed(read_tree(where, None), written)
            except Exception:  # damage shows as whatever the layers below happen to raise
                return []

        return parallel.from_first(look)

    def _read(self, abstract: dict, shardings: dict, step: int, optional: tuple[str, ...] = ()) -> dict:
        """Read the fields of a State that `abstract` has; those of `optional` only if they were written."""
        where, facts = self.directory / str(step), self._facts(step)
        reader = _reader()
        metadata = self._together(where, lambda: _metadata(reader, where))
        fields = [name for name in abstract if name in metadata or name not in optional]
        abstract, shardings = ({name: tree[name] for name in fields} for tree in (abstract, shardings))
        self._compare(metadata, abstract, where)
        target = jax.tree.map(_abstract_data, abstract, shardings)
        places = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.PyTreeRestore(target, restore_args=places, partial_restore=True)
        restored = self._together(where, lambda: reader.restore(where / "state", args=args))
        _check_arrays(where, restored, facts.get("checksums", {}))
        return restored

    def _together(self, where: Path, read: Callable[[], Any]) -> Any:
        """What `read` gives; where it fails on one process it fails on all."""
        error, found = None, None
        try:
            found = read()
        except Exception as raised:  # whatever the storage layers below happen to raise
            error = raised
        if parallel.any_process(error is not None):
            why = _brief(error) if error else "on another process"
            if step_folders.is_sealed(where):
                # Its files are what was written, so this is no damage, and an older one would not help.
                raise CheckpointError(
                    f"{where} cannot be read, though its files are what was written: {why}."
                ) from error
            raise Damaged(f"{where} is damaged ({why}).") from error
        return found

    @staticmethod
    def _compare(metadata: Any, abstract: Any, where: Path) -> None:
        """Refuse a checkpoint that lacks an array or holds it in another shape: Orbax alone may cut or pad."""
        have = {path_name(p): tuple(leaf.shape) for p, leaf in jax.tree_util.tree_leaves_with_path(metadata)}
        wrong = []
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda x: _abstract_data(x, None), abstract)
        ):
            name = path_name(path)
            if name not in have:
                wrong.append(f"{name}: not in the checkpoint")
            elif have[name] != tuple(leaf.shape):
                wrong.append(f"{name}: {have[name]} in the checkpoint, {tuple(leaf.shape)} in this model")
        if wrong:
            shown = "\n  ".join(wrong[:10]) + (f"\n  and {len(wrong) - 10} more" if len(wrong) > 10 else "")
            raise CheckpointError(
                f"{where} does not fit this model:\n  {shown}\nUse the config that wrote it, or a new workdir."
            )


def _reader() -> ocp.PyTreeCheckpointHandler:
    """Reads for this process alone: where one cannot, no other waits for it."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"reader_{me}"
    )
    return ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)


def _metadata(reader: ocp.PyTreeCheckpointHandler, where: Path) -> Any:
    """The description of a checkpoint's arrays."""
    metadata = reader.metadata(where / "state")
    metadata = getattr(metadata, "tree", metadata)
    if not metadata:
        raise FileNotFoundError("the list of its arrays is missing")
    return metadata


def read_tree(where: Path, fields: tuple[str, ...] | None, written: Mapping[str, int] | None = None) -> dict:
    """A step's State as it is on disk, or some of its fields: {field: tree of numpy arrays}; a field that it lacks is empty.

    Args:
      where: `<directory>/<step>`.
      written: checksums that the arrays must have.

    Raises:
      Damaged: an array cannot be read, or its numbers have changed.
    """
    reader = _reader()
    try:
        metadata = _metadata(reader, where)
        tree = {name: metadata.get(name, {}) for name in fields or metadata}
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        args = ocp.args.PyTreeRestore(target, restore_args=plain, partial_restore=True)
        found = reader.restore(where / "state", args=args)
    except Exception as error:  # damage shows as whatever the layers below happen to raise
        raise Damaged(f"{where} is damaged ({_brief(error)}).") from error
    _check_arrays(where, found, written or {})
    return found


def changed(tree: Any, written: Mapping[str, int]) -> list[str]:
    """The arrays whose numbers are not those that were written."""
    return [name for name, value in checksums(tree).items() if written.get(name, value) != value]


def _check_arrays(where: Path, tree: Any, written: Mapping[str, int]) -> None:
    names = changed(tree, written)
    if names:
        raise Damaged(f"{where} is damaged (the numbers of {_few(names)} have changed on disk).")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _as_dict(state: State) -> dict[str, Any]:
    """A State as a plain dict of its fields; the empty ones too."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
