"""Imports run one way, and `import mmgen_jax` stays light."""

import ast
import functools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mmgen_jax"

# Each layer may import itself and those above it in this list. Modules in one layer may meet, except PEERS.
LAYERS = (
    ("core",),
    ("data", "nn", "losses", "scores", "decoding", "ranking"),
    ("models",),
    ("tasks", "evaluators", "pretrained", "figures"),
    ("experiment", "judges"),
    (
        "train",
        "signals",
        "peers",
        "left_out",
        "evaluate",
        "caption",
        "answer",
        "generate",
        "search",
        "image_files",
        "plan",
        "checkpoints",
        "report",
        "faults",
        "fault_kinds",
    ),
    ("command_line",),
    ("compare",),
)
PEERS = ({"tasks", "evaluators"}, {"data", "nn"}, {"data", "losses"}, {"nn", "losses"}, {"scores", "nn"})
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# No jax here: data workers and scores stay light.
NUMPY_ONLY = ("data", "scores")


def imported(path: Path) -> set[str]:
    """The full names of the modules that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: write the whole name of the module"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    own = part(path)
    assert own in LEVEL, f"{own} has no layer yet: add it to LAYERS in {__file__}"
    names = imported(path)
    others = {name.split(".")[1] for name in names if name.startswith("mmgen_jax.")} - {"__version__"}
    for other in others:
        assert LEVEL[other] <= LEVEL[own], f"{own} must not import {other}"
        assert {own, other} not in PEERS, f"{own} and {other} must not know each other"
    roots = {name.split(".")[0] for name in names}
    assert not roots & {"tensorflow", "torch"}, "the core works without either"
    if own in NUMPY_ONLY:
        assert not roots & {"jax", "flax", "optax"}, f"{own} is numpy alone"


@functools.cache
def parsed(path: Path) -> ast.Module:
    text = path.read_text(encoding="utf-8")
    try:
        return ast.parse(text)
    except SystemError:
        # Python 3.11.7 and before may miscount the depth of a parse while another thread or a finalizer runs (gh-106905).
        return ast.parse(text)


@functools.cache
def defined(path: Path) -> frozenset[str]:
    """What a module has at its top level, by its text alone."""
    if path.is_dir():
        return frozenset(child.stem for child in path.iterdir()) | defined(path / "__init__.py")
    names = {"__file__", "__doc__", "__name__"}
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.alias):
                names.add(part.asname or part.name.split(".")[0])
            elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                names.add(part.id)
    return frozenset(names)


def absent(path: Path) -> Iterator[str]:
    """What a file takes from modules of the package that do not have it."""
    modules, bound = {}, set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "mmgen_jax":
            parent = ROOT.joinpath(*node.module.split("."))
            for alias in node.names:
                inside = [
                    place for place in (parent / alias.name, parent / f"{alias.name}.py") if place.exists()
                ]
                if inside:
                    modules[alias.asname or alias.name] = inside[0]
                elif alias.name not in defined(parent if parent.is_dir() else parent.with_suffix(".py")):
                    yield f"{path}, line {node.lineno}: {node.module} has no {alias.name}"
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id  # one that the file also gives to something else is left out
            if name in modules and name not in bound and node.attr not in defined(modules[name]):
                yield f"{path}, line {node.lineno}: {name} has no {node.attr}"


def test_what_is_taken_from_a_module_is_there():
    """Else `module.name` fails only where it runs, perhaps in the message of a rare error."""
    files = [
        *FILES,
        *(path for folder in ("scripts", "configs", "tests") for path in ROOT.glob(f"{folder}/**/*.py")),
    ]
    assert not [problem for path in files for problem in absent(path)]


def test_what_a_module_lacks_is_found(tmp_path):
    code = "from mmgen_jax.data import text, transforms\nfrom mmgen_jax.data.text import PAD, nothing\n"
    (tmp_path / "a.py").write_text(code + "transforms.parse(1)\ntransforms.text(2)\ntext.PAD\n")
    found = [problem.partition("line ")[2] for problem in absent(tmp_path / "a.py")]
    assert found == ["2: mmgen_jax.data.text has no nothing", "4: transforms has no text"]


def test_nothing_imports_the_scripts():
    for path in FILES:
        assert not {name.split(".")[0] for name in imported(path)} & {"scripts", "configs", "tests"}, path


def test_no_file_is_named_utils():
    assert not [path for path in ROOT.glob("[!.]*/**/*.py") if "util" in path.stem]


def test_the_package_imports_in_under_two_seconds():
    """The best of three, in fresh processes: the machine may be busy with something else."""

    def seconds():
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import mmgen_jax"], check=True, cwd=ROOT)
        return time.perf_counter() - begin

    assert any(seconds() < 2.0 for _ in range(3))


def test_neither_tensorflow_nor_pytorch_is_loaded():
    code = (
        "import mmgen_jax, sys; import mmgen_jax.train, mmgen_jax.evaluate, mmgen_jax.caption\n"
        "import mmgen_jax.tasks.captioning, mmgen_jax.evaluators.captions\n"
        "heavy = 'tensorflow', 'torch', 'tensorflow_datasets', 'matplotlib.pyplot'\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
