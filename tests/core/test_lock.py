"""One process a workdir: the second is told who the first is; a dead one keeps nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mmgen_jax.core.lock import Lock, Locked, owner

HOLD = """
import sys, time
from pathlib import Path
from mmgen_jax.core.lock import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_of_the_first(tmp_path, script_env):
    """Also after the first was killed without a chance to clear up: the system lets go of its lock."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, env=script_env, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Locked) as error, Lock(tmp_path):
            pass
        assert f"{tmp_path} is in use by process {other.pid} on " in str(error.value)
        assert "seconds)" in str(error.value)
        other.send_signal(signal.SIGKILL)
    assert (tmp_path / "lock").exists()
    with Lock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_within_one_process(tmp_path):
    with Lock(tmp_path), pytest.raises(Locked, match=str(os.getpid())), Lock(tmp_path):
        pass
    with Lock(tmp_path):
        pass


@pytest.mark.parametrize(
    ("age", "said"),
    [(7200, r"\(2.0 hours\)"), (-600, "still to come: a clock .* went back"), (3, r"\(3 seconds\)")],
)
def test_age(tmp_path, age, said):
    path = tmp_path / "lock"
    path.write_text(json.dumps({"process": 7, "host": "a", "since": time.time() - age}))
    assert owner(path).startswith("process 7 on a since ")
    with pytest.raises(ValueError, match=said):
        raise ValueError(owner(path))
    # A lock that nobody holds is taken, whatever its clock says.
    with Lock(tmp_path):
        pass


def test_half_a_lock_file(tmp_path):
    (tmp_path / "lock").write_text('{"proc')
    assert owner(tmp_path / "lock") == "another process"


def test_a_folder_that_takes_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"Cannot write in .*file: .*Take another --workdir"),
        Lock(tmp_path / "file"),
    ):
        pass
