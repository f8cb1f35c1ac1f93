"""Small trainings are broken in every way and end as if nothing had happened: scripts/soak.py's first sixty faults.

MMGEN_FAULTS=200 pytest -n 0 tests/faults/test_soak.py     so many; scripts/soak.py itself for more, and to see each
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmgen_jax import faults

ROOT = Path(__file__).resolve().parents[2]
FAULTS = int(os.environ.get("MMGEN_FAULTS", "60"))


@pytest.fixture(scope="module")
def soak(tmp_path_factory, script_env):
    """(workdir, its records)."""
    workdir = tmp_path_factory.mktemp("soak")
    command = [
        sys.executable,
        str(ROOT / "scripts" / "soak.py"),
        "--faults",
        str(FAULTS),
        "--workdir",
        str(workdir),
    ]
    done = subprocess.run(command, env=script_env, capture_output=True, text=True, timeout=60 * FAULTS)
    record = workdir / "record.jsonl"
    assert record.exists(), done.stdout + done.stderr
    records = [faults.Record(**json.loads(line)) for line in record.read_text().splitlines()]
    assert len(records) == FAULTS, done.stdout + done.stderr
    assert done.returncode == int(not all(record.passed for record in records))
    return workdir, records


@pytest.mark.parametrize("kind", faults.KINDS)
def test_nothing_is_lost_and_nothing_silent(soak, kind):
    own = [record for record in soak[1] if record.kind == kind]
    assert own, f"{FAULTS} faults have none of this kind"
    for record in own:
        assert record.detected and record.recovered and record.equal, record
        assert record.lost <= record.allowed, record


def test_all_tasks_are_broken_and_most_faults_are_real(soak):
    records = soak[1]
    assert len(records) >= 60
    tasks = Counter(record.task for record in records)
    assert tasks.keys() == {"captioner", "dual encoder", "dcgan"} and min(tasks.values()) >= 15
    assert sum(record.real for record in records if record.kind.startswith("kill -9")) >= 20


def test_the_comparison_sees_a_difference(soak, tmp_path):
    unbroken = soak[0] / "unbroken" / "captioner_1"
    shutil.copytree(unbroken, tmp_path / "copy")
    assert faults.differences(tmp_path / "copy", unbroken) == ""
    metrics = tmp_path / "copy" / "metrics.jsonl"
    first, *others = metrics.read_text().splitlines()
    row = json.loads(first)
    row["train/loss"] = float(np.nextafter(row["train/loss"], np.inf))
    metrics.write_text("\n".join([json.dumps(row), *others]) + "\n")
    assert faults.differences(tmp_path / "copy", unbroken).startswith("metrics.jsonl: ")
    assert "the states have other arrays" in faults.differences(soak[0] / "unbroken" / "dcgan_1", unbroken)
    (step,) = (tmp_path / "copy" / "checkpoints").glob("8")
    step.rename(step.with_name("7"))
    assert "the newest checkpoint of copy is 7, not 8" in faults.differences(tmp_path / "copy", unbroken)
