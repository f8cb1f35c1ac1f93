"""The mesh, the rules that place every array on it, and batches."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmgen_jax.core.optimizer import path_name

AXES = ("data", "fsdp", "tensor")
MODES = ("jit", "pmap")
STACKED = "blocks"  # the name of parameters with a leading axis of layers, over which a loop runs (nn/transformer.py)


class Layout(NamedTuple):
    """Where things live: the mesh, the mode of the step, and the rules for arrays that every step keeps.

    Attributes:
      mesh: axes "data", "fsdp" and "tensor"; a batch is cut over the first two.
      mode: "jit" (the compiler cuts the program) or "pmap" (each device runs its own; see core/parallel.py).
      rules: (pattern, spec) pairs, first match wins; see `infer`.
      min_mb: smaller arrays stay replicated.
    """

    mesh: jax.sharding.Mesh
    mode: str
    rules: Sequence[tuple[str, Any]]
    min_mb: float

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    @property
    def cuts(self) -> int:
        """Over how many devices a batch is cut."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def batch(self) -> NamedSharding:
        return NamedSharding(self.mesh, P(("data", "fsdp")))


def make(
    *,
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    mode: str = "jit",
    rules: Sequence[tuple[str, Any]] = ((".*", "fsdp"),),
    min_mb: float = 4.0,
    devices: Sequence[jax.Device] | None = None,
) -> Layout:
    """Build a layout; one axis may be -1, which takes the devices that the others leave.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, an unknown mode, or pmap with fsdp or tensor.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1:
        raise ValueError("mesh: at most one of data, fsdp, tensor may be -1.")
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes = [len(devices) // max(known, 1) if size == -1 else size for size in sizes]
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        wanted = " x ".join(f"{name}={size}" for name, size in zip(AXES, (data, fsdp, tensor), strict=True))
        raise ValueError(
            f"mesh: {wanted} does not fit {len(devices)} device(s). Set mesh.data=-1 to take the rest."
        )
    if mode not in MODES:
        raise ValueError(f'mesh.mode is "{mode}"; it is one of: {", ".join(MODES)}.')
    if mode == "pmap" and sizes[1:] != [1, 1]:
        raise ValueError(
            "mesh.mode=pmap keeps a whole copy of the state on each device: fsdp and tensor must be 1."
        )
    # Explicit axes, the default of make_mesh, put shardings into types, which linen's layers do not know.
    mesh = jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    return Layout(mesh, mode, tuple((pattern, spec) for pattern, spec in rules), min_mb)


def _spec(shape: Sequence[int], spec: Any, sizes: Mapping[str, int]) -> P:
    """A rule's spec for one shape; an axis that does not divide its dimension is left out."""
    if spec == "fsdp":
        # The largest dimension that divides; ties go to the last, which is the features' in linen.
        fits = [(size, i) for i, size in enumerate(shape) if size % sizes["fsdp"] == 0]
        if sizes["fsdp"] == 1 or not fits:
            return P()
        return P(*(("fsdp" if i == max(fits)[1] else None) for i in range(len(shape))))
    spec = tuple(spec)[-len(shape) :] if shape else ()
    spec = (None,) * (len(shape) - len(spec)) + spec
    fits = (axis is not None and size % sizes[axis] == 0 for axis, size in zip(spec, shape, strict=True))
    return P(*(axis if ok else None for axis, ok in zip(spec, fits, strict=True)))


def infer(tree: Any, layout: Layout) -> Any:
    """A NamedSharding for every array of a tree (arrays or ShapeDtypeStructs).

    A rule is (pattern, spec). The pattern is a regex that must match the end of an array's path from a "/" on, so
    "attention/query/kernel" also finds the optimizer's moments and the average of that parameter. The spec is "fsdp" (cut the
    largest dimension that divides) or a sequence of axis names and None, for the last dimensions.
    """
    sizes = dict(layout.mesh.shape)
    rules = [(re.compile(f"(?:^|/)(?:{pattern})$"), spec) for pattern, spec in layout.rules]
    if layout.mode == "pmap":
        rules = []

    def place(path, leaf):
        name = path_name(path)
        small = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) or (
            leaf.size * leaf.dtype.itemsize < layout.min_mb * 2**20
        )
        for pattern, spec in rules:
            if not small and pattern.search(name):
                return NamedSharding(layout.mesh, _spec(leaf.shape, spec, sizes))
        return layout.replicated

    return jax.tree_util.tree_map_with_path(place, tree)


def gathered(params: Any, layout: Layout) -> Any:
    """Parameters as a step computes with them: whole over "fsdp"; what a rule cuts over "tensor" stays cut.

    Left to itself the compiler often cuts a layer's features where its parameters are cut, and gathers a batch's activations,
    which are larger, in every layer (seen on jax 0.10.2). Gradients come back summed and cut. The layers under `STACKED` stay
    cut: their loop gathers one at a time.
    """
    if layout.mesh.shape["fsdp"] == 1:
        return params

    def gather(path, x, place):
        if "fsdp" not in place.spec or STACKED in path_name(path).split("/"):
            return x
        spec = P(*(None if axis == "fsdp" else axis for axis in place.spec))
        return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, spec))

    return jax.tree_util.tree_map_with_path(gather, params, infer(params, layout))


def keep_rows(x: jax.Array) -> jax.Array:
    """Say that the rows of [N, ...] stay cut over the devices as a batch's do, and leave the other dimensions open.

    For what a loop over `STACKED` layers carries. Outside of `on_mesh`, inside of shard_map and for rows that do not divide
    nothing is said.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AxisType.Manual in mesh.axis_types or len(x) % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    return jax.lax.with_sharding_constraint(x, P(("data", "fsdp"), *[P.UNCONSTRAINED] * (x.ndim - 1)))


def on_mesh(fn: Callable, layout: Layout) -> Callable:
    """`fn`, during whose tracing `keep_rows` knows the mesh."""

    @functools.wraps(fn)
    def wrapped(*args):
        with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
            return fn(*args)

    return wrapped


def put_batch(batch: Mapping[str, np.ndarray], layout: Layout) -> dict[str, jax.Array]:
    """Put this process's rows of a batch on its devices; the result is the global batch.

    Raises:
      ValueError: the global batch does not divide over the devices.
    """
    rows = len(next(iter(batch.values()))) * jax.process_count()
    if rows % layout.cuts:
        raise ValueError(
            f"A batch of {rows} does not divide over data x fsdp = {layout.cuts} devices; change batch_size."
        )
    return {
        name: jax.make_array_from_process_local_data(layout.batch, value) for name, value in batch.items()
    }
