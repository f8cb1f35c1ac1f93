"""One training step, two modes: a compiler that cuts the program (jit), or a program a device (pmap); processes that agree."""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from mmgen_jax.core.sharding import Layout

DATA_AXIS = "data"


def axis_of(layout: Layout) -> str | None:
    """The name over which a step must average by itself: "data" in pmap mode, None where the compiler does it."""
    return DATA_AXIS if layout.mode == "pmap" else None


def total(tree: Any, axis: str | None) -> Any:
    """Sum over the devices of `axis`; nothing to do where it is None."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def gather(x: jax.Array, axis: str | None) -> jax.Array:
    """Concatenate the rows of all devices of `axis`: [B, ...] -> [N, ...]; unchanged where it is None."""
    return x if axis is None else jax.lax.all_gather(x, axis, tiled=True)


def own_rows(x: jax.Array, axis: str | None) -> jax.Array:
    """The rows that belong to this device: [N, ...] -> [B, ...], the inverse of `gather`; unchanged where `axis` is None."""
    if axis is None:
        return x
    rows = len(x) // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * rows, rows)


def whole(rows: int, axis: str | None) -> int:
    """N, where a device has `rows` of it."""
    return rows if axis is None else rows * jax.lax.axis_size(axis)


def device_key(rng: jax.Array, axis: str | None) -> jax.Array:
    """A key that differs between the devices of `axis`, so that dropout does too."""
    return rng if axis is None else jax.random.fold_in(rng, jax.lax.axis_index(axis))


def by_rows(fn: Callable, layout: Layout) -> Callable:
    """`fn(rows, shared, axis) -> rows`, called with each device's own rows, where a function must say itself what travels.

    rows: a tree of arrays [N, ...], of which each device sees its [B, ...]; shared: a tree that all see whole. `axis`
    names the devices for collectives: None (there is one), "data", or in jit mode ("data", "fsdp"). In pmap mode the
    caller sees one device's rows already.
    """
    if layout.mode == "pmap":
        return functools.partial(fn, axis=DATA_AXIS)
    if layout.cuts == 1:
        return functools.partial(fn, axis=None)
    axes = ("data", "fsdp")
    return jax.shard_map(
        functools.partial(fn, axis=axes),
        mesh=layout.mesh,
        in_specs=(P(axes), P()),
        out_specs=P(axes),
        check_vma=False,
    )


def compile_step(fn: Callable, layout: Layout, state_shardings: Any) -> Any:
    """Jit `fn(state, batch) -> (state, metrics)` for a layout; the old state's memory is reused.

    In pmap mode the function sees one device's rows and the whole state, as under `jax.pmap`, and must reduce over
    `axis_of(layout)` itself. shard_map gives that view without pmap's extra leading axis, so a State and its checkpoints look
    the same in both modes.
    """
    if layout.mode == "pmap":
        fn = jax.shard_map(
            fn, mesh=layout.mesh, in_specs=(P(), P(("data", "fsdp"))), out_specs=(P(), P()), check_vma=False
        )
    return jax.jit(
        fn,
        donate_argnums=0,
        in_shardings=(state_shardings, layout.batch),
        out_shardings=(state_shardings, layout.replicated),
    )


def compile_predict(fn: Callable, layout: Layout, param_shardings: Any, variable_shardings: Any) -> Any:
    """Jit `fn(params, variables, batch, rng) -> arrays`; the results are whole on every process."""
    return jax.jit(
        fn,
        in_shardings=(param_shardings, variable_shardings, layout.batch, layout.replicated),
        out_shardings=layout.replicated,
    )


def any_process(flag: bool) -> bool:
    """Whether `flag` is true on any process; all must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def from_first(fn: Callable[[], Any]) -> Any:
    """What `fn()`, called on process 0 alone, returns there, on every process: numbers, texts and lists of them; or its error.

    For what must be the same for all, such as what is on a disk that changes. All processes must ask.

    Raises:
      whatever fn raises, on process 0; RuntimeError with its message elsewhere.
    """
    if jax.process_count() == 1:
        return fn()
    error, said = None, b""
    if jax.process_index() == 0:
        try:
            said = json.dumps({"value": fn()}).encode()
        except Exception as raised:
            error, said = raised, json.dumps({"error": str(raised)}).encode()
    sizes = multihost_utils.process_allgather(np.array(len(said), np.int32))
    padded = np.zeros(int(sizes[0]), np.uint8)
    padded[: len(said)] = np.frombuffer(said, np.uint8)
    heard = json.loads(multihost_utils.process_allgather(padded)[0].tobytes())
    if error is not None:
        raise error
    if "error" in heard:
        raise RuntimeError(heard["error"])
    return heard["value"]
