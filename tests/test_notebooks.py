"""Every notebook runs in its tiny form, shows what it promises, and is kept without outputs."""

import ast
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path):
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_without_outputs(path):
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_redefines_nothing_of_the_package(path):
    """No class, no network, no loop of its own; its few functions have names that the package lacks."""
    code = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    tree = ast.parse("\n".join(line for line in code.splitlines() if not line.startswith("%")))
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
    modules = [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "mmgen_jax").rglob("*.py")]
    public = {node.name for module in modules for node in module.body if isinstance(node, ast.FunctionDef)}
    assert not defined & public
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert any(name.startswith("mmgen_jax.") for name in imported)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_in_tiny_form(path, tmp_path, monkeypatch, script_env):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name, value in {
        **{name: value for name, value in script_env.items() if name.startswith("JAX_")},
        "MMGEN_TINY": "1",
        "MMGEN_RUNS": tmp_path,
        "IPYTHONDIR": tmp_path / "ipython",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }.items():
        monkeypatch.setenv(name, str(value))
    notebook = read(path)
    client = nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(path.parent)}}, kernel_name="python3"
    )
    # The kernel of this very environment, whatever else "python3" may be on this machine.
    client.create_kernel_manager().kernel_cmd = [
        sys.executable,
        "-m",
        "ipykernel_launcher",
        "-f",
        "{connection_file}",
    ]
    client.execute()
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 4
    assert list(tmp_path.rglob("config.json")), "the runs are kept where MMGEN_RUNS says"
