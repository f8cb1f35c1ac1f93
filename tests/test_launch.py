"""scripts/launch/: shell scripts that parse and do what they say, flags that exist, and a job that is valid YAML."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "scripts" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_teach(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert os.access(path, os.X_OK)
    if path.name != "slurm.sh":  # what it is given goes to train.py
        done = subprocess.run([path], capture_output=True, text=True)
        assert done.returncode == 2 and f"scripts/launch/{path.name} " in done.stdout
        assert "set -" not in done.stdout


def test_every_flag_exists():
    text = (ROOT / "scripts" / "train.py").read_text(encoding="utf-8")
    known = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text))
    assert {"config", "workdir", "distributed"} <= known
    for path in LAUNCH.iterdir():
        # A logical line at a time: from train.py on all flags are its own.
        lines = re.sub(r"\\\n#?", " ", path.read_text(encoding="utf-8")).splitlines()
        used = {flag for line in lines if "train.py" in line for flag in flags(line.split("train.py", 1)[1])}
        if path.suffix == ".yaml":
            (job,) = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["replicatedJobs"]
            used = set(flags(" ".join(container(job)["args"])))
        assert used <= known, path.name
        assert "distributed" in used or path.name == "again.sh", path.name


def flags(text):
    return re.findall(r"(?:^|\s)--(\w+)", text)


def container(job):
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return container


def test_the_gke_job():
    job = yaml.safe_load((LAUNCH / "gke_tpu.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (slice_,) = job["spec"]["replicatedJobs"]
    spec, pod = slice_["template"]["spec"], slice_["template"]["spec"]["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] and spec["completionMode"] == "Indexed"
    chips = int(container(slice_)["resources"]["limits"]["google.com/tpu"])
    wide, high = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert spec["parallelism"] * chips == wide * high
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container(slice_)["name"]
    assert {69, 75, 137} <= set(rule["onExitCodes"]["values"])
    assert (ROOT / container(slice_)["command"][-1]).exists()


def stub(folder, name, text):
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return path


def kill(process):
    """It and all that it started, for those hold its pipes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def count(path):
    return len(path.read_text().splitlines())


@pytest.mark.parametrize(("last", "times", "starts"), [(0, 9, 3), (1, 9, 3), (69, 2, 2)])
def test_again(tmp_path, last, times, starts):
    """Starts again after 75 and 69, so often as it may, and hands on any other status."""
    log = tmp_path / "log"
    run = stub(
        tmp_path, "run", f'echo x >> {log}; set -- 75 69 {last}; shift $(($(wc -l < {log}) - 1)); exit "$1"'
    )
    env = {**os.environ, "PAUSE": "0", "TIMES": str(times)}
    done = subprocess.run([LAUNCH / "again.sh", run], env=env, timeout=30, capture_output=True)
    assert (done.returncode, count(log)) == (last, starts)


def test_a_signal_ends_again(tmp_path):
    run = stub(
        tmp_path, "run", "trap 'exit 75' TERM; trap 'echo saved' USR1; echo up; while :; do sleep 0.05; done"
    )
    process = subprocess.Popen(
        [LAUNCH / "again.sh", run], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "saved\n"
        process.terminate()
        assert process.wait(timeout=30) == 75
    finally:
        kill(process)


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [(75, 0, True), (69, 3, True), (1, 0, False), (75, 50, False), (0, 0, False)],
)
def test_slurm(tmp_path, status, restarts, requeued):
    stub(tmp_path, "srun", f'echo "$@" > {tmp_path}/srun.txt; exit {status}')
    stub(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/scontrol.txt')
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    env["SLURM_RESTART_COUNT"] = str(restarts)
    done = subprocess.run([LAUNCH / "slurm.sh", "--config", "a b.py"], env=env, capture_output=True)
    assert done.returncode == status
    assert "scripts/train.py --distributed --config a b.py" in (tmp_path / "srun.txt").read_text()
    asked = tmp_path / "scontrol.txt"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 7\n" if requeued else "")


def test_a_stopped_slurm_job_is_not_requeued(tmp_path):
    stub(tmp_path, "srun", "trap 'exit 75' TERM; echo up; while :; do sleep 0.05; done")
    stub(tmp_path, "scontrol", f"touch {tmp_path}/requeued")
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    process = subprocess.Popen(
        [LAUNCH / "slurm.sh"], env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.wait(timeout=30) == 75
    finally:
        kill(process)
    assert not (tmp_path / "requeued").exists()


def test_tpu_vm(tmp_path):
    """With gcloud's ssh as a shell on this machine: start, save, stop."""
    home, bin_ = tmp_path / "home", tmp_path / "bin"
    (home / "mmgen_jax" / "scripts" / "launch").mkdir(parents=True)
    (home / "venv" / "bin").mkdir(parents=True)
    bin_.mkdir()
    (home / "mmgen_jax" / "scripts" / "launch" / "again.sh").symlink_to(LAUNCH / "again.sh")
    (home / "venv" / "bin" / "python").symlink_to(sys.executable)
    (home / "mmgen_jax" / "scripts" / "train.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('saved', flush=True))\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print(sys.argv[1:], flush=True)\n"
        "while True: time.sleep(0.05)\n"
    )
    stub(bin_, "gcloud", 'for last; do :; done; exec bash -c "${last#--command=}"')
    env = {**os.environ, "HOME": str(home), "PATH": f"{bin_}:{os.environ['PATH']}"}

    def vm(what, *more):
        subprocess.run([LAUNCH / "tpu_vm.sh", what, "t", "z", *more], env=env, check=True, timeout=30)

    def said(text):
        log, deadline = home / "mmgen_jax" / "train.log", time.monotonic() + 30
        while time.monotonic() < deadline:
            if log.exists() and text in log.read_text():
                return
            time.sleep(0.05)
        raise AssertionError(log.read_text())

    vm("start", "--config", "a b.py")
    said("['--distributed', '--config', 'a b.py']")
    pid = int((home / "mmgen_jax" / "train.pid").read_text())
    vm("save")
    said("saved")
    vm("stop")
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(subprocess.CalledProcessError):
        vm("nothing")
