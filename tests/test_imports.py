"""Imports run one way, and `import mmgen_jax` stays light."""

import ast
import subprocess
import sys
import time
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
