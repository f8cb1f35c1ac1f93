"""Checkpoints through Orbax: whole or not at all, and never restored into another shape."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from mmgen_jax.core.optimizer import path_name
from mmgen_jax.core.state import State

REMEDY = "Delete it to go on from an older one."


class CheckpointError(ValueError):
    """A checkpoint that does not fit this run; the message says in what, and the remedy."""


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _keys_to_data(tree: Any) -> Any:
    """Typed keys as plain uint32 arrays, which every version of Orbax writes."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _abstract_data(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """A number that changes when any one bit of `x` does, the same however the array is cut over devices. -> uint32 scalar.

    Sums of integers do not depend on their order, and an odd factor loses no bit: sum of bits_i * (2 i + 1) mod 2^32.
    """
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{min(8 * x.dtype.itemsize, 32)}"))
    bits = bits.reshape(-1).astype(jnp.uint32)
    place = jnp.arange(bits.size, dtype=jnp.uint32)
    return jnp.sum(bits * (place * jnp.uint32(2) + jnp.uint32(1)), dtype=jnp.uint32)


def checksums(tree: Any) -> dict[str, int]:
    """{path: checksum} of every array: a flipped bit, which Orbax does not notice, and other weights show in it."""
    sums = jax.device_get(jax.tree.map(_checksum, tree))
    return {path_name(path): int(value) for path, value in jax.tree_util.tree_leaves_with_path(sums)}


def _brief(error: Exception) -> str:
    """The first line of an error, which may hold a whole storage specification."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


class Checkpointer:
    """Saves states under `<directory>/<step>/` in the background and finds the newest one again.

    Args:
      directory: made when the first checkpoint is saved.
      keep: how many to keep; 0 keeps all.
      facts: what a checkpoint must agree with to be of use, such as {"tokenizer": fingerprint}; written beside the state.
    """

    def __init__(self, directory: Path, keep: int = 3, facts: Mapping[str, Any] | None = None):
        self.directory = Path(directory).resolve()
        self.facts = dict(facts or {})
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep or None, create=True),
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "facts": ocp.JsonCheckpointHandler()},
        )

    @property
    def latest(self) -> int | None:
        """The newest whole checkpoint's step, None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: State) -> None:
        """Start to write `state`; returns before the disk is done. A step that is already there stays."""
        if step in self._manager.all_steps():
            return
        tree = _keys_to_data(_as_dict(state))
        facts = {**self.facts, "checksums": checksums(tree)}
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree), facts=ocp.args.JsonSave(facts))
        )

    def wait(self) -> None:
        """Return once everything started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish writing and stop the background threads."""
        self._manager.close()

    def restore(self, abstract: State, shardings: State, step: int | None = None) -> State:
        """Read a whole state into today's shapes and places, whatever devices wrote it.

        Args:
          abstract: `jax.eval_shape` of the task's init.
          shardings: `sharding.infer` of it.
          step: default the newest.

        Raises:
          CheckpointError: none there, damaged, other facts, or other arrays (says which).
        """
        tree = self._read(_as_dict(abstract), _as_dict(shardings), step)
        rng = jax.random.wrap_key_data(tree["rng"])
        return State(**{**tree, "rng": jax.device_put(rng, shardings.rng)})

    def restore_for_eval(
        self, abstract: State, shardings: State, step: int | None = None, *, average: bool = True
    ) -> tuple[dict, dict, int]:
        """Read what evaluation needs and nothing else: (params or, where there is one, their average, variables, step).

        With average=False the parameters themselves.
        """
        fields = ("params", "variables", *["ema"] * average)
        tree, places = ({name: getattr(s, name) for name in fields} for s in (abstract, shardings))
        step = self._step(step)
        tree = self._read(tree, places, step)
        return {**tree["params"], **tree.get("ema", {})}, tree["variables"], step

    def restore_arrays(self, step: int | None = None) -> tuple[dict, dict, int, dict]:
        """Read what evaluation needs of any run's state, without knowing its shapes.

        Returns:
          (params or their average, variables, step, the facts written beside them), as numpy arrays.
        """
        step = self._step(step)
        facts, metadata = self._open(step)
        tree = {name: metadata.get(name) or {} for name in ("params", "variables", "ema")}
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        tree = self._restore(step, target, restore_args, facts)
        return {**tree["params"], **tree["ema"]}, tree["variables"], step, facts

    def _step(self, step: int | None) -> int:
        step = self.latest if step is None else step
        if step is None or step not in self._manager.all_steps():
            have = ", ".join(map(str, self._manager.all_steps())) or "none"
            raise CheckpointError(f"No checkpoint {step or ''} under {self.directory}; there: {have}.")
        return step

    def _read(self, abstract: Any, shardings: Any, step: int | None) -> Any:
        step = self._step(step)
        facts, metadata = self._open(step)
        self._compare(metadata, abstract, self.directory / str(step))
        target = jax.tree.map(_abstract_data, abstract, shardings)
        return self._restore(step, target, ocp.checkpoint_utils.construct_restore_args(target), facts)

    def _open(self, step: int) -> tuple[dict, Any]:
        """A checkpoint's facts, which must agree with ours, and the description of its arrays."""
        where = self.directory / str(step)
        # Damage shows as whatever the storage layers below happen to raise.
        try:
            facts = self._manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))[
                "facts"
            ]
            metadata = self._manager.item_metadata(step)["state"]
            metadata = getattr(metadata, "tree", metadata)
            if not metadata:
                raise FileNotFoundError("the list of its arrays is missing")
        except Exception as error:
            raise CheckpointError(f"{where} cannot be read ({_brief(error)}). {REMEDY}") from error
        for name, value in self.facts.items():
            if facts.get(name) != value:
                raise CheckpointError(
                    f"{where} was written with another {name} ({facts.get(name)}; this run has {value}). "
                    f"Restore the workdir's {name} file that belongs to it, or start a new workdir."
                )
        return facts, metadata

    def _restore(self, step: int, target: Any, restore_args: Any, facts: Mapping[str, Any]) -> Any:
        """Read the arrays of `target` and see that their numbers are those that were written."""
        where = self.directory / str(step)
        args = ocp.args.PyTreeRestore(target, restore_args=restore_args, partial_restore=True)
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        except Exception as error:
            raise CheckpointError(f"{where} is damaged ({_brief(error)}). {REMEDY}") from error
        written = facts.get("checksums", {})
        for name, value in checksums(restored).items():
            if written.get(name, value) != value:
                raise CheckpointError(
                    f"{where} is damaged (the numbers of {name} have changed on disk). {REMEDY}"
                )
        return restored

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


def _as_dict(state: State) -> dict[str, Any]:
    """A State as a plain dict of its fields; the empty ones too."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
