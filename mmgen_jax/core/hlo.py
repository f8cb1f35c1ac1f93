"""What a compiled program does, read from its HLO text: collectives, bytes that move, the compiler's own estimate."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Instructions that compute nothing and move nothing, or whose parts are counted by themselves.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "add-dependency", "async-start", "async-update", "async-done",
    "copy-start", "slice-start",
}  # fmt: skip
SLICES = {"dynamic-slice", "slice", "gather"}
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
FIRST = re.compile(r"\{\{([\d,]*)\}")


class Instruction(NamedTuple):
    """One line: its name, the text of its shape, its operation, its operands' names, and the rest of the line."""

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    rest: str


class Collective(NamedTuple):
    """What the devices exchange in one place of a program.

    Attributes:
      kind: one of KINDS.
      axis: the mesh axes that take part, such as "data" or "data+fsdp".
      shapes: of the results, on one device.
      count: how often it runs, loops included.
      sent: bytes that one device sends in all these runs, by the ring algorithm of each kind.
      where: the operation of the traced program that it belongs to.
    """

    kind: str
    axis: str
    shapes: tuple[tuple[int, ...], ...]
    count: int
    sent: float
    where: str


class Program:
    """A compiled module.

    Args:
      text: `compiled.as_text()`.
    """

    def __init__(self, text: str):
        self._computations: dict[str, dict[str, Instruction]] = {}
        entry = lines = None
        for line in text.splitlines():
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
                entry = name if line.startswith("ENTRY") else entry
                lines = self._computations[name] = {}
            elif lines is not None and " = " in line:
                instruction = _parse(line)
                lines[instruction.name] = instruction
        self._runs: dict[str, int] = {}
        self._count(entry, 1)

    def _count(self, name: str, times: int) -> None:
        """Add up how often each computation runs as such, not as a part of a fusion."""
        self._runs[name] = self._runs.get(name, 0) + times
        for instruction in self._computations[name].values():
            called = _called(instruction)
            if instruction.operation == "while":
                self._count(called["body"], times * self._turns(instruction, called["condition"]))
            elif instruction.operation == "conditional":
                for branch in re.findall(r"%([\w.-]+)", called.get("branch_computations", "")):
                    self._count(branch, times)
                for key in ("true_computation", "false_computation"):
                    if key in called:
                        self._count(called[key], times)
            elif instruction.operation in ("call", "async-start"):
                self._count(called.get("to_apply") or called["calls"], times)

    def _turns(self, loop: Instruction, condition: str) -> int:
        """How often a loop turns: what the compiler noted, or the constant that its counter is compared with; else once."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        lines = list(self._computations[condition].values())
        bounds = [
            re.search(r"^(\d+)", x.operands[0]) for x in lines if x.operation == "constant" and x.operands
        ]
        compares = any(x.operation == "compare" and "direction=LT" in x.rest for x in lines)
        return int(bounds[0][1]) if compares and len(bounds) == 1 and bounds[0] else 1

    def collectives(self, mesh: Mapping[str, int]) -> list[Collective]:
        """All collectives between devices.

        Args:
          mesh: axis -> size, in the order in which the devices were given to the compiler.
        """
        found, seen = [], set()
        for name, times in self._runs.items():
            for instruction in self._computations[name].values():
                if instruction.operation != "fusion":
                    found.append(self._collective(name, instruction, times, mesh))
                    continue
                inner = _called(instruction)["calls"]
                for part in self._computations[inner].values():
                    # A collective that runs beside computation is written in each of the fusions that it accompanies.
                    channel = re.search(r"channel_id=(\d+)", part.rest)
                    key = (part.operation, part.shape.split("{")[0], channel and channel[1])
                    collective = self._collective(inner, part, times, mesh)
                    if collective is not None and key not in seen:
                        seen.add(key)
                        if "all-reduce-scatter" in inner:  # how a TPU's compiler writes it
                            half = collective.sent / 2
                            collective = collective._replace(kind="reduce-scatter", sent=half)
                        found.append(collective)
        return [collective for collective in found if collective is not None]

    def _collective(
        self, computation: str, instruction: Instruction, times: int, mesh: Mapping[str, int]
    ) -> Collective | None:
        kind = instruction.operation.removesuffix("-start")
        if kind not in KINDS:
            return None
        devices = group(instruction.rest, math.prod(mesh.values()))
        size = len(devices)
        if size < 2:
            return None
        places = np.stack(np.unravel_index(devices, tuple(mesh.values())))
        axis = "+".join(name for name, row in zip(mesh, places, strict=True) if len(set(row.tolist())) > 1)
        lines = self._computations[computation]
        given = [array for name in instruction.operands for array in _arrays(lines[name].shape)]
        payload = sum(bytes for _, bytes, _ in given)
        share = (size - 1) / size
        sent = {
            "all-reduce": 2 * share,
            "all-gather": size - 1.0,
            "reduce-scatter": share,
            "all-to-all": share,
        }
        shapes = tuple(shape for shape, _, _ in given)
        if kind == "all-gather":
            # "-start" has a pair of operands and results.
            shapes = tuple(shape for shape, _, _ in _arrays(instruction.shape)[-len(given) :])
        where = re.search(r'op_name="([^"]*)"', instruction.rest)
        return Collective(
            kind, axis, shapes, times, times * payload * sent.get(kind, 1.0), where[1] if where else ""
        )

    def traffic(self) -> float:
        """Bytes that one device reads from and writes to its main memory: operands and results of every instruction.

        What the compiler keeps in fast memory (TPU: memory space 1) moves once, when it comes and when it goes. Of an
        operand of which a fusion reads a slice only the slice counts, and of one that it updates in place the update.
        """
        return float(
            sum(
                times * sum(self._moved(instruction, lines) for instruction in lines.values())
                for lines, times in ((self._computations[name], times) for name, times in self._runs.items())
            )
        )

    def _moved(self, instruction: Instruction, lines: dict[str, Instruction]) -> float:
        operation = instruction.operation
        if operation in FREE or operation.endswith("-start"):
            return 0.0
        if operation.endswith("-done"):
            return float(sum(size for _, size, _ in _arrays(instruction.shape)))
        result = sum(size for _, size, far in _arrays(instruction.shape) if far)
        operands = [
            sum(size for _, size, far in _arrays(lines[name].shape) if far) if name in lines else 0
            for name in instruction.operands
        ]
        if operation in SLICES:
            return 2.0 * result
        if operation == "dynamic-update-slice":
            return 2.0 * operands[1]
        if operation != "fusion":
            return float(result + sum(operands))
        return self._fused(_called(instruction)["calls"], result, operands)

    def _fused(self, name: str, result: float, operands: list[float]) -> float:
        lines = self._computations[name]
        parameters = {
            x.name: int(x.operands[0]) for x in lines.values() if x.operation == "parameter" and x.operands
        }
        users: dict[str, list[Instruction]] = {name: [] for name in parameters}
        for line in lines.values():
            for operand in set(line.operands) & parameters.keys():
                users[operand].append(line)
        moved = list(operands)
        for parameter, index in parameters.items():
            using = users[parameter]
            if using and all(x.operation in SLICES and x.operands[0] == parameter for x in using):
                moved[index] = min(moved[index], sum(_size(x.shape) for x in using))
            elif using and all(
                x.operation == "dynamic-update-slice" and x.operands[0] == parameter for x in using
            ):
                update = sum(_size(lines[x.operands[1]].shape) for x in using)
                result = max(result - operands[index], 0.0) + min(update, operands[index])
                moved[index] = 0.0
        return result + sum(moved)

    def cycles(self) -> float | None:
        """The compiler's estimate of what a device computes, in cycles, collectives left out; None where it gives none."""
        found = [
            times * int(cycles)
            for name, times in self._runs.items()
            for x in self._computations[name].values()
            for cycles in re.findall(r'"estimated_cycles":"(\d+)"', x.rest)
        ]
        return float(sum(found)) if found else None


def _parse(line: str) -> Instruction:
    name, _, text = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    begin = text.index("(")
    end = _closing(text, begin)
    inside = text[begin + 1 : end]
    # Operands are "%name", with or without a shape before them; a constant's and a parameter's inside is a value.
    operands = tuple(re.findall(r"%([\w.-]+)", inside)) or ((inside,) if inside else ())
    return Instruction(name.lstrip("%"), shape, text[:begin], operands, text[end + 1 :])


def _closing(text: str, begin: int) -> int:
    """Where the bracket at `begin` is closed."""
    depth = 0
    for i in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"An open bracket in HLO: {text[begin : begin + 80]}")


def _called(instruction: Instruction) -> dict[str, str]:
    """The computations that an instruction names: {"body": ..., "condition": ...}."""
    keys = "body|condition|to_apply|calls|true_computation|false_computation"
    found = dict(re.findall(rf"\b({keys})=%?([\w.-]+)", instruction.rest))
    branches = re.search(r"branch_computations=(\{[^}]*\})", instruction.rest)
    return {**found, "branch_computations": branches[1]} if branches else found


def _arrays(shape: str) -> list[tuple[tuple[int, ...], int, bool]]:
    """(dimensions, bytes, whether in main memory) of every array in a shape's text."""
    arrays = []
    for kind, dimensions, layout in ARRAY.findall(shape):
        dimensions = tuple(int(x) for x in dimensions.split(",") if x)
        bits = re.search(r"\d+", kind)
        size = math.prod(dimensions) * (int(bits[0]) if bits else 8 if kind == "pred" else 0) // 8
        arrays.append((dimensions, size, "S(" not in layout))
    return arrays


def _size(shape: str) -> int:
    return sum(size for _, size, _ in _arrays(shape))


def group(attributes: str, devices: int) -> list[int]:
    """The devices of one group of a collective, in any of the ways in which HLO writes groups."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    if pairs:
        to = dict(tuple(map(int, pair.split(","))) for pair in re.findall(r"\d+,\d+", pairs[1]))
        ring = [next(iter(to))]
        while to.get(ring[-1], ring[0]) not in ring:
            ring.append(to[ring[-1]])
        return ring
    groups = re.search(r"replica_groups=(.*)", attributes)
    if not groups or groups[1].startswith("{}"):
        return list(range(devices))
    text = groups[1]
    if text.startswith("{{"):
        return [int(x) for x in FIRST.match(text)[1].split(",")]
    iota = re.match(r"\[([\d,]+)\]<=(\S+)", text)
    if iota:
        return _iota(iota[2]).reshape([int(x) for x in iota[1].split(",")])[0].ravel().tolist()
    named = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? \{([^}]*)\}", text)
    if named is None:
        raise ValueError(f"Unknown groups of devices in HLO: {text[:120]}")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
    ids = _iota(named[2]) if named[2] else np.arange(math.prod(sizes.values()))
    # An axis may be cut again: 'a':(2)4 is the middle one of a = 2 x 4 x rest. What is not named stays at its first place.
    cuts, kept = [], []
    for name, size in sizes.items():
        parts = re.findall(rf"'{re.escape(name)}'(?::\((\d+)\)(\d+))?", named[3])
        done = 1
        for before, length in sorted((int(b or 1), int(n or size)) for b, n in parts):
            cuts += [before // done, length]
            kept += [0, slice(None)]
            done = before * length
        cuts.append(size // done)
        kept.append(0)
    return ids.reshape(cuts)[tuple(kept)].ravel().tolist()


def _iota(text: str) -> np.ndarray:
    """0, 1, ... as "[2,4]T(1,0)" orders them: of that shape, then its dimensions turned."""
    shape, turn = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    shape = [int(x) for x in shape.split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose([int(x) for x in turn.split(",")]) if turn else ids).ravel()
