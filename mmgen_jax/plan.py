"""Plan a run before paying for it: compile a config for devices that are not there, and read memory, work and traffic off."""

import contextlib
import dataclasses
import itertools
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from mmgen_jax.core import flops, hlo, parallel, registry, sharding
from mmgen_jax.core.optimizer import path_name
from mmgen_jax.data import idx, text, transforms
from mmgen_jax.data.answers import Answers
from mmgen_jax.data.pipeline import ANSWERS, TOKENIZER
from mmgen_jax.experiment import Experiment

GIB = 2**30
PREDICTED = 64  # rows on a device that predictions get where a config has no evaluation to say so
LARGE = 2**20  # bytes below which nobody minds what travels
VOCABULARY = 10_000  # tokens of a word vocabulary whose captions are absent: as COCO's at five occurrences


class Chip(NamedTuple):
    """A device's other limits; its peak FLOP/s are in core/flops.py.

    Attributes:
      memory: bytes that a program may use (of a TPU what its compiler allows).
      bandwidth: of that memory, bytes/s.
      link: bytes/s that it sends to its neighbours along one axis of a torus, both ways; of a GPU through its switch.
      clock: Hz, that of the compiler's estimate: the peak over the FLOPs of its matrix units in a cycle; 0 has none.
    """

    memory: float
    bandwidth: float
    link: float
    clock: float = 0.0


# From the vendors' data sheets, but for the TPUs' memory, which is what libtpu 0.0.42 names when a program is too large.
CHIPS = {
    "TPU v5 lite": Chip(15.75 * GIB, 819e9, 100e9, 1.5e9),
    "TPU v5": Chip(95.74 * GIB, 2765e9, 200e9, 1.75e9),
    "TPU v6 lite": Chip(31.25 * GIB, 1640e9, 200e9, 1.75e9),
    "NVIDIA A100-SXM4-40GB": Chip(39.5 * GIB, 1555e9, 300e9),
    "NVIDIA A100-SXM4-80GB": Chip(79.0 * GIB, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip(79.0 * GIB, 3350e9, 450e9),
    "NVIDIA H200": Chip(140.0 * GIB, 4800e9, 450e9),
}
STAND_IN = {
    "name": "scenes",
    "size": 64,
    "length": 100,
    "max_objects": 1,
}  # with classes, for those who need them


@dataclasses.dataclass
class Plan:
    """What `make` found. All bytes are a chip's; "step" is one training step.

    Attributes:
      name, topology, device, devices, mesh, batch_size: of what.
      assumed: what was not at hand, and what took its place.
      parameters: network -> how many.
      bytes: kind -> bytes while a step runs: parameters, optimizer, activations (all that the step needs beside what it is
        given) and the rest; empty where the compiler gave up.
      parts: "init", "train_step" and the predictions -> bytes at their peak, with all that is alive beside them.
      memory: of the chip; None where it is not known.
      flops: of a step on all chips; matrix products and convolutions, recomputed ones too.
      traffic: bytes between a chip and its memory, a step.
      collectives: a step's, one entry a kind and axis: {"kind", "axis", "count", "sent" (bytes), "largest" (its bytes), "where"}.
      seconds: what a step takes at least: "arithmetic" at the chip's peak, "memory" at its bandwidth, "links" along one axis of
        the torus; and "compiler", its estimate of the computation. Empty where the chip is not known.
      warnings: what travels though it should stay where it is.
      sharding: a row an array of the State: {"path", "shape", "spec", "bytes"}.
      compile_seconds: how long all this took to compile.
      predicted: rows of the predictions' batch, the largest of the evaluations'; 0 where no prediction was compiled.
    """

    name: str
    topology: str
    device: str
    devices: int
    mesh: dict[str, int]
    batch_size: int
    assumed: list[str]
    parameters: dict[str, int]
    bytes: dict[str, int]
    parts: dict[str, int]
    memory: float | None
    flops: float
    traffic: float
    collectives: list[dict[str, Any]]
    seconds: dict[str, float]
    warnings: list[str]
    sharding: list[dict[str, Any]]
    compile_seconds: float
    predicted: int = 0

    @property
    def peak(self) -> int:
        """Bytes a chip needs: of the part that needs most."""
        return max(self.parts.values())

    @property
    def fits(self) -> bool | None:
        """Whether every part fits the chip's memory; None where that is not known."""
        return None if self.memory is None else self.peak <= self.memory

    @property
    def step_seconds(self) -> float | None:
        """The longest of `seconds`: they overlap at best."""
        return max(self.seconds.values(), default=None)

    @property
    def bound(self) -> str | None:
        """What bounds the step: "arithmetic", "memory" or "links"."""
        limits = {name: value for name, value in self.seconds.items() if name != "compiler"}
        return max(limits, key=limits.get, default=None)

    @property
    def examples_per_s(self) -> float | None:
        """At most so many, all chips together."""
        return self.batch_size / self.step_seconds if self.seconds else None

    @property
    def utilisation(self) -> float | None:
        """The share of the peak FLOP/s that a step of `step_seconds` reaches."""
        return self.seconds["arithmetic"] / self.step_seconds if self.seconds else None

    @property
    def sent(self) -> float:
        """Bytes that a chip sends in a step."""
        return sum(row["sent"] for row in self.collectives)

    def to_json(self) -> dict[str, Any]:
        """All attributes and properties, as JSON's types."""
        derived = ("peak", "fits", "step_seconds", "bound", "examples_per_s", "utilisation", "sent")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in derived}}


# Devices and data that are not there. ----------------------------------------------------------------------------------


def devices(topology: str) -> list[jax.Device]:
    """The devices of "v5e:4x4", "v5p:4x4x4", "v6e:16x16", "cpu:8" or "gpu:1x8" (machines x GPUs); none need exist.

    The GPUs are like the one at hand; "gpu:2x8:FILE" takes XLA's description of another ("target config", as text).

    Raises:
      ValueError: no such topology; says what the compiler says.
      ImportError: the compiler is not installed; names the extra that brings it.
    """
    kind, _, shape = topology.partition(":")
    if kind == "cpu":
        return _cpus(shape)
    if kind not in ("v5e", "v5p", "v6e", "gpu"):
        kinds = ("v5e", "v5p", "v6e", "cpu", "gpu")
        raise ValueError(
            f'Unknown topology "{topology}".{registry.nearest(kind, kinds)} Such as v5e:4x4 or cpu:8.'
        )
    from jax.experimental import topologies

    if kind == "gpu":
        shape, _, file = shape.partition(":")
        target = {"target_config": Path(file).read_text(encoding="utf-8")} if file else {}
        try:
            described = topologies.get_topology_desc(platform="cuda", topology=f"1x{shape}", **target)
        except NotImplementedError as error:
            raise ImportError('A GPU\'s plan needs its compiler: pip install "mmgen_jax[gpu]".') from error
        except RuntimeError as error:
            raise ValueError(f'No topology "{topology}": {_first_line(error)}') from error
        return list(described.devices)
    # Without these the library asks a cloud's metadata server which TPU this is, and locks the one there may be.
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(key, value)
    try:
        described = topologies.get_topology_desc(topology_name=topology, platform="tpu")
    except RuntimeError as error:
        if "not installed" in str(error):
            raise ImportError(
                'A TPU\'s plan needs its compiler: pip install "mmgen_jax[tpu-plan]".'
            ) from error
        raise ValueError(f'No topology "{topology}": {_first_line(error)}') from error
    return list(described.devices)


def _cpus(count: str) -> list[jax.Device]:
    if not count.isdigit() or int(count) < 1:
        raise ValueError(f'Topology "cpu:{count}": a number of devices follows the colon, as in cpu:8.')
    if jax.config.jax_num_cpu_devices < 0:  # nobody has said how many
        with contextlib.suppress(RuntimeError):  # JAX has started already, with as many as it has
            jax.config.update("jax_num_cpu_devices", int(count))
    found = jax.devices("cpu")
    if len(found) < int(count):
        raise ValueError(
            f"cpu:{count}, but JAX has started with {len(found)} CPU device(s): begin a new process, or set "
            f"JAX_NUM_CPU_DEVICES={count} before it starts."
        )
    return found[: int(count)]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def stand_in(config: ml_collections.ConfigDict, folder: Path) -> ml_collections.ConfigDict:
    """The same config where its data is absent: drawn scenes go through the same transforms, and so have the same shapes.

    Of the MNIST family, whose images have their size before any transform, small files of it are written to `folder`.
    """
    config, scenes = config.copy_and_resolve_references(), dict(STAND_IN)
    if {"images", "labels"} <= set(config.data.source):
        files = {"images": np.zeros((1000, 28, 28), np.uint8), "labels": np.arange(1000, dtype=np.uint8) % 10}
        for name, values in files.items():
            (folder / name).write_bytes(idx.idx_bytes(values))
        for spec in (config.data, *config.evals.values()):
            if "source" in spec:
                spec.source.update({name: str(folder / name) for name in files})
        return config
    if "answers" in config.data:
        clips = "frames" in transforms.names(config.data.transforms)
        kind = {"name": "clip_questions", "frames": 32} if clips else {"name": "scene_questions"}
        scenes = {**kind, "size": STAND_IN["size"], "length": STAND_IN["length"]}
    with config.unlocked():
        if config.task.get("model", {}).get("labels", 1) > 1:
            scenes["cells"], config.task.model.labels = True, 27
        config.data.source = {**scenes, "split": "train"}
        for evaluation in config.evals.values():
            if "source" in evaluation:
                evaluation.source = {**scenes, "split": "val"}
        if "path" in config.data.tokenizer:
            config.data.tokenizer = {"name": "words", "min_count": 1}
    return config


def build(
    config: ml_collections.ConfigDict, layout: sharding.Layout, vocabulary: int = VOCABULARY
) -> tuple[Experiment, list[str]]:
    """The config's experiment on `layout`, and what was assumed because its data is not here.

    Args:
      config: see configs/.
      layout: may be of devices that do not exist.
      vocabulary: tokens of a word vocabulary whose captions are absent; other tokenizers know theirs.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.judges = {}  # they are other runs, on the same devices only while an evaluation asks them
    try:
        return Experiment(config, finished=True, layout=layout), []
    except FileNotFoundError as error:
        spec = config.data.tokenizer
        kind = registry.choose(text.KINDS, spec.name, "tokenizer")
        size = spec.get("vocab_size") or getattr(kind, "vocab_size", None) or vocabulary
        assumed = [f"{_first_line(error)} In its place: drawn examples of the same shapes, {size:,} tokens."]
        with tempfile.TemporaryDirectory() as folder:
            words = text.Words([f"word{i}" for i in range(size - text.SPECIALS)])
            words.save(Path(folder) / TOKENIZER)
            if "answers" in config.data:
                count = config.data.answers.get("size", 3129)
                Answers([f"answer{i}" for i in range(count)]).save(Path(folder) / ANSWERS)
            return Experiment(
                stand_in(config, Path(folder)), Path(folder), finished=True, layout=layout
            ), assumed


# One plan. -------------------------------------------------------------------------------------------------------------


def make(
    config: ml_collections.ConfigDict,
    topology: str,
    *,
    mesh: Mapping[str, int] | None = None,
    batch_size: int = 0,
    step_only: bool = False,
    vocabulary: int = VOCABULARY,
    name: str = "",
) -> Plan:
    """Compile a config's init, training step and predictions for a topology, and say what they need. No array is made.

    Args:
      config: see configs/.
      topology: see `devices`.
      mesh: {"fsdp": 4}, sizes in the place of the config's; "data" takes the rest unless it is given.
      batch_size: in the place of the config's; 0 keeps that.
      step_only: the training step alone, which takes a fraction of the time.
      vocabulary: see `build`.
      name: for the title; default the task's.

    Raises:
      ValueError: the mesh, or a batch, does not divide over the devices; an unknown topology.
    """
    config, layout = _place(config, topology, mesh, batch_size)
    evals = {f"evals.{key}.batch_size": spec.get("batch_size", 0) for key, spec in config.evals.items()}
    if not step_only:
        _check_rows(evals, layout)
    experiment, assumed = build(config, layout, vocabulary)
    begin = time.perf_counter()
    state, shardings = experiment.abstract, experiment.shardings
    batch = _abstract_batch(experiment, config.data.batch_size)
    kept = {
        "parameters": _bytes(state.params, shardings.params),
        "statistics": _bytes(state.variables, shardings.variables),
        "optimizer": _bytes(state.opt_state, shardings.opt_state),
        "average": _bytes(state.ema, shardings.ema),
    }
    batch_bytes = _bytes(batch, dict.fromkeys(batch, layout.batch))
    traced = parallel.compile_step(experiment.train_step, layout, shardings).trace(state, batch)
    device = layout.mesh.devices.flat[0].device_kind
    chip = CHIPS.get(device)
    compiled, needed = _compile(traced)
    plan = Plan(
        name=name or config.task.name,
        topology=topology,
        device=device,
        devices=layout.mesh.size,
        mesh=dict(layout.mesh.shape),
        batch_size=config.data.batch_size,
        assumed=assumed,
        parameters={
            key: sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for key, tree in state.params.items()
        },
        bytes={},
        parts={},
        memory=chip.memory if chip else None,
        flops=flops.count(traced.jaxpr),
        traffic=0.0,
        collectives=[],
        seconds={},
        warnings=[],
        sharding=_sharding_table(experiment),
        compile_seconds=0.0,
    )
    # While a step runs the loop fetches the next batch.
    plan.parts["train_step"] = needed + batch_bytes
    if compiled is not None:
        _read_step(plan, compiled, chip, kept, batch_bytes)
    if not step_only:
        init = experiment.initialiser().trace(jax.eval_shape(lambda: jax.random.key(0)))
        plan.parts["init"] = _compile(init)[1]
        rows = max([*evals.values(), 0]) or min(config.data.batch_size, PREDICTED * layout.cuts)
        plan.predicted = rows
        beside = kept["optimizer"] + kept["average"]  # the rest is among the prediction's arguments
        given = (state.params, state.variables, _abstract_batch(experiment, rows), state.rng)
        for key in experiment.task.predict:
            plan.parts[f"predict {key}"] = _compile(experiment.prediction(key).trace(*given))[1] + beside
    plan.compile_seconds = time.perf_counter() - begin
    return plan


def _place(
    config: ml_collections.ConfigDict, topology: str, mesh: Mapping[str, int] | None, batch_size: int
) -> tuple[ml_collections.ConfigDict, sharding.Layout]:
    """The config with what `make` changes in it, and where it goes."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if mesh:
            config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1, **mesh})
        if batch_size:
            config.data.batch_size = batch_size
    layout = registry.call(sharding.make, config.mesh, "mesh", devices=devices(topology))
    _check_rows({"data.batch_size": config.data.batch_size}, layout)
    return config, layout


def _check_rows(sizes: Mapping[str, int], layout: sharding.Layout) -> None:
    for key, rows in sizes.items():
        if rows % layout.cuts:
            raise ValueError(
                f"{key}={rows} does not divide over data x fsdp = {layout.cuts} devices; change it."
            )


def _abstract_batch(experiment: Experiment, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    example = experiment.pipeline.example_batch()
    return {key: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for key, x in example.items()}


def _bytes(tree: Any, places: Any) -> int:
    """Bytes on one device."""
    rows = zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True)
    return sum(math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize for x, place in rows)


def _compile(traced: Any) -> tuple[Any, int]:
    """(the program, the bytes it needs); None, and what it would need, where the compiler says that this is too much."""
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        wanted = re.search(
            r"required for HLO temporaries \(([\d.]+)([KMGT])\)|Used ([\d.]+)([KMGT]) of", str(error)
        )
        if not str(error).startswith("RESOURCE_EXHAUSTED") or not wanted:
            raise
        number, unit = (part for part in wanted.groups() if part)
        return None, int(float(number) * 1024 ** ("KMGT".index(unit) + 1))
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return compiled, used + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes


def _read_step(
    plan: Plan,
    compiled: Any,
    chip: Chip | None,
    kept: dict[str, int],
    batch_bytes: int,
) -> None:
    """Fill in what the compiled step tells."""
    memory, program = compiled.memory_analysis(), hlo.Program(compiled.as_text())
    plan.bytes = {
        **kept,
        "batch": batch_bytes,
        "next batch": batch_bytes,
        "padding": max(memory.argument_size_in_bytes - sum(kept.values()) - batch_bytes, 0),
        "activations": memory.temp_size_in_bytes
        + max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0),
        "program": memory.generated_code_size_in_bytes,
    }
    plan.traffic = program.traffic()
    found = sorted(program.collectives(plan.mesh), key=lambda x: (x.kind, x.axis))
    for (kind, axis), group in itertools.groupby(found, key=lambda x: (x.kind, x.axis)):
        group = list(group)
        largest = max(group, key=lambda x: x.sent / x.count)
        plan.collectives.append(
            {
                "kind": kind,
                "axis": axis,
                "count": sum(x.count for x in group),
                "sent": sum(x.sent for x in group),
                "largest": largest.sent / largest.count,
                "where": largest.where,
            }
        )
    plan.collectives.sort(key=lambda row: -row["sent"])
    plan.warnings = _warnings(found, plan)
    peak = flops.PEAK.get(plan.device)
    if chip and peak:
        plan.seconds = {
            "arithmetic": plan.flops / plan.devices / peak,
            "memory": plan.traffic / chip.bandwidth,
            "links": plan.sent / chip.link,
        }
        cycles = program.cycles()
        if cycles and chip.clock:
            plan.seconds["compiler"] = cycles / chip.clock


def _warnings(found: Sequence[hlo.Collective], plan: Plan) -> list[str]:
    """What travels in a step though it should not.

    Parameters are never cut over "data": what is gathered there are rows of a batch. Over "fsdp" they are gathered for the
    forward pass, the backward pass and once more where a layer is recomputed, each at most in float32: more than that
    are activations, or parameters once a turn of a loop. Gradients are summed once.
    """
    notes = []
    for x in found:
        if x.kind == "all-gather" and "data" in x.axis and x.sent / x.count > LARGE:
            notes.append(
                f"gathers {_size(x.sent)} over {x.axis}, where rows should stay on their device: {x.where}"
            )
    whole = 4 * sum(plan.parameters.values())
    gathered = sum(x.sent for x in found if x.kind == "all-gather" and x.axis == "fsdp")
    if gathered > max(3 * whole, LARGE):
        notes.append(
            f"gathers {_size(gathered)} over fsdp, more than three times all parameters ({_size(whole)}): a layer gathers "
            "activations, or a loop gathers its parameters in every turn"
        )
    reduced = sum(x.sent for x in found if x.kind in ("all-reduce", "reduce-scatter"))
    if reduced > max(4 * whole, LARGE):
        notes.append(
            f"sums {_size(reduced)}, more than twice what all gradients need ({_size(2 * whole)}): a loop sums in every turn"
        )
    return notes


def _sharding_table(experiment: Experiment) -> list[dict[str, Any]]:
    rows = []
    leaves = jax.tree_util.tree_leaves_with_path(experiment.abstract)
    for (path, leaf), place in zip(leaves, jax.tree.leaves(experiment.shardings), strict=True):
        spec = [list(axis) if isinstance(axis, tuple) else axis for axis in place.spec]
        size = math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        rows.append({"path": path_name(path), "shape": list(leaf.shape), "spec": spec, "bytes": size})
    return rows


# Many plans. -----------------------------------------------------------------------------------------------------------


def meshes(count: int, tensor: bool) -> list[dict[str, int]]:
    """All ways to write `count` as data x fsdp x tensor in powers of two; without `tensor` that axis stays 1."""
    sizes = [2**i for i in range(count.bit_length())]
    return [
        {"data": count // (fsdp * cut), "fsdp": fsdp, "tensor": cut}
        for cut in (sizes if tensor else [1])
        for fsdp in sizes
        if count % (fsdp * cut) == 0
    ]


def sweep(
    config: ml_collections.ConfigDict,
    topology: str,
    *,
    shapes: Sequence[Mapping[str, int]] = (),
    batch_sizes: Sequence[int] = (),
    note: Callable[[str], None] = print,
    **options: Any,
) -> Iterator[Plan]:
    """The training step's plan for every mesh and global batch; what does not divide is noted and left out.

    Args:
      config, topology, options: see `make`.
      shapes: meshes; default all of `meshes`, with the axis "tensor" where a rule of the config names it.
      batch_sizes: default the config's.
      note: gets a line for each that is left out.
    """
    tensor = any("tensor" in str(spec) for _, spec in config.mesh.get("rules", ()))
    shapes = shapes or meshes(len(devices(topology)), tensor)
    for mesh, batch_size in itertools.product(shapes, batch_sizes or [config.data.batch_size]):
        try:
            yield make(config, topology, mesh=mesh, batch_size=batch_size, step_only=True, **options)
        except ValueError as error:
            note(f"left out: {'x'.join(map(str, mesh.values()))}, batch {batch_size}: {error}")


def rank(plans: Sequence[Plan]) -> list[Plan]:
    """Those that fit first, the fastest of them first; where nothing is known of the chip, by the memory they need."""
    return sorted(plans, key=lambda x: (x.fits is False, -(x.examples_per_s or 0.0), x.peak))


def scaling(
    config: ml_collections.ConfigDict, topology: str, topologies: Sequence[str], **options: Any
) -> Iterator[tuple[str, Plan]]:
    """("weak" or "strong", the training step's plan) on each topology.

    Weak keeps the examples a chip that the config's batch gives on `topology`; strong keeps the batch.
    """
    whole = config.data.batch_size
    per_chip = whole // len(devices(topology))
    weak = {other: per_chip * len(devices(other)) for other in topologies}
    for other, size in itertools.product(topologies, (0, whole)):  # what does not divide shows now
        _place(config, other, None, size or weak[other])
    for other, size in weak.items():
        plan = make(config, other, batch_size=size, step_only=True, **options)
        yield "weak", plan
        yield "strong", plan if size == whole else make(config, other, step_only=True, **options)


# Text. -----------------------------------------------------------------------------------------------------------------


def table(*plans: Plan) -> str:
    """The plans side by side."""
    columns = [_column(plan) for plan in plans]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    width = max(map(len, keys))
    sizes = [max(len(value) for value in column.values()) for column in columns]
    lines = [
        "  ".join(
            [f"{key:{width}}"]
            + [f"{column.get(key, ''):>{n}}" for column, n in zip(columns, sizes, strict=True)]
        ).rstrip()
        for key in keys
    ]
    notes = [f"! {plan.name} on {plan.topology}: {note}" for plan in plans for note in plan.warnings]
    notes += [f"assumed: {note}" for note in dict.fromkeys(note for plan in plans for note in plan.assumed)]
    return "\n".join(lines + notes)


def _column(plan: Plan) -> dict[str, str]:
    rows = {
        "": plan.name,
        "topology": f"{plan.topology} ({plan.devices} x {plan.device})",
        "mesh": " x ".join(f"{key} {size}" for key, size in plan.mesh.items()),
        "batch": f"{plan.batch_size:,} ({plan.batch_size / plan.devices:,.5g} a chip)",
    }
    if plan.predicted:
        rows["batch of predictions"] = f"{plan.predicted:,}"
    rows.update({f"parameters of {key}": f"{count:,}" for key, count in plan.parameters.items()})
    rows["bytes a chip"] = ""
    rows.update({f"  {key}": _size(size) for key, size in plan.bytes.items() if size})
    rows.update({f"peak of {key}": _size(size) for key, size in plan.parts.items()})
    if plan.memory is None:
        rows["fits"] = "unknown memory"
    else:
        word, spare = ("yes", "to spare") if plan.fits else ("NO", "too much")
        rows["fits"] = f"{word}, {_size(abs(plan.memory - plan.peak))} of {_size(plan.memory)} {spare}"
    rows["FLOPs a step"] = f"{plan.flops:.4g}, {plan.flops / plan.devices:.4g} a chip"
    if plan.bytes:
        rows["memory traffic a chip"] = _size(plan.traffic)
        rows["sent a chip"] = _size(plan.sent)
    for row in plan.collectives:
        rows[f"  {row['kind']} over {row['axis']}"] = f"{row['count']:,} x, {_size(row['sent'])}"
    if plan.seconds:
        rows["a step takes at least"] = ""
        rows.update({f"  {key}": f"{value * 1e3:,.2f} ms" for key, value in plan.seconds.items()})
        rows["bound by"] = plan.bound
        rows["examples/s, at most"] = f"{plan.examples_per_s:,.0f}"
        rows["utilisation"] = f"{plan.utilisation:.1%}"
    rows["compiled in"] = f"{plan.compile_seconds:.0f} s"
    return rows


def sharding_text(plan: Plan, largest: int = 12) -> str:
    """The `largest` arrays of the State on one chip, and the sum of the others."""
    rows = sorted(plan.sharding, key=lambda row: -row["bytes"])
    lines = [
        f"{_size(row['bytes']):>12}  {row['shape']!s:24} {str(row['spec']) if row['spec'] else 'whole':32} {row['path']}"
        for row in rows[:largest]
    ]
    rest = rows[largest:]
    if rest:
        lines.append(f"{_size(sum(row['bytes'] for row in rest)):>12}  in {len(rest)} other arrays")
    return "\n".join(lines)


def short_table(plans: Sequence[Plan]) -> str:
    """A line a plan, in the order given, as a Markdown table."""
    lines = [
        "| chips | data x fsdp x tensor | batch | GiB a chip | fits | sent a chip | collectives | step | examples/s | bound by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for plan in plans:
        fits = {True: "yes", False: "no", None: "?"}[plan.fits]
        cells = [
            plan.devices,
            "x".join(map(str, plan.mesh.values())),
            f"{plan.batch_size:,}",
            f"{plan.peak / GIB:.2f}",
            fits,
        ]
        if plan.bytes:
            cells += [_size(plan.sent), f"{sum(row['count'] for row in plan.collectives):,}"]
        else:
            cells += ["", ""]
        if plan.seconds:
            cells += [f"{plan.step_seconds * 1e3:,.1f} ms", f"{plan.examples_per_s:,.0f}", plan.bound]
        else:
            cells += ["", "", ""]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _size(count: float) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:.0f} B"
